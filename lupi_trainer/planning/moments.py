"""Moments of a step in which a device holds most, item by item."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


CONTEXT = 1 << 30  # of CUDA, its libraries and what the allocator cannot use: a GPU's review of 2026-11-28


@dataclass
class Moment:
    """What a device holds at one moment.

    Attributes:
        name: what happens then.
        phase: "rollout", "training".
        items: bytes by what they are for; nothing has no item.
    """

    name: str
    phase: str
    items: dict[str, int] = field(default_factory=dict)

    def add(self, item: str, size: float) -> None:
        if size > 0:
            self.items[item] = self.items.get(item, 0) + round(size)

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.items.values())


def peak(moments: Iterable[Moment], phase: str) -> Moment:
    """The moment of a phase in which most is held; an empty one where the device has none."""
    return max(
        (moment for moment in moments if moment.phase == phase), key=lambda m: m.total, default=Moment("-", phase)
    )


def gib(size: float) -> str:
    """Bytes as GiB, with two digits."""
    return f"{size / (1 << 30):.2f}"

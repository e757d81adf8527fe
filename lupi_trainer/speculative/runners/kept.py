"""Caches and recordings that one rollout leaves for the next: a run's rollouts are of one kind.

A recording writes to the very memory that it was made with: the model's weights and the cache. Where both are still
what they were, it serves every rollout of a run; one that needs a larger cache, or finds the weights elsewhere, begins
anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .cache import RaggedCache
from .graphs import Graphs
from .support import base_model


if TYPE_CHECKING:
    from .runner import Runner


@dataclass
class Held:
    """What a runner left.

    Attributes:
        cache: with its buffers.
        graphs: what was recorded on it.
        granted: what the recordings take for granted, beside the cache.
    """

    cache: RaggedCache
    graphs: Graphs
    granted: tuple


def granted(model, vocab_size: int, beyond: int) -> tuple:
    """What the recordings of a runner take for granted: where the model's weights are, and what else they never read.

    `beyond`: the slots of its cache behind the last position, which a kernel that takes lengths wants.
    """
    model = base_model(model)
    places = tuple((tensor.data_ptr(), tensor.dtype) for tensor in (*model.parameters(), *model.buffers()))
    return places, vocab_size, beyond


class KeptRunners:
    """What the recorded runners of a run leave, by role, until the next rollout takes it; nothing of other runners.

    A rollout that fails leaves nothing: its cache may hold numbers that are not finite. Between rollouts the caches
    stay where they are, in the memory of their devices.

    Example:

    ```python
    >>> from lupi_trainer.speculative import KeptRunners

    >>> kept = KeptRunners()
    >>> for seed in range(2):
    ...     rollout = skd_rollout(student, teacher, prompt_ids, prompt_ids, max_new_tokens=4, seed=seed, kept=kept)
    >>> len(kept)  # of recorded runners alone, which are on a GPU
    0
    ```
    """

    def __init__(self):
        self.held: dict[str, Held] = {}

    def take(self, role: str) -> Held | None:
        """What the last runner of this role left, which belongs to the caller from now on."""
        return self.held.pop(role, None)

    def leave(self, role: str, runner: Runner) -> None:
        """Keeps what a recorded runner has, once its rollout has ended."""
        if runner.recorded:
            beyond = runner.capacity - runner.size
            self.held[role] = Held(runner.cache, runner.graphs, granted(runner.model, runner.vocab_size, beyond))

    def __len__(self) -> int:
        return len(self.held)

    @property
    def bytes(self) -> int:
        """What the caches occupy."""
        return sum(held.cache.bytes for held in self.held.values())

"""The other teachers of a run, as far as its bytes go: what they hold while one of them works."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..data.teacher_names import DEFAULTS, KEYS, STUDENT, named, parsed
from .sizes import Bits, ModelSize


Get = Callable[..., Any]  # (key, default) -> what the recipe says


@dataclass(frozen=True)
class Other:
    """A teacher beside the one that works.

    Attributes:
        name: what records call it.
        model: its size; of the student without its adapter it is the student's.
        home: where it is, as of [`Run`].
        offloaded: it is in the CPU's memory while it does not work.
        self_taught: its weights are the student's.
    """

    name: str
    model: ModelSize
    home: str
    offloaded: bool = False
    self_taught: bool = False

    @property
    def held(self) -> int:
        """Bytes on its device while it does not work."""
        return 0 if self.offloaded or self.self_taught else self.model.held

    def head(self, student: str) -> int:
        """Bytes of its lm_head that the loss has brought to the student's device, where that is another."""
        moved = not self.self_taught and (self.offloaded or self.home != student)
        return self.model.head * self.model.itemsize if moved else 0


class _Names:
    """What [`named`] reads of a configuration."""

    def __init__(self, get: Get):
        self.teachers = get("teachers", None)
        self.base_teacher = get("base_teacher", None) or "teacher"


def getters(get: Get) -> dict[str, Get]:
    """Of each teacher beside the run's own, (key, default) -> what the recipe says of it."""
    found: dict[str, Get] = {}
    entries = parsed(get("teachers", None))
    for name in named(_Names(get)):
        entry = entries.get(name, {}) if isinstance(entries, Mapping) else {}
        own = {KEYS[key]: value for key, value in entry.items()}
        if name == STUDENT:
            own = {"teacher_offload": get("teacher_offload", False)} | own

        def its(key: str, default: Any = None, own: dict[str, Any] = DEFAULTS | own) -> Any:
            return own[key] if key in own else get(key, default)

        found[name] = its
    return found


def frozen_student(get: Get, student: ModelSize, place: Callable[[Get], str]) -> Other:
    """The student as it was: itself without its adapter, or a frozen copy in the type in which it computes.

    Args:
        get: (key, default) -> what the recipe says of it.
        student: as it is trained.
        place: where a teacher is that is loaded.
    """
    if student.adapter:
        return Other(STUDENT, student, place(lambda key, default=None: default), self_taught=True)
    dtype = get("teacher_dtype", "auto")
    if dtype == "auto":
        mixed = get("bf16", None) in (None, True) and not get("use_cpu", False) and not get("fp16", False)
        dtype = torch.bfloat16 if student.dtype == torch.float32 and mixed else student.dtype
    else:
        dtype = getattr(torch, dtype)
    slot = student.slot // student.itemsize * dtype.itemsize
    copy = replace(student, name="frozen student", dtype=dtype, slot=slot, bits=Bits(), trained=0, trained_width=0)
    return Other(STUDENT, copy, place(get), bool(get("teacher_offload", False)))


def alike(first: Other, second: Other) -> bool:
    """Whether two teachers are one model, with other words perhaps."""
    keys = ("name", "dtype", "bits")
    same = all(getattr(first.model, key) == getattr(second.model, key) for key in keys)
    places = first.home, first.offloaded, first.self_taught
    return same and places == (second.home, second.offloaded, second.self_taught)

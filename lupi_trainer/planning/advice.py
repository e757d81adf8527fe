"""What to change where a run does not fit: keys of the recipe, each with what the fullest GPU then holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .plan import fits, fullest, largest, largest_batch
from .run import STUDENT, Run


Remake = Callable[[dict[str, Any]], Run]  # the run with these keys in place of the recipe's


@dataclass(frozen=True)
class Change:
    """Keys to set, and the bytes of the fullest GPU afterwards."""

    keys: dict[str, Any]
    total: int
    fits: bool

    def __str__(self) -> str:
        texts = {key: str(value).lower() if isinstance(value, bool) else value for key, value in self.keys.items()}
        return ", ".join(f"{key}: {text}" for key, text in texts.items())


def _candidates(run: Run, memory: int, remake: Remake) -> Iterator[dict[str, Any]]:
    """Keys that need less, those that change least of what is learned first."""
    if not run.checkpointing:
        yield {"activation_checkpointing": True}
    if run.running > 1:
        slots = largest(memory, lambda number: remake({"max_slots": number}))
        yield {"max_slots": min(max(slots, 1), run.running)}
    if run.leaves_graphs:
        yield {"keep_graphs": False}
    if run.rows > 1:
        most = max(largest_batch(run, memory), 1)
        rows = max(number for number in range(1, min(most, run.rows) + 1) if run.rows % number == 0)
        if rows < run.rows:  # as many texts a step, fewer at a time
            keys = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": run.texts // rows}
            yield keys | {"max_slots": min(run.slots, rows)}
    if run.teacher is not None and not run.self_taught:
        if run.home == STUDENT and not run.offloaded:
            yield {"teacher_offload": True}
            yield {"teacher_device": "paired"}
        if not run.teacher.bits.bits:
            yield {"teacher_load_in_4bit": True}
    if "8bit" not in run.optimizer and run.student.trained == run.student.weights and not run.sharding.kind:
        yield {"optim": "adamw_bnb_8bit"}
    if run.student.trained == run.student.weights:
        yield {"use_peft": True, "lora_target_modules": "all-linear"}
    if run.completion > 512:
        yield {"max_completion_length": run.completion // 2}


def changes(run: Run, memory: int, remake: Remake) -> list[Change]:
    """Single changes that need less than the run does; and where none of them is enough, all that help, one by one.

    Args:
        run: what does not fit.
        memory: bytes of a GPU.
        remake: the run with other keys.
    """
    before, found, together = fullest(run), [], {}
    for keys in _candidates(run, memory, remake):
        try:
            changed = remake(keys)
        except ValueError:  # the model cannot have it: no adapter of PEFT's, for instance
            continue
        if fullest(changed) < before:
            found.append(Change(keys, fullest(changed), fits(changed, memory)))
    if any(change.fits for change in found):
        return found
    for change in found:
        together = together | change.keys
        changed = remake(together)
        if fits(changed, memory):
            return [*found, Change(together, fullest(changed), True)]
    return found

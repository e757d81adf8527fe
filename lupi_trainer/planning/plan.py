"""What a run needs, put together: bytes of each device by item, the largest batch, tokens, forwards, seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .moments import Moment, peak
from .rollout import rollout_moments
from .run import CPU, Run
from .training import training_moments


PHASES = ("rollout", "training")
_MOST_ROWS = 1 << 20


@dataclass(frozen=True)
class DevicePlan:
    """What a device holds at most, in each phase."""

    device: str
    rollout: Moment
    training: Moment

    @property
    def worst(self) -> Moment:
        """The moment in which most is held."""
        return max((self.rollout, self.training), key=lambda moment: moment.total)


def plan_bytes(run: Run) -> list[DevicePlan]:
    """Of each device, its fullest moments of rollout and training."""
    rollout: dict[str, list[Moment]] = {}
    training: dict[str, list[Moment]] = {}
    for at_work in run.by_teacher:
        for found, moments in ((rollout, rollout_moments(at_work)), (training, training_moments(at_work))):
            for device, its in moments.items():
                found.setdefault(device, []).extend(its)
    return [
        DevicePlan(device, peak(rollout.get(device, []), "rollout"), peak(training.get(device, []), "training"))
        for device in dict.fromkeys([*rollout, *training])
    ]


def fullest(run: Run) -> int:
    """Bytes that the fullest GPU holds at most."""
    return max(plan.worst.total for plan in plan_bytes(run) if plan.device != CPU)


def fits(run: Run, memory: int) -> bool:
    """Whether every GPU has room for what it holds at most."""
    return fullest(run) <= memory


def largest(memory: int, made: Callable[[int], Run]) -> int:
    """The largest number for which `made(number)` fits, by bisection; 0: not even 1 does."""
    if not fits(made(1), memory):
        return 0
    low, high = 1, 2
    while high <= _MOST_ROWS and fits(made(high), memory):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(made(middle), memory) else (low, middle)
    return low


def with_rows(run: Run, rows: int) -> Run:
    """The run with another `per_device_train_batch_size`; all of its texts at once, if they are now."""
    slots = rows * run.accumulation if run.slots >= run.texts else run.slots
    return replace(run, rows=rows, slots=slots)


def largest_batch(run: Run, memory: int) -> int:
    """The largest `per_device_train_batch_size` that fits."""
    return largest(memory, lambda rows: with_rows(run, rows))

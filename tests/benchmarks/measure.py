"""Timing side by side: contenders take turns, so what disturbs one disturbs them all."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch

from lupi_trainer.speculative.runners.slots import Slots


def clock() -> float:
    """Seconds on a clock, once the GPU has done what it was given, if one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def prefill_clock():
    """Yields a list whose only number grows by the seconds that rollouts spend on reading prompts."""
    spent, admit = [0.0], Slots.admit

    def timed(self, slots):
        started = clock()
        admit(self, slots)
        spent[0] += clock() - started

    Slots.admit = timed
    try:
        yield spent
    finally:
        Slots.admit = admit


class Others:
    """How much of the machine other processes used since this was made, in [0, 1]; None where it cannot be told."""

    def __init__(self):
        self.started = self._seconds()

    def share(self) -> float | None:
        if self.started is None:
            return None
        whole, busy, own = (now - then for now, then in zip(self._seconds(), self.started))
        return max(0.0, busy - own) / max(whole, 1e-9)

    @staticmethod
    def _seconds() -> tuple[float, float, float] | None:
        """(all, busy, this process's) processor seconds so far."""
        try:
            with open("/proc/stat") as file:
                ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in file.readline().split()[1:9]]
        except OSError:
            return None
        own = os.times()
        return sum(ticks), sum(ticks) - ticks[3] - ticks[4], own.user + own.system


def take_turns(
    contenders: dict[str, Callable], repeats: int, without_prefill: bool = False, warm_up: bool = True
) -> dict[str, list[float]]:
    """Returns the seconds of every run of every contender, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with prefill_clock() as prefill:
        for turn in range(0 if warm_up else 1, repeats + 1):
            for name, run in contenders.items():
                prefill[0], started = 0.0, clock()
                run()
                taken = clock() - started
                if turn:
                    seconds[name].append(taken - prefill[0] if without_prefill else taken)
    return seconds


def ratio(seconds: dict[str, list[float]], above: str, below: str) -> float:
    """The median over the turns of one contender's seconds over another's."""
    return statistics.median(a / b for a, b in zip(seconds[above], seconds[below]))


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def row(figure: str, seconds: dict, above: str, below: str, sense: str = "", wanted: float = 0.0) -> dict:
    """A row of the table: the ratio of two contenders' seconds, what is wanted of it, and everybody's median."""
    medians = {name: round(median(taken), 3) for name, taken in seconds.items()}
    return {
        "figure": figure,
        "ratio": ratio(seconds, above, below),
        "sense": sense,
        "wanted": wanted,
        "seconds": medians,
    }

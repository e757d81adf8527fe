"""Which row sits in which slot: admitted from a queue, given up when it has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .numbers import Numbers
from .remote_runner import RemoteRunner
from .runner import Runner


class Slots:
    """The running rows of a rollout, and the queue behind them.

    Slots 0 to `used` - 1 are in use. A row that has ended gives its slot to the next waiting row; when none waits,
    the last slot's row moves there, so that the batch shrinks; below the least that the runners take, slots idle.
    """

    def __init__(self, runners: Sequence[Runner | RemoteRunner], rows: int, slots: int, device: torch.device):
        self.runners, self.least = runners, max((runner.least_batch for runner in runners), default=0)
        self.in_step = False  # prompts are read at the same time as on other processes, or nothing is
        self.waiting = list(range(rows))
        self.owner: list[int | None] = []  # slot -> row, None where it idles
        self.written: list[int] = []  # slot -> completion tokens
        # the same where the tensors are; a row is kept in an idle slot, which writes nothing
        self.row = torch.zeros(slots, dtype=torch.long, device=device)
        self.n = torch.zeros(slots, dtype=torch.long, device=device)
        self.idle = torch.zeros(slots, dtype=torch.bool, device=device)
        self.numbers = Numbers(slots, device)
        self.states: list[tuple[torch.Tensor, Callable]] = []

    def track(self, state: torch.Tensor, initial: Callable[[int], torch.Tensor | int]) -> torch.Tensor:
        """Lets a tensor [slots, ...] move with the rows; `initial(row)` [...] is what a new row starts with."""
        self.states.append((state, initial))
        return state

    @property
    def used(self) -> int:
        return len(self.owner)

    def running(self) -> dict[int, int]:
        """The slots whose row has not ended -> that row."""
        return {slot: row for slot, row in enumerate(self.owner) if row is not None}

    def longest(self, runner: Runner | RemoteRunner) -> int:
        """The largest position that a running row feeds next."""
        return max(len(runner.prompts[row]) - 1 + self.written[slot] for slot, row in self.running().items())

    def admit(self, slots: list[int]) -> None:
        """Puts the next waiting rows into the given slots, and has their prompts read."""
        rows, self.waiting = self.waiting[: len(slots)], self.waiting[len(slots) :]
        for slot, row in zip(slots, rows):
            if slot == self.used:
                self.owner.append(row)
                self.written.append(0)
            self.owner[slot], self.written[slot] = row, 0
        for runner in self.runners:
            runner.admit(slots, rows)
        for slot, row in zip(slots, rows):  # one by one, for the host waits for an index that is copied to a GPU
            self.row[slot], self.n[slot] = row, 0
            for state, initial in self.states:
                state[slot] = initial(row)

    def retire(self, slots: list[int]) -> None:
        """Gives up the slots of ended rows."""
        refilled = slots[: len(self.waiting)]
        if refilled or self.in_step:
            self.admit(refilled)
        for slot in sorted(slots[len(refilled) :], reverse=True):
            if self.used <= self.least:
                self.owner[slot], self.idle[slot] = None, True
            else:
                self._close(slot)

    def _close(self, slot: int) -> None:
        last = self.used - 1
        if slot != last:
            self.owner[slot], self.written[slot] = self.owner[last], self.written[last]
            for state in (self.row, self.n, *(state for state, _ in self.states)):
                state[slot] = state[last]
            for runner in self.runners:
                runner.move(last, slot, self.written[slot])
        self.owner.pop()
        self.written.pop()

"""The loop that SKD and lossless decoding share: choose a length, run a round, read its report, learn, retire, refill.

A round drafts, verifies and commits tokens of all running rows, and asks the device one question: its `Report`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

from ..rules.gamma import GammaPolicy, Outcome, usable_length
from ..runners.lockstep import Alone, Lockstep
from ..runners.slots import Slots
from .checks import integer
from .report import Report, Stats


ALONE = Alone()
Counts = TypeVar("Counts", bound=Stats)


class Rounds(ABC, Generic[Counts]):
    """Rounds until every row has ended; an algorithm is what `step` drafts, verifies and commits in one of them.

    Args:
        slots: before a row is admitted.
        limit: the longest completion, in tokens.
        gamma: the longest draft.
        eos: tokens that end a row.
        compile, recorded: of the forwards whose width is the draft length (see `usable_length`).
    """

    bonus = 0  # tokens that the target writes in a round beyond the draft
    drafts = True  # False: it writes all of them

    def __init__(
        self,
        slots: Slots,
        stats: Counts,
        *,
        limit: int,
        gamma: int,
        gamma_policy: GammaPolicy,
        eos: list[int],
        compile: bool,
        recorded: bool,
        lockstep: Lockstep | Alone = ALONE,
        on_round: Callable[[Any], None] | None = None,
    ):
        self.slots, self.stats, self.limit, self.gamma, self.gamma_policy = slots, stats, limit, gamma, gamma_policy
        self.eos = torch.tensor(eos, dtype=torch.long, device=slots.n.device)
        self.compile, self.recorded, self.lockstep, self.on_round = compile, recorded, lockstep, on_round
        self.lengths = [0] * len(slots.waiting)  # of the rows that have ended

    @abstractmethod
    def step(self, gamma: int) -> tuple[Report[torch.Tensor], Any]:
        """Drafts `gamma` tokens of every row in use, verifies and commits them; also returns what `settle` needs."""

    @abstractmethod
    def settle(self, gamma: int, reports: dict[int, Report[int]], kept: Any, seconds: float) -> list[int]:
        """Does what is left once the host knows each running slot's report; returns the slots whose row ends."""

    @abstractmethod
    def result(self) -> Any:
        """What was written, once every row has ended."""

    @abstractmethod
    def on_broken(self, slot: int, report: Report[int]) -> None:
        """Called for a row that was cut short, before anything learns of it."""

    def idle(self, gamma: int) -> None:
        """The forwards of a round without a row, while other processes in lockstep have some."""
        raise NotImplementedError(f"{type(self).__name__} does not run in lockstep")

    def run(self) -> Any:
        """Completes every row; returns the result."""
        slots = len(self.slots.n)
        more = self.lockstep.most(len(self.slots.waiting) - slots) > 0
        self.slots.in_step = self.lockstep.together and more
        self.slots.admit(list(range(slots)))
        while True:
            started = time.perf_counter()
            width = self.lockstep.most(self._width())
            if width == 0:
                return self.result()
            if self.slots.running():
                self._round(width - self.bonus, started)
            else:
                self.idle(width - self.bonus)
                for runner in self.slots.runners:
                    runner.settle({})
                self.slots.retire([])

    def _width(self) -> int:
        """How many tokens the next round may write of a row, draft and bonus; 0: no row runs."""
        running = self.slots.running()
        if not running:
            return 0
        left = {row: self.limit - self.slots.written[slot] - self.bonus for slot, row in running.items()}
        name, chosen = type(self.gamma_policy).__name__, self.gamma_policy.choose(left, len(self.slots.waiting))
        gamma = min(integer(f"{name}.choose()", chosen, least=1 - self.bonus), self.gamma)
        return self.bonus + usable_length(gamma, self.gamma, max(left.values()), self.compile, self.recorded)

    def _round(self, gamma: int, started: float) -> None:
        report, kept = self.step(gamma)
        reports = report.read()
        seconds = time.perf_counter() - started
        owner = self.slots.running()
        reports = {slot: reports[slot] for slot in owner}
        for slot, row in reports.items():
            if row.broken:
                self.on_broken(slot, row)
            self.slots.written[slot] += row.committed
        by_row = {owner[slot]: row for slot, row in reports.items()}
        self.stats.count_round(gamma if self.drafts else 0, by_row, seconds)
        outcomes = [Outcome(owner[i], r.accepted, bool(r.rejected), r.remaining) for i, r in reports.items()]
        self.gamma_policy.observe(gamma, outcomes, seconds)
        ended = self.settle(gamma, reports, kept, seconds)
        going = {slot: self.slots.written[slot] for slot in owner if slot not in ended}
        for runner in self.slots.runners:
            runner.settle(going)
        for slot in ended:
            self.lengths[owner[slot]] = self.slots.written[slot]
        self.slots.retire(ended)
        if self.on_round is not None:
            self.on_round(self.stats)

    def cut(self, new: torch.Tensor, count: torch.Tensor, first: torch.Tensor):
        """Cuts `count` [A] of the tokens `new` [A, Q], to be written from column `first` [A] on, behind an eos.

        Returns which rows end so [A] bool, the counts [A], and each token's column [A, Q]: the last one, which is no
        token's place, where it is discarded.
        """
        places = torch.arange(new.shape[1], device=new.device)
        ends = torch.isin(new, self.eos) & (places < count[:, None])
        count = torch.where(ends.any(1), ends.long().argmax(1) + 1, count)
        return ends.any(1), count, torch.where(places < count[:, None], first[:, None] + places, -1)

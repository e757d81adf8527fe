"""How many tokens to draft in the next round. Whatever a policy chooses, the text of a rollout is the same."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Protocol


@dataclass(frozen=True)
class Outcome:
    """What one round did to one row.

    Attributes:
        row: number of the row.
        accepted: drafted tokens that were accepted.
        rejected: whether a drafted token was rejected after them.
        remaining: tokens that the row may still write; 0 when it has ended.

    Example:

    ```python
    >>> from lupi_trainer.speculative import Adaptive, Outcome

    >>> policy = Adaptive(max_gamma=20, start=8)
    >>> policy.observe(8, [Outcome(row=0, accepted=3, rejected=True, remaining=40)], seconds=0.1)
    >>> policy.choose({0: 40}, waiting=0)
    4
    ```
    """

    row: int
    accepted: int  # drafted tokens
    rejected: bool  # a drafted token was rejected after them
    remaining: int  # tokens that the row may still write; 0 when it has ended


def usable_length(gamma: int, longest: int, remaining: int, compile: bool, recorded: bool) -> int:
    """The draft length of a round where a policy chose `gamma` and no row has more than `remaining` tokens to write.

    One compiled graph serves all lengths from 2 on. Recorded, each length is a recording of its own, so they are few:
    the power of two that is nearest as a ratio, or `longest`.
    """
    if not recorded:
        return min(max(min(gamma, remaining), 2 if compile else 0), longest)
    powers = [1 << i for i in range(longest.bit_length()) if 1 << i < longest]
    return min([*powers, longest], key=lambda length: max(length / max(gamma, 1), gamma / length))


class GammaPolicy(Protocol):
    """A gamma policy: chooses before every round, observes after it.

    Example:

    ```python
    >>> class Halves:
    ...     def choose(self, remaining, waiting):
    ...         return max(1, max(remaining.values()) // 2)
    ...
    ...     def observe(self, gamma, outcomes, seconds):
    ...         pass

    >>> rollout = skd_rollout(student, teacher, prompt_ids, prompt_ids, max_new_tokens=4, gamma_policy=Halves())
    ```
    """

    def choose(self, remaining: dict[int, int], waiting: int) -> int:
        """Returns the next draft length.

        Args:
            remaining: running row -> tokens that it may still write.
            waiting: number of queued rows.
        """

    def observe(self, gamma: int, outcomes: list[Outcome], seconds: float) -> None:
        """Learns from a round that drafted `gamma` tokens for every row (0 near a row's end) and took so long."""


@dataclass
class Fixed:
    """Always `gamma` tokens.

    Example:

    ```python
    >>> from lupi_trainer.speculative import Fixed

    >>> Fixed(gamma=8).choose({0: 40}, waiting=0)
    8
    ```
    """

    gamma: int = 20

    def choose(self, remaining: dict[int, int], waiting: int) -> int:
        return self.gamma

    def observe(self, gamma: int, outcomes: list[Outcome], seconds: float) -> None:
        pass


class Adaptive:
    """`gamma + 2` after a fully accepted block, otherwise `accepted + 1`; at most `max_gamma`.

    Every row follows this rule by itself; a batch drafts the rounded mean over its rows.

    Args:
        max_gamma: the longest draft, in tokens.
        start: the first one; `max_gamma` unless given.

    Example:

    ```python
    >>> from lupi_trainer.speculative import Adaptive

    >>> rollout = skd_rollout(
    ...     student, teacher, prompt_ids, prompt_ids, max_new_tokens=4, gamma_policy=Adaptive(max_gamma=8)
    ... )
    ```
    """

    def __init__(self, max_gamma: int = 20, start: int | None = None):
        self.max_gamma, self.start = max_gamma, max_gamma if start is None else start
        self.wanted: dict[int, int] = {}

    def choose(self, remaining: dict[int, int], waiting: int) -> int:
        wanted = [self.wanted.get(row, self.start) for row in remaining]
        return round(sum(wanted) / len(wanted))

    def observe(self, gamma: int, outcomes: list[Outcome], seconds: float) -> None:
        for o in outcomes:
            self.wanted[o.row] = max(1, o.accepted + 1) if o.rejected else min(self.max_gamma, gamma + 2)
            if o.remaining == 0:
                del self.wanted[o.row]


def _line(points: list[tuple[int, float, float]]) -> tuple[float, float]:
    """Weighted least squares of seconds on gamma; points (gamma, seconds, weight) -> (intercept, slope)."""
    weight = sum(w for _, _, w in points)
    gamma = sum(w * g for g, _, w in points) / weight
    seconds = sum(w * s for _, s, w in points) / weight
    spread = sum(w * (g - gamma) ** 2 for g, _, w in points)
    slope = sum(w * (g - gamma) * (s - seconds) for g, s, w in points) / spread if spread > 1e-6 * weight else 0.0
    slope = min(max(slope, 0.01 * seconds / gamma), 0.99 * seconds / gamma)
    return seconds - slope * gamma, slope


class Goodput:
    """The length with the highest expected goodput: committed tokens a second.

    Acceptance is estimated for each row (exponentially forgotten counts, shrunk towards all rows'): trials end at the
    first rejection, so the estimate does not depend on the length that was drafted. A block of gamma tokens commits
    `(1 - alpha^gamma) / (1 - alpha)` tokens of a row, and with the `bonus` token of lossless decoding `(1 -
    alpha^(gamma + 1)) / (1 - alpha)` (arXiv 2211.17192, equation 1). The time of a round is measured and fitted as
    `fixed + slope * gamma`, by the line that a third of the last rounds stayed below: other work on the machine makes
    single rounds slower, never faster. Rounds of a batch of another size do not count. Where these were nearly all of
    one length, which says nothing of the slope, one round in 16 tries twice or half of it. Given to several rollouts,
    the object keeps what it has learned.

    Args:
        max_gamma: the longest draft, in tokens.
        start: the first one.
        bonus: lossless decoding, which writes a token more a round.

    Example:

    ```python
    >>> from lupi_trainer.speculative import Goodput

    >>> policy = Goodput(max_gamma=8)  # kept for several rollouts, since it learns
    >>> rollout = skd_rollout(student, teacher, prompt_ids, prompt_ids, max_new_tokens=4, gamma_policy=policy)
    ```
    """

    def __init__(self, max_gamma: int = 20, start: int = 5, bonus: bool = False):
        self.max_gamma, self.start, self.bonus = max_gamma, min(start, max_gamma), bonus
        self.trials: dict[int, tuple[float, float]] = {}  # row -> accepted, rejected, forgotten exponentially
        self.all_trials = (4.0, 1.0)
        self.timed: deque[tuple[int, float, int]] = deque(maxlen=64)  # a round's gamma, seconds and rows
        self.rounds = 0

    def choose(self, remaining: dict[int, int], waiting: int) -> int:
        if self.rounds < 4:  # two lengths, twice each; the very first round also pays for warming up
            return min(self.max_gamma, self.start * (1 + self.rounds % 2))
        usual = self.all_trials[0] / sum(self.all_trials)
        tokens = [0.0] * self.max_gamma
        for row, left in remaining.items():
            accepted, rejected = self.trials.get(row, (0.0, 0.0))
            alpha = min(max((accepted + 4 * usual) / (accepted + rejected + 4), 0.01), 0.999)
            weight = 1 if waiting else left  # no queue: the rollout ends with its longest row
            expected, reached = (1.0, alpha) if self.bonus else (0.0, 1.0)
            for i in range(min(self.max_gamma, left)):
                expected += reached
                reached *= alpha
                tokens[i] += weight * expected
            for i in range(left, self.max_gamma):
                tokens[i] += weight * expected
        fixed, slope = self._seconds(len(remaining))
        best = 1 + max(range(self.max_gamma), key=lambda i: tokens[i] / (fixed + slope * (i + 1)))
        turn, tries = divmod(self.rounds, 16)
        if tries or self._varied(len(remaining)):
            return best
        return best * 2 if turn % 2 and best * 2 <= self.max_gamma else max(best // 2, 1)

    def _alike(self, rows: int) -> list[tuple[int, float]]:
        return [(gamma, seconds) for gamma, seconds, n in self.timed if 0.8 <= n / rows <= 1.25]

    def _varied(self, rows: int) -> bool:
        """Whether the last lengths of rounds with about as many rows differ by a fifth of their mean."""
        lengths = [gamma for gamma, _ in self._alike(rows)[-16:]]
        return len(lengths) > 1 and stdev(lengths) > 0.2 * mean(lengths)

    def _seconds(self, rows: int) -> tuple[float, float]:
        """A round's fixed seconds and those for each drafted token; both are positive."""
        alike = self._alike(rows)
        timed = alike if len(alike) >= 4 else [(gamma, seconds) for gamma, seconds, _ in self.timed]
        fixed, slope = _line([(gamma, seconds, 1.0) for gamma, seconds in timed])
        for _ in range(5):  # quantile regression by reweighted least squares
            errors = [(gamma, seconds, seconds - fixed - slope * gamma) for gamma, seconds in timed]
            fixed, slope = _line([(g, s, (1 if e > 0 else 2) / max(abs(e), 0.02 * s)) for g, s, e in errors])
        return fixed, slope

    def state(self) -> dict:
        """What was learned over all rows, as JSON can hold it; rows that are still running are not part of it."""
        timed = [list(round) for round in self.timed]
        return {"all_trials": list(self.all_trials), "timed": timed, "rounds": self.rounds}

    def restore(self, state: dict) -> None:
        """Goes on from `state()` of another object."""
        self.all_trials, self.rounds = tuple(state["all_trials"]), state["rounds"]
        self.timed = deque(map(tuple, state["timed"]), maxlen=self.timed.maxlen)

    def observe(self, gamma: int, outcomes: list[Outcome], seconds: float) -> None:
        self.rounds += gamma > 0  # a round without a draft says nothing of what drafting costs
        if gamma > 0 and self.rounds > 1:
            self.timed.append((gamma, seconds, len(outcomes)))
        for o in outcomes:
            accepted, rejected = self.trials.pop(o.row, (0.0, 0.0))
            if o.remaining:
                self.trials[o.row] = 0.9 * accepted + o.accepted, 0.9 * rejected + o.rejected
            self.all_trials = 0.99 * self.all_trials[0] + o.accepted, 0.99 * self.all_trials[1] + o.rejected


GAMMA_POLICIES = {"fixed": Fixed, "adaptive": Adaptive, "goodput": Goodput}

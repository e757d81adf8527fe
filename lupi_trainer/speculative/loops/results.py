"""What a rollout or a lossless decoding returns, and what it can report on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .report import Report
from .trace import TokenTrace


@dataclass
class RoundCounts:
    """What every loop of rounds counts; a block is one (row, round) pair, so rates are counts over `blocks`."""

    drafted: int = 0  # tokens that were proposed and that had a place in the row
    accepted: int = 0  # those that were accepted
    committed: int = 0  # tokens written, by whichever model
    rounds: int = 0
    blocks: int = 0
    gamma_history: list[int] = field(default_factory=list)  # one draft length a round
    replayed: int = 0  # tokens that models with recurrent states have read again after a rejection
    state_copy_bytes: int = 0  # the most that copies of such states have occupied in a round

    def count_replay(self, runners: Iterable) -> None:
        """Adds what taking back has cost the models' runners, once every row has ended."""
        for replay in (runner.replay for runner in runners if runner.replay is not None):
            self.replayed += replay.replayed
            self.state_copy_bytes += replay.most_bytes

    def count_round(self, gamma: int, reports: Mapping[int, Report[int]], seconds: float) -> None:
        """Adds a round: what it did to each running row, by the row's number, and how long it took."""
        self.rounds += 1
        self.gamma_history.append(gamma)
        for number, row in reports.items():
            self.blocks += 1
            self.drafted += row.drafted
            self.accepted += row.accepted
            self.committed += row.committed
            self._count_block(number, row, gamma, seconds / len(reports))

    def _count_block(self, number: int, row: Report[int], gamma: int, seconds: float) -> None:
        """What is counted of a block besides; `seconds`: the row's share of the round."""
        raise NotImplementedError


@dataclass
class RowCounts:
    """What is counted of one row of a rollout."""

    drafted: int = 0
    accepted: int = 0
    blocks: int = 0
    first_token_accepted: int = 0
    full_match: int = 0
    gammas: int = 0  # the draft lengths of its rounds, summed
    seconds: float = 0.0  # of its rounds, each divided evenly among the rows that ran in it


@dataclass
class RolloutStats(RoundCounts):
    """Counts over an entire rollout, whose tokens the student proposes.

    Attributes:
        drafted, accepted: tokens that were proposed and had a place in their row, and those that were accepted.
        committed: tokens written, by whichever model.
        rounds, blocks: rounds, and (row, round) pairs.
        gamma_history: one draft length a round, in tokens.
        finished: rows that have ended.
        first_token_accepted, full_match: blocks whose first token, and whose every token with a place, was accepted.
        student_forwards, teacher_forwards: without the reading of prompts.
        teacher_requests: to a remote teacher; over `committed`, requests a token.
        close_calls: tokens written whose draw or verdict lay within rounding; not counted in float32.
        replayed: tokens that models with recurrent states have read again after a rejection.
        state_copy_bytes: the most that copies of such states have occupied in a round.

    Example:

    ```python
    >>> stats = skd_rollout(student, teacher, prompt_ids, prompt_ids, max_new_tokens=4).stats
    >>> 0 <= stats.accepted <= stats.drafted and len(stats.gamma_history) == stats.rounds
    True
    ```
    """

    finished: int = 0  # rows that have ended
    first_token_accepted: int = 0  # blocks whose first token was accepted
    full_match: int = 0  # blocks of which every token that had a place was accepted
    student_forwards: int = 0  # without the prefill
    teacher_forwards: int = 0
    teacher_requests: int = 0  # to a remote teacher
    close_calls: int = 0  # tokens written whose draw or verdict lay within rounding; not counted in float32
    rows: dict[int, RowCounts] = field(default_factory=dict, compare=False, repr=False)

    def _count_block(self, number: int, row: Report[int], gamma: int, seconds: float) -> None:
        first, full = int(row.accepted > 0), int(not row.rejected and not row.broken)
        self.finished += row.remaining == 0
        self.first_token_accepted += first
        self.full_match += full
        its = self.rows.setdefault(number, RowCounts())
        its.drafted += row.drafted
        its.accepted += row.accepted
        its.blocks += 1
        its.first_token_accepted += first
        its.full_match += full
        its.gammas += gamma
        its.seconds += seconds


@dataclass
class Rollout:
    """Completions of B prompts: token ids, the writer of each, and what the teacher knew when it judged them.

    Attributes:
        completion_ids: B lists of token ids.
        from_teacher: of each token, whether the teacher wrote it.
        stats: counts, as [`RolloutStats`].
        broken: rows that were cut short, and whose logits were no distribution (`"student"`, `"teacher"`).
        close_calls: of each token, whether it hung on rounding; `None` in float32.
        teacher_hidden: B tensors [len_i, H], what the teacher's lm_head read; `None` unless asked for.
        teacher_top: of a remote teacher B tensors [len_i, 2 * top_k]: its likeliest token ids, then their natural
            log-probabilities (-inf: no token).
        traces: of the rows that were to be traced, as [`TokenTrace`].

    Example:

    ```python
    >>> rollout = skd_rollout(student, teacher, prompt_ids, prompt_ids, max_new_tokens=4)
    >>> [len(ids) == len(writers) for ids, writers in zip(rollout.completion_ids, rollout.from_teacher)]
    [True, True]
    ```
    """

    completion_ids: list[list[int]]
    from_teacher: list[list[bool]]
    stats: RolloutStats
    broken: dict[int, str] = field(default_factory=dict)  # rows cut short -> whose logits were no distribution
    close_calls: list[list[bool]] | None = None  # of each token: it hung on rounding; None in float32
    # [len_i, H_teacher]: what the teacher's lm_head read (`None` at a row of a teacher of which that is not known)
    teacher_hidden: list[Any] | None = None
    # of a remote teacher [len_i, 2 * top_k]: its likeliest token ids, then their log-probabilities (-inf: no token)
    teacher_top: list[Any] | None = None
    traces: list[TokenTrace] | None = None  # of the rows that were to be traced


@dataclass(frozen=True)
class Block:
    """One row's part of one round, as `on_block` sees it.

    Attributes:
        round, row: numbers of both.
        position: completion tokens before the block.
        drafted: token ids.
        accepted: how many of them were accepted.
        correction: the token id that the teacher wrote in place of the first rejected one, if there is one.
        teacher_rank: of each drafted token, 0 for the teacher's favorite.
        teacher_probability: of each drafted token, at the teacher's temperature.
        ended: whether the row has ended.
        seconds: of the entire round.

    Example:

    ```python
    >>> blocks = []
    >>> rollout = skd_rollout(student, teacher, prompt_ids, prompt_ids, max_new_tokens=4, on_block=blocks.append)
    >>> blocks[0].round, blocks[0].row, blocks[0].position
    (0, 0, 0)
    ```
    """

    round: int
    row: int
    position: int  # completion tokens before the block
    drafted: list[int]
    accepted: int  # how many of them
    correction: int | None  # what the teacher wrote in place of the first rejected one
    teacher_rank: list[int]  # of each drafted token, 0 for the teacher's favorite
    teacher_probability: list[float]  # of each drafted token, at the teacher's temperature
    ended: bool
    seconds: float  # of the entire round


@dataclass
class SpeculativeStats(RoundCounts):
    """Counts over all rows of a lossless decoding, whose tokens the draft proposes.

    Attributes:
        drafted, accepted, committed, rounds, blocks, gamma_history: as in [`RolloutStats`].
        accepted_lengths: [i]: blocks of which i drafted tokens were accepted.
        target_forwards, draft_forwards: without the reading of prompts.

    Example:

    ```python
    >>> stats = speculative_generate(teacher, student, prompt_ids, max_new_tokens=8).stats
    >>> stats.acceptance_length >= 1 and 0 <= stats.acceptance_rate <= 1
    True
    ```
    """

    accepted_lengths: list[int] = field(default_factory=list)  # [i]: blocks of which i drafted tokens were accepted
    target_forwards: int = 0  # without the prefill
    draft_forwards: int = 0

    @property
    def acceptance_length(self) -> float:
        """Committed tokens a round and row; 1 is what the target does alone."""
        return self.committed / max(self.blocks, 1)

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafted tokens that were accepted."""
        return self.accepted / max(self.drafted, 1)

    def _count_block(self, number: int, row: Report[int], gamma: int, seconds: float) -> None:
        self.accepted_lengths += [0] * (row.accepted + 1 - len(self.accepted_lengths))
        self.accepted_lengths[row.accepted] += 1


@dataclass
class SpeculativeOutput:
    """Completions of B prompts, in the order of the prompts, and what they cost.

    Attributes:
        completion_ids: B lists of token ids.
        stats: [`SpeculativeStats`].

    Example:

    ```python
    >>> output = speculative_generate(teacher, student, prompt_ids, max_new_tokens=8)
    >>> len(output.completion_ids), max(map(len, output.completion_ids)) <= 8
    (2, True)
    ```
    """

    completion_ids: list[list[int]]
    stats: SpeculativeStats

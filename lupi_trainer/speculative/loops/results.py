"""What a rollout returns, and what it can tell on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..rules.gamma import Outcome
from .trace import TokenTrace


@dataclass
class RolloutStats:
    """Counts over the whole rollout; a block is one (row, round) pair, so rates are counts over `blocks`."""

    drafted: int = 0  # tokens that the student proposed and that had a place in the row
    accepted: int = 0  # those that stand
    committed: int = 0  # tokens written, by whomever
    finished: int = 0  # rows that have ended
    rounds: int = 0
    blocks: int = 0
    first_token_accepted: int = 0  # blocks whose first token stands
    full_match: int = 0  # blocks of which every token that had a place stands
    student_forwards: int = 0  # without the prefill
    teacher_forwards: int = 0
    gamma_history: list[int] = field(default_factory=list)  # one draft length a round

    def count_round(self, gamma: int, rooms: list[int], outcomes: list[Outcome], broken) -> None:
        """Adds a round; `rooms` are the tokens that each row could still write before it, `broken` rows cut short."""
        self.rounds += 1
        self.gamma_history.append(gamma)
        for room, outcome in zip(rooms, outcomes):
            self.blocks += 1
            self.drafted += min(gamma, room) if outcome.rejected else outcome.accepted
            self.accepted += outcome.accepted
            self.first_token_accepted += outcome.accepted > 0
            self.full_match += not outcome.rejected and outcome.row not in broken


@dataclass
class Rollout:
    """Completions of B prompts: token ids, who wrote each, and what the teacher knew when it judged them."""

    completion_ids: list[list[int]]
    from_teacher: list[list[bool]]
    stats: RolloutStats
    broken: dict[int, str] = field(default_factory=dict)  # rows cut short -> whose logits were no distribution
    teacher_hidden: list[torch.Tensor] | None = None  # [len_i, H_teacher]: what the teacher's lm_head read
    # of a remote teacher [len_i, 2 * top_k]: its likeliest token ids, then their log-probabilities (-inf: no token)
    teacher_top: list[torch.Tensor] | None = None
    traces: list[TokenTrace] | None = None  # of the rows that were to be traced


@dataclass(frozen=True)
class Block:
    """One row's part of one round, as `on_block` sees it."""

    round: int
    row: int
    position: int  # completion tokens before the block
    drafted: list[int]
    accepted: int  # how many of them stand
    correction: int | None  # what the teacher wrote in place of the first that does not
    teacher_rank: list[int]  # of each drafted token, 0 for the teacher's favorite
    teacher_probability: list[float]  # of each drafted token, at the teacher's temperature
    ended: bool
    seconds: float  # of the whole round

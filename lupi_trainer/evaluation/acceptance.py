"""How much of the student's drafts the teacher accepts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from ..speculative import Rollout, skd_rollout
from ..speculative.loops.results import RowCounts


@dataclass(frozen=True)
class AcceptanceCounts:
    """What acceptance rates are computed from; counts of several rollouts or processes add up.

    Attributes:
        drafted, accepted: tokens that the student proposed, and those of them that were accepted.
        blocks: (row, round) pairs.
        first_token_accepted, full_match: blocks whose first token was accepted, and whose every token was.
        written, written_by_teacher: tokens of the finished text, and those of them that the teacher wrote.
    """

    drafted: float
    accepted: float
    blocks: float
    first_token_accepted: float
    full_match: float
    written: float
    written_by_teacher: float

    @classmethod
    def of(cls, rollout: Rollout, rows: Iterable[int] | None = None) -> AcceptanceCounts:
        """The counts of one rollout, of all rows or of these."""
        chosen = range(len(rollout.completion_ids)) if rows is None else list(rows)
        found = [rollout.stats.rows.get(row, RowCounts()) for row in chosen]
        return cls(
            *(sum(getattr(counts, field.name) for counts in found) for field in fields(cls)[:5]),
            sum(len(rollout.completion_ids[row]) for row in chosen),
            sum(sum(rollout.from_teacher[row]) for row in chosen),
        )

    def rates(self) -> dict[str, float]:
        """Fractions of 1 (0 where there is nothing to divide by).

        Returns:
            `acc_rate/mean` (of drafted tokens), `acc_rate/first_token` and `acc_rate/full_match` (of blocks), and
            `tokens/teacher_share` (of the finished text).
        """
        return {
            "acc_rate/mean": self.accepted / max(self.drafted, 1),
            "acc_rate/first_token": self.first_token_accepted / max(self.blocks, 1),
            "acc_rate/full_match": self.full_match / max(self.blocks, 1),
            "tokens/teacher_share": self.written_by_teacher / max(self.written, 1),
        }


def acceptance(
    student, teacher, prompt_ids: list[list[int]], teacher_prompt_ids: list[list[int]], **kwargs: Any
) -> dict[str, float]:
    """How much of the student's drafts the teacher accepts, which reads the knowledge.

    Args:
        student, teacher: causal language models.
        prompt_ids, teacher_prompt_ids: B lists of token ids: what the student sees, and what the teacher sees.
        **kwargs: as for [`skd_rollout`].

    Returns:
        As [`AcceptanceCounts.rates`].
    """
    return AcceptanceCounts.of(skd_rollout(student, teacher, prompt_ids, teacher_prompt_ids, **kwargs)).rates()

"""Chosen rows of a rollout, token by token: what the student drafted, and what both models thought of it.

Everything is computed where the logits are, a round at a time, and read once when the rollout has ended.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..rules.logits import probability, rank
from ..runners.numbers import Numbers


@dataclass(frozen=True)
class TokenTrace:
    """One row; every list has one entry for each committed token.

    Probabilities are at the temperatures of the rollout. An accepted draft is the committed token itself.

    Attributes:
        row: its number.
        draft: the student's token id, accepted or not.
        teacher_rank: of the draft, 0 for the teacher's favorite.
        draft_student_probability, draft_teacher_probability: what both models gave to the draft.
        student_probability, teacher_probability: what both gave to the committed token.
        divergence: KL(teacher || student) in nats at temperature 1, as in the default loss.

    Example:

    ```python
    >>> rollout = skd_rollout(student, teacher, prompt_ids, prompt_ids, max_new_tokens=4, trace_rows=[1])
    >>> trace = rollout.traces[0]
    >>> trace.row, len(trace.draft) == len(rollout.completion_ids[1])
    (1, True)
    ```
    """

    row: int
    draft: list[int]  # the student's token, accepted or not
    teacher_rank: list[int]  # of the draft, 0 for the teacher's favorite
    draft_student_probability: list[float]
    draft_teacher_probability: list[float]
    student_probability: list[float]  # of the committed token
    teacher_probability: list[float]
    divergence: list[float]  # KL(teacher || student) in nats at temperature 1, as in the default loss


class Tracer:
    """Keeps the traces of `rows` while the engine runs."""

    def __init__(self, rows, limit: int, student_temperature: float, teacher_temperature: float, device):
        self.rows = list(rows)
        self.place = {row: i for i, row in enumerate(self.rows)}
        self.temperatures = student_temperature, teacher_temperature
        self.seen = torch.zeros(len(self.rows), limit + 1, 7, dtype=torch.float64, device=device)  # last: discarded
        self.numbers = Numbers(len(self.rows), device)

    def slots(self, owner: list[int | None]) -> list[int]:
        """The slots that hold a traced row."""
        return [slot for slot, row in enumerate(owner) if row in self.place]

    def add(self, rows, columns, drafts, committed, student_logits, teacher_logits) -> None:
        """One round of R traced rows.

        Args:
            rows: R row numbers.
            columns: [R, Q] place of every token in its completion, -1 for one that is not committed.
            drafts, committed: [R, Q] token ids.
            student_logits, teacher_logits: [R, Q, V] float32, before temperature.
        """
        student, teacher = self.temperatures
        p, q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
        seen = torch.stack(
            [
                drafts,
                rank(teacher_logits, drafts),
                probability(student_logits, drafts, student),
                probability(teacher_logits, drafts, teacher),
                probability(student_logits, committed, student),
                probability(teacher_logits, committed, teacher),
                (p.exp() * (p - q)).masked_fill(p == -torch.inf, 0).sum(-1),
            ],
            -1,
        )
        index = self.numbers.of([self.place[row] for row in rows])
        self.seen[index[:, None], columns] = seen.double()

    def traces(self, lengths: list[int]) -> list[TokenTrace]:
        """The finished traces; `lengths`: committed tokens of every row of the rollout."""
        traces = []
        for row, seen in zip(self.rows, self.seen.cpu()):
            columns = seen[: lengths[row]].T
            draft, teacher_rank = columns[:2].long().tolist()
            traces.append(TokenTrace(row, draft, teacher_rank, *columns[2:].tolist()))
        return traces

"""The completions of a rollout while they are written, where the teacher is."""

from __future__ import annotations

import torch


class Completions:
    """Token ids, the writer of each, and what the teacher's lm_head read, for every row.

    tokens [rows, limit + 1] int64, by_teacher [rows, limit + 1] bool, hidden [rows, limit + 1, H] once there are
    hidden states; the last column takes discarded tokens.
    """

    def __init__(self, rows: int, limit: int, device: torch.device):
        self.tokens = torch.zeros(rows, limit + 1, dtype=torch.long, device=device)
        self.by_teacher = torch.zeros(rows, limit + 1, dtype=torch.bool, device=device)
        self.hidden: torch.Tensor | None = None

    def write(
        self,
        row: torch.Tensor,
        column: torch.Tensor,
        tokens: torch.Tensor,
        by_teacher: torch.Tensor | bool,
        hidden: torch.Tensor | None,
    ) -> None:
        """tokens, by_teacher [A, Q] and hidden [A, Q, H] or None go to `column` [A, Q] of each row in `row` [A]."""
        self.tokens[row[:, None], column] = tokens
        self.by_teacher[row[:, None], column] = by_teacher
        if hidden is None:
            return
        if self.hidden is None:
            shape = (*self.tokens.shape, hidden.shape[-1])
            self.hidden = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
        self.hidden[row[:, None].to(hidden.device), column.to(hidden.device)] = hidden

    def of_lengths(self, lengths: list[int]):
        """Returns of every row its token ids, the writers, and the hidden states (None where none were kept)."""
        tokens = [row[:n] for row, n in zip(self.tokens.tolist(), lengths)]
        by_teacher = [row[:n] for row, n in zip(self.by_teacher.tolist(), lengths)]
        hidden = None if self.hidden is None else [row[:n] for row, n in zip(self.hidden, lengths)]
        return tokens, by_teacher, hidden

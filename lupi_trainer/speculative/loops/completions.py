"""The completions of a rollout while they are written, where the teacher is."""

from __future__ import annotations

import torch


class Completions:
    """Token ids, the writer of each, what the teacher's lm_head read, and which were close calls, for every row.

    tokens [rows, limit + 1] int64, by_teacher [rows, limit + 1] bool, hidden [rows, limit + 1, H] once there are
    hidden states, close [rows, limit + 1] bool once somebody has looked; the last column takes discarded tokens.
    """

    def __init__(self, rows: int, limit: int, device: torch.device):
        self.tokens = torch.zeros(rows, limit + 1, dtype=torch.long, device=device)
        self.by_teacher = torch.zeros(rows, limit + 1, dtype=torch.bool, device=device)
        self.hidden: torch.Tensor | None = None
        self.close: torch.Tensor | None = None

    def write(
        self,
        row: torch.Tensor,
        column: torch.Tensor,
        tokens: torch.Tensor,
        by_teacher: torch.Tensor | bool,
        hidden: torch.Tensor | None,
        close: torch.Tensor | None,
    ) -> None:
        """tokens, by_teacher [A, Q], hidden [A, Q, H] or None and close [A, Q] or None go to `column` [A, Q].

        `row` [A]: the row of each.
        """
        self.tokens[row[:, None], column] = tokens
        self.by_teacher[row[:, None], column] = by_teacher
        if close is not None:
            if self.close is None:
                self.close = torch.zeros_like(self.by_teacher)
            self.close[row[:, None], column] = close
        if hidden is None:
            return
        if self.hidden is None:
            shape = (*self.tokens.shape, hidden.shape[-1])
            self.hidden = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
        self.hidden[row[:, None].to(hidden.device), column.to(hidden.device)] = hidden

    def of_lengths(self, lengths: list[int]):
        """Returns of every row its token ids, the writers, the hidden states and the close calls (None: not kept)."""
        tokens = [row[:n] for row, n in zip(self.tokens.tolist(), lengths)]
        by_teacher = [row[:n] for row, n in zip(self.by_teacher.tolist(), lengths)]
        hidden = None if self.hidden is None else [row[:n] for row, n in zip(self.hidden, lengths)]
        close = None if self.close is None else [row[:n] for row, n in zip(self.close.tolist(), lengths)]
        return tokens, by_teacher, hidden, close


def either(*marks: torch.Tensor | None) -> torch.Tensor | None:
    """Where any of the marks [A, Q] bool is set; None where all are None."""
    given = [mark for mark in marks if mark is not None]
    return torch.stack(given).any(0) if given else None

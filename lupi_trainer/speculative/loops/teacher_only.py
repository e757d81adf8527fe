"""A rollout of which nothing is drafted: the teacher writes every token, in blocks, and the student is not run."""

from __future__ import annotations

import torch

from ..rules.gamma import Fixed
from ..rules.logits import is_distribution
from .report import Report
from .skd import SKD


_BLOCK = 4  # tokens of every row between two questions which rows have ended


class TeacherOnly(SKD):
    """Speculative knowledge distillation under `AcceptNone`, where nobody looks at drafts."""

    drafts = False

    def _policy(self) -> Fixed:
        return Fixed(_BLOCK)

    def step(self, gamma: int):
        """The teacher writes `gamma` tokens of every row; a row ends, broken, where it has no distribution."""
        a, keep, temperature = self.slots.used, self.r.return_teacher_hidden, self.r.teacher_temperature
        n, row, running = self.slots.n[:a], self.slots.row[:a], ~self.slots.idle[:a]
        left, longest, first = self.limit - n, self.slots.longest(self.teacher), torch.zeros_like(n)
        token, keys, parts = self.pending[:a, 1:].contiguous(), self.keys[row], []
        for i in range(gamma):
            logits, hidden = self.teacher.read(token, n + i, longest + i, keep)
            drawn, close = self.teacher.draw(logits, first, temperature, keys, n + i, running)
            token = drawn[:, None]
            parts.append((token, is_distribution(logits), hidden, close))
        tokens, valid, hidden, close = zip(*parts)
        near = None if close[0] is None else torch.stack(close, 1)
        new, valid = torch.cat(tokens, 1), torch.cat(valid, 1)
        written = valid.long().cumprod(1).sum(1)
        ends, count, column = self.cut(new, torch.minimum(written, left) * running, n)
        self.completions.write(row, column, new, True, torch.cat(hidden, 1) if keep else None, near)
        broken = (written < left.clamp(max=gamma)) & ~ends & running
        self.pending[:a] = new[torch.arange(a, device=n.device), count - 1][:, None]
        self.slots.n[:a] += count
        report = Report(
            drafted=first,
            accepted=first,
            rejected=count > 0,
            committed=count,
            remaining=(left - count).masked_fill(ends | broken, 0),
            broken=2 * broken.long(),
            invalid=~valid.all(1),
        )
        return report, None

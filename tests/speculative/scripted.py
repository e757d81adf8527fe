"""Rollouts whose rows end where a script says."""

from contextlib import contextmanager
from dataclasses import replace

import torch

from lupi_trainer.speculative.loops.skd import SKD


@contextmanager
def scripted_lengths(lengths: list[int]):
    """Inside, row i ends after lengths[i] tokens (or up to a block later), as if it had written an eos."""
    original = SKD.commit

    def commit(rounds, *args):
        report, n = original(rounds, *args), rounds.slots.n[: rounds.slots.used]
        ends = torch.tensor([0 if row is None else lengths[row] for row in rounds.slots.owner], device=n.device)
        return replace(report, remaining=torch.minimum(report.remaining, (ends - n).clamp(min=0)))

    SKD.commit = commit
    try:
        yield
    finally:
        SKD.commit = original

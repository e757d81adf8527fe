"""Rollouts whose rows end where a script says."""

from contextlib import contextmanager

import torch

from lupi_trainer.speculative.loops.skd import Engine


@contextmanager
def scripted_lengths(lengths: list[int]):
    """Inside, row i ends after lengths[i] tokens (or up to a block later), as if it had written an eos."""
    original = Engine.commit

    def commit(engine, *args):
        report = original(engine, *args)
        ends = torch.tensor([0 if row is None else lengths[row] for row in engine.slots.owner], device=report.device)
        left = (ends - engine.slots.n[: engine.slots.used]).clamp(min=0)
        report[:, 3] = torch.minimum(report[:, 3], left)
        return report

    Engine.commit = commit
    try:
        yield
    finally:
        Engine.commit = original

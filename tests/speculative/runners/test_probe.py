"""What the engine finds of a model on a few tokens, and what it must not take for a fault."""

import pytest

from lupi_trainer.speculative.runners import support
from lupi_trainer.speculative.runners.probe import reading_fault
from tests.families.tiny import families, small, tiny


def deep(layers: int, seed: int):
    return tiny(small(families()["falcon_mamba"], num_hidden_layers=layers), seed).bfloat16()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.grid(2)
def test_the_rounding_of_many_layers_is_no_fault(seed):
    assert reading_fault(deep(96, seed)) is None


def test_a_scan_that_forgets_what_came_before_is_a_fault(monkeypatch):
    monkeypatch.setattr(support, "_SINGLY", set())
    assert "does not read its positions" in reading_fault(deep(4, seed=1))

"""Several teachers over several processes, which have different rows of each: the losses of one process."""

from functools import partial

import pytest

from tests.distributed.pair import run_pair
from tests.distributed.sharded import train


TEACHERS = {"base_teacher": "student", "max_steps": 2, "max_completion_length": 16}


@pytest.mark.distributed
@pytest.mark.parametrize("backend, lora", [("ddp", False), ("fsdp2", False), ("fsdp2", True)])
@pytest.mark.parametrize("changes", [{}, {"reuse_verification": False}, {"loss_weighting": "knowledge"}], ids=str)
@pytest.mark.slow
def test_two_processes_with_two_teachers_have_the_losses_of_one(tmp_path, backend, lora, changes):
    """A process that has no row of a teacher takes part in its forwards, where weights are sharded."""
    run, found = partial(train, lora=lora, **TEACHERS, **changes), []
    for kind, processes in (("none", 1), (backend, 2)):
        (folder := tmp_path / kind).mkdir()
        found.append(run_pair(folder, run, kind, str(folder), processes, processes=processes))
    (one,), (first, second) = found
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert first["drafted"] == one["drafted"] and first["lockstep"] == (backend == "fsdp2")
    assert len(set(one["losses"])) == 2 and one["of_teachers"]

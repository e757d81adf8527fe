"""The same losses, however the student's weights are shared out over processes."""

import pytest

from tests.distributed.pair import run_pair, server
from tests.distributed.sharded import train


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run of one process."""
    context, folder = server(), tmp_path_factory.mktemp("one")
    return run_pair(context, folder, train, "none", str(folder / "run"), 1, processes=1)[0]


BACKENDS = {
    "ddp": ("DDP", False),
    "fsdp2": ("FSDP2", True),
    "zero2": ("DeepSpeed ZeRO-2", False),
    "zero3": ("DeepSpeed ZeRO-3", False),
    "zero3-lockstep": ("DeepSpeed ZeRO-3", True),
}


@pytest.mark.distributed
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_have_the_losses_of_one(tmp_path, one, backend):
    if backend.startswith("zero"):
        pytest.importorskip("deepspeed")
    first, second = run_pair(server(), tmp_path, train, backend, str(tmp_path / "run"))
    assert (first["backend"], first["lockstep"]) == BACKENDS[backend]
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert len(set(first["losses"])) == 4 and max(one["lengths"]) > 10
    assert first["marks"] == second["marks"] == one["marks"]
    assert one["marks"]["eval_closed_book_strict"] > 0


@pytest.mark.distributed
def test_zero3_with_a_head_that_is_cut_and_not_the_embeddings(tmp_path):
    """Nothing but the loss reads such a head, so that nothing else gathers it."""
    pytest.importorskip("deepspeed")
    results = {}
    for backend, processes in (("none", 1), ("zero3", 2), ("zero3-lockstep", 2)):
        folder = tmp_path / backend
        folder.mkdir()
        results[backend] = run_pair(
            server(), folder, train, backend, str(folder / "run"), processes, True, processes=processes
        )
    (one,) = results.pop("none")
    assert len(set(one["losses"])) == 4
    for first, second in results.values():
        assert first["losses"] == second["losses"] == pytest.approx(one["losses"], abs=1e-5)

"""Weights that are shared out train on GPUs over NCCL as on the CPU over gloo: in as many processes as there are GPUs,
two at most; in one alone, where there is one."""

import shutil
from functools import partial

import pytest
import torch

from tests.distributed.pair import run_pair
from tests.distributed.sharded import train
from tests.distributed.test_sharded import BACKENDS, SAVED, assert_alike, saved


SPEAKS = {"cpu": "gloo", "cuda": "nccl"}


@pytest.mark.distributed
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "ddp"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.slow
def test_shards_have_the_losses_of_whole_weights_and_go_on_from_a_checkpoint(tmp_path, backend, device):
    if backend.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs what `make test-zero` sets up")
    processes = 1 if device == "cpu" else min(2, torch.cuda.device_count())  # two on the CPU: test_sharded.py
    run = partial(train, device=device, **SAVED)

    def start(name: str, backend: str, processes: int, folder: str | None = None, **changes) -> list[dict]:
        (own := tmp_path / name).mkdir()
        arguments = backend, str(tmp_path / (folder or name)), processes
        return run_pair(own, partial(run, **changes), *arguments, processes=processes, device=device)

    (whole,) = start("whole", "none", 1)
    shards = start("shards", backend, processes)
    for process in shards:
        assert (process["backend"], process["lockstep"]) == BACKENDS[backend]
        assert (process["device"], process["speaks"]) == (device, SPEAKS[device])
        assert process["losses"] == pytest.approx(whole["losses"], abs=1e-4 if device == "cuda" else 1e-5)
        assert process["marks"] == whole["marks"]
    assert len(set(whole["losses"])) == 4

    middle, end = (tmp_path / "shards" / "run" / f"checkpoint-{step}" for step in (2, 4))
    assert_alike(saved(end), saved(tmp_path / "whole" / "run" / "checkpoint-4"))
    shutil.rmtree(end)
    for before, after in zip(shards, start("again", backend, processes, folder="shards", resume=str(middle))):
        assert after["losses"] == pytest.approx(before["losses"][2:], abs=1e-6)
        assert after["drafted"] == before["drafted"][2:]

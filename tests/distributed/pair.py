"""Two processes on one machine: over gloo, or on GPUs over NCCL."""

import datetime
import gc
import os
import traceback
from pathlib import Path

import torch

from tests.forks import CONTEXT


def _member(function, folder: str, rank: int, processes: int, device: str, arguments: tuple) -> None:
    gc.freeze()  # as in conftest.py
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if device == "cuda":
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        {"cpu": "gloo", "cuda": "nccl"}[device],
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=processes,
        timeout=datetime.timedelta(seconds=90),  # one that waits for another that never comes
    )
    try:
        torch.save(function(rank, *arguments), f"{folder}/result-{rank}.pt")
    except BaseException:
        Path(folder, f"error-{rank}.txt").write_text(traceback.format_exc())
    # gloo's worker threads may still hold tensors: nothing is torn down
    os._exit(0)


def run_pair(folder: Path, function, *arguments, processes: int = 2, device: str = "cpu") -> list:
    """`[function(rank, *arguments) for each rank]`, run at the same time, each with `torch.distributed`, and on CUDA
    with a GPU of its own."""
    ranks = range(processes)
    members = [
        CONTEXT.Process(target=_member, args=(function, str(folder), rank, processes, device, arguments))
        for rank in ranks
    ]
    for member in members:
        member.start()
    for member in members:
        member.join(240)
        if member.exitcode is None:
            for other in members:
                other.kill()
    errors = [path.read_text() for path in sorted(folder.glob("error-*.txt"))]
    assert not errors, "\n".join(errors)
    assert not any(member.exitcode for member in members), "a process did not end"
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in ranks]

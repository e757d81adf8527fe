"""GPUs by name: memory, bandwidth and bfloat16 FLOP/s of their makers' data sheets, as of 2026-11-30."""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """One GPU.

    Attributes:
        name: what it is called here.
        memory: bytes that a process finds on it.
        bandwidth: bytes a second of its memory.
        flops: dense bfloat16 FLOP/s of its tensor cores, without sparsity.
    """

    name: str
    memory: int
    bandwidth: float
    flops: float


def _gpu(name: str, mib: int, terabytes: float, teraflops: float) -> GPU:
    return GPU(name, mib << 20, terabytes * 1e12, teraflops * 1e12)


# memory as nvidia-smi gives it; the rest from the data sheets
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("h100-80", 81559, 3.35, 989),
        _gpu("h100-pcie-80", 81559, 2.0, 756),
        _gpu("h200-141", 143771, 4.8, 989),
        _gpu("b200-180", 183359, 7.7, 2250),
        _gpu("a100-80", 81920, 2.039, 312),
        _gpu("a100-40", 40960, 1.555, 312),
        _gpu("l40s-48", 46068, 0.864, 362),
        _gpu("l4-24", 23034, 0.3, 121),
        _gpu("a10g-24", 23028, 0.6, 70),
        _gpu("rtx4090-24", 24564, 1.008, 165),
        _gpu("rtx3090-24", 24576, 0.936, 71),
        _gpu("rtx5090-32", 32607, 1.792, 209),
    )
}


def find_gpu(name: str) -> GPU:
    """The GPU of a name.

    Raises:
        ValueError: there is none; the message lists all.
    """
    if name not in GPUS:
        near = difflib.get_close_matches(name.lower(), GPUS, 1)
        meant = f"did you mean {near[0]}? There are" if near else "there are"
        raise ValueError(f"--gpu: no GPU {name!r}; {meant} {', '.join(GPUS)}")
    return GPUS[name]

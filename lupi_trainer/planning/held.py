"""What a step holds from its beginning to its end: weights, gradients, and what the optimizer has."""

from __future__ import annotations

import torch

from .run import Run


FLOAT32 = torch.float32.itemsize
_BUCKET = 500_000_000  # numbers that DeepSpeed reduces, or gathers, at once, unless told otherwise
_LIVE = 1_000_000_000  # numbers that ZeRO-3 gathers at most (its `stage3_max_live_parameters`)
# numbers that an optimizer keeps for each weight, and bytes of each (0: those of the weight)
_STATES = {"sgd": (0, 0), "adafactor": (0.01, 4), "lion": (1, 0), "rmsprop": (1, 0), "adagrad": (1, 0)}


def optimizer_state(name: str) -> tuple[float, int]:
    """(numbers kept for each weight, bytes of each; 0: as many as the weight has) of an optimizer of transformers.

    Adam keeps two (arXiv 1412.6980); in 8 bits, a byte each (arXiv 2110.02861).
    """
    numbers, width = next((value for start, value in _STATES.items() if name.startswith(start)), (2, 0))
    if "8bit" in name:
        width = 1
    return (0, 0) if "paged" in name else (numbers, width)


def student_weights(run: Run, phase: str) -> int:
    """Bytes of the student's weights on its device, an adapter's too, as they are in "rollout" or "training"."""
    model, shard = run.student, run.sharding
    held = model.held + model.adapter
    if shard.kind == "zero3":
        if phase == "rollout" and shard.gathers:
            return held
        return round(held / shard.processes) + min(held, _LIVE * model.itemsize)
    if shard.kind == "fsdp2":
        # float32 shards; in bfloat16 the layer that runs, the next one, and what lies outside of layers
        outside = model.head if model.read == model.weights else 2 * model.head
        layer = (model.weights - outside) // model.layers
        shards = FLOAT32 * model.weights // shard.processes
        return shards + torch.bfloat16.itemsize * (2 * layer + outside)
    return held


def trained_width(run: Run) -> int:
    """Bytes of a number of the weights that are trained, where the optimizer sees them."""
    return FLOAT32 if run.sharding.kind == "fsdp2" else run.student.trained_width


def master(run: Run) -> int:
    """Bytes of float32 copies of trained weights, which DeepSpeed keeps of bfloat16 ones."""
    if not run.sharding.kind.startswith("zero") or run.student.trained_width == FLOAT32:
        return 0
    return run.sharding.share(run.student.trained * FLOAT32, "zero1", "zero2", "zero3")


def optimizer(run: Run) -> int:
    """Bytes of the optimizer's states, which stay through the rollout."""
    numbers, width = optimizer_state(run.optimizer)
    width = width or (FLOAT32 if run.sharding.kind.startswith("zero") else trained_width(run))
    return run.sharding.share(run.student.trained * numbers * width, "zero1", "zero2", "zero3", "fsdp2")


def gradients(run: Run) -> int:
    """Bytes of all gradients."""
    return run.sharding.share(run.student.trained * trained_width(run), "zero2", "zero3", "fsdp2")


def buckets(run: Run) -> int:
    """Bytes of what gradients are sent in: of DDP a copy of all, of DeepSpeed one bucket."""
    size = run.student.trained * run.student.trained_width
    if run.sharding.kind.startswith("zero"):
        return min(size, _BUCKET * run.student.trained_width)
    return size if run.sharding.processes > 1 and not run.sharding.kind else 0


def step_work(run: Run) -> int:
    """Bytes that an optimizer's step takes besides: one that is not fused makes a list of intermediate numbers."""
    if "fused" in run.optimizer or "8bit" in run.optimizer or not optimizer_state(run.optimizer)[0]:
        return 0
    return gradients(run)

"""Where weights are: which backend shards the student's, and when an offloaded teacher is on its device."""

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager

import torch

from ..speculative.runners.private import packed_types


logger = logging.getLogger(__name__)


def backend_name(dist, accelerator) -> str:
    """What shards the student's weights, as it is and not as it was asked for.

    Accelerate turns FSDP into DDP where it has no accelerator, without a word: that is said here.
    """
    if dist.zero_stage:
        name = f"DeepSpeed ZeRO-{dist.zero_stage}"
    elif dist.is_fsdp:
        name = f"FSDP{dist.fsdp_version}"
    else:
        name = "DDP" if accelerator.num_processes > 1 else "one process"
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and not dist.is_fsdp:
        logger.warning(f"FSDP was asked for, but this is {name}: accelerate has FSDP for GPUs only")
    if accelerator.is_main_process:
        logger.info(f"{accelerator.num_processes} processes: {name}")
    return name


def emulates(dtype: torch.dtype | str | None, device: torch.device) -> bool:
    """Whether a type of weights is one that this processor has no instructions for, so that products take long."""
    return device.type == "cpu" and str(dtype).endswith("bfloat16") and torch.bfloat16 not in packed_types()


def warn_of_emulation(model: torch.nn.Module, device: torch.device) -> None:
    """Say where a student computes in bfloat16 on a CPU that cannot."""
    if any(emulates(weight.dtype, device) for weight in model.parameters()):
        logger.warning(
            "the student's weights are bfloat16, for which this processor has no instructions: in float32 "
            "(`dtype: float32`) it takes a fraction of the time, and twice the memory"
        )


class Offloaded:
    """A frozen model that is kept in the CPU's memory, and copied to a device for as long as it works there.

    The weights in main memory are the model's one and only: pinned where there is CUDA, so that they are read at the
    speed of the bus, and never written. A copy on a device is dropped after its work, not copied back.

    Args:
        model: moved here by its construction, wherever it is.
    """

    def __init__(self, model: torch.nn.Module):
        pinned = torch.cuda.is_available()
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        for tensor in (*model.parameters(), *model.buffers()):
            home = tensor.detach().cpu()
            self.kept.append((tensor, home.pin_memory() if pinned else home))
        self._drop()

    def _drop(self) -> None:
        for tensor, home in self.kept:
            tensor.data = home

    @contextmanager
    def on(self, device: torch.device) -> Generator[None]:
        """Inside, the model is on `device`."""
        try:
            for tensor, home in self.kept:
                tensor.data = home if device == home.device else home.to(device, non_blocking=True, copy=True)
            yield
        finally:
            self._drop()

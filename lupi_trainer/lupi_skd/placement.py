"""Where weights are: which backend shards the student's, and when an offloaded teacher is on its device."""

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager

import torch


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


@contextmanager
def on_device(model: torch.nn.Module, device: torch.device) -> Generator[None]:
    """Inside, an offloaded `model` is on `device`; it is moved there from the CPU's memory, and back afterwards."""
    model.to(device)
    try:
        yield
    finally:
        model.to("cpu")

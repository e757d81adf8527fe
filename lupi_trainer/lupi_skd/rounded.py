"""A float32 student that computes in bfloat16 writes with a bfloat16 copy of its weights.

In mixed precision every forward casts all weights, of which a rollout has hundreds for a few tokens each, and kernels
that take bfloat16 alone are lost. For the length of a rollout the student has the weights that it would have if it
were saved and loaded in bfloat16: the text is that student's, and training goes on with its float32 weights.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import DistributedType, is_peft_model
from torch import nn

from ..models.private import has_hook, without_mixed_precision


logger = logging.getLogger(__name__)


def writes_rounded(model: Any, accelerator: Any) -> bool:
    """Whether a student's rollouts are to be written with a bfloat16 copy of its weights.

    That is a float32 student in mixed precision (`bf16: true`) whose weights are neither sharded nor moved by
    accelerate. With an adapter it is not: its few weights are cast beside frozen ones, and if these are float32, a
    warning says how they had better be loaded.

    Args:
        model: the student, unwrapped.
        accelerator: of the run.
    """
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if accelerator.mixed_precision != "bf16" or sharded:
        return False
    frozen = [p for p in model.parameters() if p.dtype == torch.float32 and not p.requires_grad]
    if is_peft_model(model):
        if frozen:
            logger.warning(
                "the frozen weights of the student are float32, and cast to bfloat16 for every token of a rollout: "
                "load them in bfloat16 (`dtype: bfloat16`); its adapter stays float32"
            )
        return False
    return not any(has_hook(module) for module in model.modules())


@contextmanager
def rounded_weights(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> Generator[None]:
    """Inside, the model's float32 weights are rounded to `dtype`, and no mixed precision is around its forward.

    Other parameters take their places, tied ones one place; the model's own, on which optimizers and DDP have their
    hands, are not touched, and come back however the context is left. (`weight.data` of another type would make
    autograd forget the accumulator that DDP listens to, and its processes would part.) Buffers stay as they are.
    """
    copies: dict[nn.Parameter, nn.Parameter] = {}
    places: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if weight.dtype == torch.float32:
                    if weight not in copies:
                        copies[weight] = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
                    places.append((module, name, weight))
                    setattr(module, name, copies[weight])
        with without_mixed_precision(model):
            yield
    finally:
        for module, name, weight in places:
            setattr(module, name, weight)

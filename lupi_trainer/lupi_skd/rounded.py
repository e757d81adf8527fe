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
from ..speculative.runners.kept import KeptRunners


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
def rounded_weights(
    model: nn.Module, copies: dict[nn.Parameter, nn.Parameter] | None = None, dtype: torch.dtype = torch.bfloat16
) -> Generator[None]:
    """Inside, the model's float32 weights are rounded to `dtype`, and no mixed precision is around its forward.

    Other parameters take their places, tied ones one place; the model's own, on which optimizers and DDP have their
    hands, are not touched, and come back however the context is left. (`weight.data` of another type would make
    autograd forget the accumulator that DDP listens to, and its processes would part.) Buffers stay as they are.

    Args:
        model: unwrapped.
        copies: of an earlier rollout, which are written anew where they are; those that are made are left in it.
        dtype: of the copies.
    """
    copies = {} if copies is None else copies
    fresh: set[nn.Parameter] = set()
    places: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if weight.dtype == torch.float32:
                    if weight not in copies:
                        copies[weight] = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
                    elif weight not in fresh:
                        copies[weight].copy_(weight.detach())
                    fresh.add(weight)
                    places.append((module, name, weight))
                    setattr(module, name, copies[weight])
        with without_mixed_precision(model):
            yield
    finally:
        for module, name, weight in places:
            setattr(module, name, weight)


class Rounded:
    """The student of a run as it writes: rounded, with copies that stay where recorded graphs read them.

    Args:
        graphs: what recorded rollouts leave for the next; where they leave nothing, no copy is kept either.
    """

    def __init__(self, graphs: KeptRunners | None):
        self.graphs = graphs
        self.copies: dict[nn.Parameter, nn.Parameter] = {}

    @contextmanager
    def within(self, model: nn.Module) -> Generator[None]:
        """Inside, `model`, unwrapped, is the rounded student."""
        try:
            with rounded_weights(model, self.copies):
                yield
        finally:
            if not self.graphs:
                self.copies.clear()

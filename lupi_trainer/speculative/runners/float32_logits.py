"""Logits of models in half precision, rounded no more than they must be: the lm_head's product in float32, on a GPU.

A lm_head in bfloat16 adds its products up in float32 and then rounds the sum to 8 bits: logits between 16 and 32 lie
0.125 apart, so that ties are common where none is. The sum is there already, and costs twice its bytes to keep.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

from .support import base_model


def _has_float32_product(layer) -> bool:
    """Whether it is a plain layer in half precision on a GPU, whose forward nothing else has replaced."""
    if type(layer) is not nn.Linear or "forward" in vars(layer) or torch.is_autocast_enabled("cuda"):
        return False
    weight = layer.weight
    sharded = hasattr(weight, "placements") or hasattr(weight, "ds_id")  # by FSDP2, by DeepSpeed
    return weight.device.type == "cuda" and weight.dtype in (torch.bfloat16, torch.float16) and not sharded


@contextmanager
def float32_logits(*models) -> Generator[None]:
    """Inside, the lm_heads of models in half precision on a GPU return float32, as they have added it up.

    Others are left alone: in mixed precision, quantized, sharded, with an adapter of their own, or on a CPU, whose
    products have no such result.
    """
    heads = {id(head): head for model in models if (head := base_model(model).get_output_embeddings()) is not None}
    changed = [head for head in heads.values() if _has_float32_product(head)]

    def forward_of(head: nn.Linear):
        def forward(states: torch.Tensor) -> torch.Tensor:
            rows = states.reshape(-1, states.shape[-1])
            logits = torch.mm(rows, head.weight.t(), out_dtype=torch.float32)
            if head.bias is not None:
                logits += head.bias
            return logits.view(*states.shape[:-1], -1)

        return forward

    for head in changed:
        head.forward = forward_of(head)
    try:
        yield
    finally:
        for head in changed:
            vars(head).pop("forward", None)

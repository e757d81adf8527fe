"""What turns hidden states into logits, and how each model family scales them."""

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


def logit_scale(config) -> float:
    """The factor between `lm_head` output and logits, under the name that the model family gives it (1 if none)."""
    config = config.get_text_config()
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return scaling if config.model_type == "hyperclovax" else 1 / scaling


def logit_cap(config) -> float | None:
    """What logits are capped at (`cap * tanh(raw / cap)`), under the name of the model family; None: nothing."""
    config = config.get_text_config()
    names = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    return next((cap for name in names if (cap := getattr(config, name, None)) is not None), None)


def gathered_for_training(model: Any, *parameters: nn.Parameter | None) -> AbstractContextManager:
    """Inside, parameters that DeepSpeed ZeRO-3 shards are gathered, to be trained; others are left alone.

    Every process must enter it, in the forward of `model`. A slice that is taken of a parameter inside stays valid
    afterwards; `model` gathers the parameter again in its backward, where its gradient needs all of it.
    """
    sharded: list[Any] = [p for p in parameters if hasattr(p, "ds_id")]
    if not sharded:
        return nullcontext()
    from deepspeed import zero

    for parameter in sharded:
        zero.register_external_parameter(model, parameter)
    return gathered_for_reading(sharded)


def gathered_for_reading(parameters: Iterable[Any]) -> AbstractContextManager:
    """Inside, parameters that DeepSpeed ZeRO-3 shards are gathered, to be read; every process must enter it."""
    # a module that reads one may have gathered it already
    sharded = [p for p in parameters if hasattr(p, "ds_id") and p.ds_status.name != "AVAILABLE"]
    if not sharded:
        return nullcontext()
    from deepspeed import zero

    return zero.GatheredParameters(sharded)


def loss_dtype(states: torch.Tensor) -> torch.dtype:
    """What a chunked loss multiplies in: the states' dtype, or autocast's.

    In place of float16 it is float32: the gradients are made in the forward, which no loss scaler reaches.
    """
    device = states.device.type
    if not torch.is_autocast_enabled(device):
        return states.dtype
    dtype = torch.get_autocast_dtype(device)
    return torch.float32 if dtype == torch.float16 else dtype


class Head:
    """The `lm_head` of a model, cut to a shared vocabulary and brought to a device.

    Under ZeRO-3 it is gathered once, and kept for as long as the head or its gradient needs it.

    Raises:
        ValueError: the head has no dense weight (it is quantized or wrapped by an adapter).
    """

    def __init__(self, model: Any, vocab_size: int, device: torch.device | None = None):
        head = model.get_output_embeddings()
        if hasattr(head, "base_layer"):  # PEFT's: its weight is that of the layer below the adapter
            raise ValueError(
                f"an adapter on the lm_head of {type(model).__name__} is not supported, since its weight is read "
                "without it: leave it out of `target_modules`"
            )
        weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
        with gathered_for_training(model, weight, bias):
            if weight is None or weight.dim() != 2 or not weight.is_floating_point():
                raise ValueError(
                    f"the lm_head of {type(model).__name__} has no dense weight ({type(head).__name__}): keep it out "
                    "of quantization and adapters"
                )
            device = device or weight.device
            self.weight = weight[:vocab_size].to(device)
            self.bias = None if bias is None else bias[:vocab_size].to(device)
        self.scale = logit_scale(model.config)
        self.softcap = logit_cap(model.config)

    def cast(self, dtype: torch.dtype) -> "Head":
        """The same head with its weight in another type."""
        head = copy.copy(self)
        head.weight = self.weight.to(dtype)
        return head

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [N, V], in float32 at least, of states [N, H]; scaled and capped as the model's own forward does."""
        logits = states @ self.weight.t()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.bias is not None:
            logits += self.bias
        if self.scale != 1.0:
            logits *= self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def slope(self, logits: torch.Tensor) -> torch.Tensor | float | None:
        """The derivative of these logits with respect to what they were before scale and cap; `None`: 1 everywhere."""
        scale = None if self.scale == 1.0 else self.scale
        if self.softcap is None:
            return scale
        slope = 1 - (logits / self.softcap).square_()  # logits = cap * tanh(raw / cap)
        return slope if scale is None else slope.mul_(scale)

"""Linear layers whose weights lie as the processor wants them, while a compiled rollout runs on CPUs.

A round multiplies few rows with all the weights. On CPUs the library that torch calls for it lays the weights out anew
in every call, which for so few rows costs as much as the product. oneDNN can keep that layout: products of 8 to 40
rows take half the time or less, prompts four fifths. The price is a second copy of the weights while it lasts, made
anew for each rollout, since a student's weights change between two.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import nn
from torch.nn.functional import linear

from .models import base_model


_packs: dict[int, torch.Tensor] = {}  # where a weight lies -> the weight as oneDNN wants it

torch.library.define("lupi_trainer::packed_linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


@torch.library.impl("lupi_trainer::packed_linear", "CPU")
def _packed_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    pack = _packs.get(weight.data_ptr())
    if pack is None or x.dtype != weight.dtype:
        return linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, pack, bias, "none", [], "")


@torch.library.register_fake("lupi_trainer::packed_linear")
def _shape(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _forward(self, input: torch.Tensor) -> torch.Tensor:
    return torch.ops.lupi_trainer.packed_linear(input, self.weight, self.bias)


def _can_pack(module: nn.Module) -> bool:
    """Whether it is a plain layer of float32 on a CPU, whose forward nobody else has replaced."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    plain = type(weight) in (torch.Tensor, nn.Parameter) and weight.is_contiguous() and weight.numel() > 0
    return plain and weight.device.type == "cpu" and weight.dtype == torch.float32


@contextmanager
def packed_weights(*models) -> Iterator[None]:
    """Inside, without gradients, linear layers of float32 on CPUs multiply with packed copies of their weights.

    Results differ from the layers' own by rounding. Layers of any other kind are left alone, and so is all under
    autocast or where torch comes without oneDNN.
    """
    able = torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu")
    modules = {id(m): m for model in models for m in base_model(model).modules()} if able else {}
    chosen = [module for module in modules.values() if _can_pack(module)]
    new = {module.weight.data_ptr(): module.weight for module in chosen}
    new = {place: weight for place, weight in new.items() if place not in _packs}
    try:
        with torch.no_grad():
            for place, weight in new.items():
                _packs[place] = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        for module in chosen:
            module.forward = MethodType(_forward, module)
        yield
    finally:
        for module in chosen:
            vars(module).pop("forward", None)
        for place in new:
            _packs.pop(place, None)

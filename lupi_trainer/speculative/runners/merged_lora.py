"""LoRA's product added to the weights that a rollout packs, so that a student with an adapter drafts like one without.

For a few rows, what LoRA adds to a layer (two small products, two casts, a factor, a sum) takes longer than the layer
itself. Beside the packed weight W lies W + s B A, added in float32 and packed in W's own type, for as long as the
rollout lasts; with the adapter switched off, as the student's own teacher has it, the layer multiplies with W.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn

from .private import pack_weight


Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def is_plain_lora(module: nn.Module) -> bool:
    """Whether it is LoRA around a linear layer as in the paper: no DoRA or other variant, no forward of its own."""
    kind = type(module)
    plain = kind.__name__ == "Linear" and kind.__module__ == "peft.tuners.lora.layer" and "forward" not in vars(module)
    return plain and not module.lora_variant


def _active(module: Any) -> list[str]:
    return [name for name in module.active_adapters if name in module.lora_A]


def _can_merge(module: Any, packed: Collection[int]) -> bool:
    """`packed`: the ids of the layers that are packed."""
    if not is_plain_lora(module) or module.merged or module.disable_adapters or id(module.base_layer) not in packed:
        return False
    names = _active(module)
    return bool(names) and all(module.lora_B[name].bias is None for name in names)


@dataclass
class _Use:
    """A rollout in which layers are merged: what it has left behind when it was interrupted has no effect."""

    product: Product
    active: bool = True


@dataclass
class _Merged:
    use: _Use
    packed: torch.Tensor


def _forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    merged: _Merged = self.merged_lora
    other = self.disable_adapters or args or kwargs or x.dtype != merged.packed.dtype
    if other or not merged.use.active:
        return type(self).forward(self, x, *args, **kwargs)
    return merged.use.product(x, merged.packed, self.base_layer.bias)


def _merge(module: Any, use: _Use) -> None:
    base = module.base_layer.weight
    weight = base.to(torch.promote_types(base.dtype, torch.float32), copy=True)
    for name in _active(module):
        weight += module.get_delta_weight(name).to(weight)
    vars(module)["merged_lora"] = _Merged(use, pack_weight(weight.to(base.dtype)))
    module.forward = MethodType(_forward, module)


def _release(module: nn.Module) -> None:
    vars(module).pop("forward", None)
    vars(module).pop("merged_lora", None)


def release_left_behind(modules: Iterable[nn.Module]) -> None:
    """Take off what an interrupted rollout has not."""
    for module in modules:
        merged = vars(module).get("merged_lora")
        if merged is not None and not merged.use.active:
            _release(module)


@contextmanager
def merged_lora(modules: Iterable[nn.Module], packed: Collection[int], product: Product) -> Generator[None]:
    """Inside, layers with LoRA multiply with merged weights.

    Args:
        modules: those of the models, whose layers have their own weights still.
        packed: the ids of the layers whose weights are packed meanwhile; LoRA around others is left alone.
        product: (x, packed weight, bias) -> what a layer returns.
    """
    use, held = _Use(product), []
    try:
        with torch.no_grad():
            for module in modules:
                if _can_merge(module, packed):
                    held.append(module)
                    _merge(module, use)
        yield
    finally:
        use.active = False
        for module in held:
            _release(module)

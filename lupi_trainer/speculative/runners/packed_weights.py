"""Linear layers whose weights lie as the processor wants them, while a rollout runs on CPUs.

A round multiplies few rows with all the weights. On CPUs the library that torch calls for it lays the weights out anew
in every call, which for so few rows costs as much as the product. oneDNN can keep that layout: products of 8 to 40
rows take half the time or less, prompts four fifths. A weight changes places with its packed copy, layer by layer, so
that few layers at a time are there twice (of a file that is mapped into memory, the system takes back what it needs),
and comes back bit for bit. Who reads it meanwhile reads NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import nn
from torch.nn.functional import linear

from ...models.private import has_mixed_precision
from .private import pack_weight, packed_product
from .support import base_model


_SMALLEST = 1 << 17  # numbers in a weight; below, the call costs more than the layout

_packs: dict[int, torch.Tensor] = {}  # where a weight's stand-in lies -> the weight as oneDNN wants it

torch.library.define("lupi_trainer::packed_linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


def _packed_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    pack = _packs[weight.data_ptr()]
    if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return linear(x, pack.to_dense(), bias)
    return packed_product(x, pack, bias)


torch.library.impl("lupi_trainer::packed_linear", "CPU")(_packed_linear)


@torch.library.register_fake("lupi_trainer::packed_linear")
def _shape(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _forward(self, input: torch.Tensor) -> torch.Tensor:
    if torch.compiler.is_compiling():
        return torch.ops.lupi_trainer.packed_linear(input, self.weight, self.bias)
    return _packed_linear(input, self.weight, self.bias)


class _Packed:
    """A weight and the layers that multiply with it."""

    def __init__(self, weight: nn.Parameter, layers: list[nn.Linear]):
        self.weight, self.layers = weight, layers
        self.pack = pack_weight(weight.detach())
        self.stand_in = torch.full((1,), torch.nan).expand(weight.shape)
        # what else lies in this storage (an optimizer's view, a head that was cut) finds it again afterwards
        self.whole, self.storage = weight.data, weight.untyped_storage()
        self.bytes, self.emptied = self.storage.nbytes(), False

    def swap(self) -> None:
        _packs[self.stand_in.data_ptr()] = self.pack
        for layer in self.layers:
            layer.forward = MethodType(_forward, layer)
        self.weight.data = self.stand_in
        if self.storage.resizable():
            self.emptied = True
            self.storage.resize_(0)

    def swap_back(self) -> None:
        """Undoes `swap`, however far it has come; may be called again."""
        if self.emptied:
            numbers = self.pack.to_dense()
            self.storage.resize_(self.bytes)
            self.whole.copy_(numbers)
            self.emptied = False
        self.weight.data = self.whole
        for layer in self.layers:
            vars(layer).pop("forward", None)
        _packs.pop(self.stand_in.data_ptr(), None)


def _can_pack(module: nn.Module) -> bool:
    """Whether it is a plain layer of float32 on a CPU, whose forward nobody else has replaced."""
    if type(module) is not nn.Linear or "forward" in vars(module) or type(module.weight) is not nn.Parameter:
        return False
    weight = module.weight
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and not weight.is_inference()
    alone = plain and weight.is_contiguous() and weight.untyped_storage().nbytes() == 4 * weight.numel()
    return alone and weight.numel() >= _SMALLEST


def _reads_weights(module: nn.Module) -> bool:
    """Whether it wraps a layer, as PEFT's do, and may read its weight in a forward: all do but plain LoRA's."""
    if not isinstance(getattr(module, "base_layer", None), nn.Module):
        return False
    kind = type(module)
    plain = kind.__name__ == "Linear" and kind.__module__ == "peft.tuners.lora.layer" and "forward" not in vars(module)
    return not plain or bool(module.lora_variant)


def _chosen(models) -> dict[nn.Parameter, list[nn.Linear]]:
    """The weights to pack: those that nothing but such layers holds (a tied embedding reads its weight otherwise)."""
    modules = {id(m): m for model in models for m in base_model(model).modules()}.values()
    read = {id(inner) for module in modules if _reads_weights(module) for inner in module.modules()}
    layers: dict[nn.Parameter, list[nn.Linear]] = {}
    for module in modules:
        if _can_pack(module) and id(module) not in read:
            layers.setdefault(module.weight, []).append(module)
    for module in modules:
        for weight in module.parameters(recurse=False):
            if weight in layers and module not in layers[weight]:
                layers.pop(weight)
    return layers


def _put_back(packed: list[_Packed]) -> None:
    """Puts all weights back, and only then lets the first interruption or error through."""
    first = None
    for _ in range(3 * len(packed)):
        if not packed:
            break
        try:
            packed[-1].swap_back()
            packed.pop()
        except BaseException as error:
            first = first or error
            packed.reverse()  # the others give memory back
    if first is not None:
        raise first


@contextmanager
def packed_weights(*models) -> Iterator[None]:
    """Inside, without gradients, larger linear layers of float32 on CPUs multiply with packed weights.

    Results differ from the layers' own by rounding. Layers of any other kind are left alone, and so is all under
    autocast or where torch comes without oneDNN.
    """
    mixed = torch.is_autocast_enabled("cpu") or any(map(has_mixed_precision, models))
    able = torch.backends.mkldnn.is_available() and not mixed
    packed: list[_Packed] = []
    try:
        with torch.no_grad():
            for weight, layers in (_chosen(models) if able else {}).items():
                packed.append(_Packed(weight, layers))
                packed[-1].swap()
        yield
    finally:
        with torch.no_grad():
            _put_back(packed)

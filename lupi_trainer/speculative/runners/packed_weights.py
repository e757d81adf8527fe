"""Linear layers whose weights lie as the processor wants them, while a rollout runs on CPUs.

A round multiplies few rows with all the weights. On CPUs the library that torch calls for it lays the weights out anew
in every call, which for so few rows costs as much as the product. oneDNN can keep that layout: products of 8 to 40
rows take half the time or less, prompts four fifths. A weight changes places with its packed copy, layer by layer, so
that few layers at a time are there twice (of a file that is mapped into memory, the system takes back what it needs),
and comes back bit for bit. Whatever reads it meanwhile reads NaN.

All of this is kept by the layers themselves and by the `_PackedWeight` that each of them points to, for as long as
the context manager lasts; nothing is kept in this module.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Literal, TypeGuard

import torch
from torch import nn
from torch.nn.functional import linear

from ...models.private import has_mixed_precision
from .merged_lora import is_plain_lora, merged_lora, release_left_behind
from .private import pack_weight, packed_product, packed_types
from .support import base_model


PackWeights = bool | Literal["auto"]
SETTINGS: tuple[PackWeights, ...] = ("auto", True, False)

_SMALLEST = 1 << 17  # numbers in a weight; below, the call costs more than the layout
_ATTEMPTS = 3  # at putting a weight back, when interrupted

torch.library.define("lupi_trainer::packed_linear", "(Tensor x, Tensor packed, Tensor? bias) -> Tensor")


def _packed_linear(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if x.dtype != packed.dtype or torch.is_autocast_enabled("cpu"):
        return linear(x, packed.to_dense(), bias)
    return packed_product(x, packed, bias)


torch.library.impl("lupi_trainer::packed_linear", "MkldnnCPU", _packed_linear)


@torch.library.register_fake("lupi_trainer::packed_linear")
def _shape(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], packed.shape[0])


def _product(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if torch.compiler.is_compiling():
        return torch.ops.lupi_trainer.packed_linear(x, packed, bias)
    return _packed_linear(x, packed, bias)


def _forward(self, input: torch.Tensor) -> torch.Tensor:
    return _product(input, self.packed_weight.packed, self.bias)


class _PackedWeight:
    """A weight, the layers that multiply with it, and the uses (`packed_weights`) that want it packed."""

    def __init__(self, weight: torch.Tensor, layers: list[nn.Linear]):
        self.weight, self.layers = weight, layers
        self.uses: set[object] = set()
        self.thread = threading.get_ident()
        self.packed: torch.Tensor | None = None
        self.emptied = False

    def pack(self, use: object) -> None:
        for layer in self.layers:
            # one step for the interpreter: of two threads that arrive at the same time, one is refused
            _require_own_thread(vars(layer).setdefault("packed_weight", self))
        self.uses.add(use)
        # whatever else lies in this storage (an optimizer's view, a head that was cut) finds it again afterwards
        self.dense, self.storage = self.weight.data, self.weight.untyped_storage()
        self.bytes = self.storage.nbytes()
        self.packed = pack_weight(self.dense)
        for layer in self.layers:
            layer.forward = MethodType(_forward, layer)
        self.weight.data = torch.full((1,), torch.nan, dtype=self.dense.dtype).expand(self.dense.shape)
        if self.storage.resizable():
            self.emptied = True
            self.storage.resize_(0)

    def release(self, use: object) -> None:
        """Undoes `pack`, however far it has come, once no use is left; may be called again."""
        self.uses.discard(use)
        if self.uses:
            return
        if self.packed is not None:
            if self.emptied:
                numbers = self.packed.to_dense()
                self.storage.resize_(self.bytes)
                self.dense.copy_(numbers)
                self.emptied = False
            self.weight.data = self.dense
        for layer in self.layers:
            if vars(layer).get("packed_weight") is self:
                vars(layer).pop("forward", None)
                vars(layer).pop("packed_weight")
        self.packed = None


def _require_own_thread(packed: _PackedWeight) -> None:
    if packed.thread != threading.get_ident():
        raise RuntimeError(
            "a rollout in another thread has packed this model's weights: give each thread a model of its own"
        )


def pack_setting(value: PackWeights | str) -> PackWeights:
    """Returns "auto", True or False, also of their text in a command or a recipe; raises ValueError for all else."""
    texts = [str(setting).lower() for setting in SETTINGS]
    for setting, text in zip(SETTINGS, texts):
        if value is setting or (isinstance(value, str) and value.lower() == text):
            return setting
    raise ValueError(f"pack_weights must be one of {', '.join(texts)}, got {value!r}")


def _is_mixed(model) -> bool:
    """Whether a model multiplies in another precision than its weights have, by torch's or accelerate's autocast."""
    return torch.is_autocast_enabled("cpu") or has_mixed_precision(model)


def _can_pack(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a plain layer on a CPU, of a type that can be packed, whose forward nothing else has replaced."""
    if type(module) is not nn.Linear or "forward" in vars(module) or type(module.weight) is not nn.Parameter:
        return False
    weight = module.weight
    plain = weight.device.type == "cpu" and weight.dtype in packed_types() and not weight.is_inference()
    alone = (
        plain
        and weight.is_contiguous()
        and weight.untyped_storage().nbytes() == weight.element_size() * weight.numel()
    )
    return alone and weight.numel() >= _SMALLEST


def _reads_weights(module: nn.Module) -> bool:
    """Whether it wraps a layer, as PEFT's do, and may read its weight in a forward: all do but plain LoRA's."""
    if not isinstance(getattr(module, "base_layer", None), nn.Module):
        return False
    return not is_plain_lora(module)


def _modules(models: Iterable[nn.Module]) -> list[nn.Module]:
    return list({id(m): m for model in models for m in base_model(model).modules()}.values())


def _enclosing(modules: list[nn.Module]) -> list[_PackedWeight]:
    """What another use, which has not ended yet, has packed of these modules."""
    found = (vars(module).get("packed_weight") for module in modules)
    return list({id(packed): packed for packed in found if packed is not None}.values())


def _chosen(modules: list[nn.Module]) -> dict[torch.Tensor, list[nn.Linear]]:
    """The weights to pack: those that nothing but such layers holds (a tied embedding reads its weight otherwise)."""
    read = {id(inner) for module in modules if _reads_weights(module) for inner in module.modules()}
    layers: dict[torch.Tensor, list[nn.Linear]] = {}
    for module in modules:
        if _can_pack(module) and id(module) not in read:
            layers.setdefault(module.weight, []).append(module)
    for module in modules:
        for weight in module.parameters(recurse=False):
            if weight in layers and module not in layers[weight]:
                layers.pop(weight)
    return layers


def _reason(model) -> str:
    """Why nothing of a model can be packed."""
    weights = list(base_model(model).parameters())
    devices, types = ({str(getattr(w, name)) for w in weights} for name in ("device", "dtype"))
    if not torch.backends.mkldnn.is_available():
        return "this torch comes without oneDNN"
    if "cpu" not in devices:
        return f"its weights are on {' and '.join(sorted(devices))}, and only a CPU multiplies with packed ones"
    if _is_mixed(model):
        return "it runs in mixed precision, in which packed weights are not used"
    packable = {str(dtype) for dtype in packed_types()}
    if not types & packable:
        return f"its weights are {' and '.join(sorted(types))}, and packed ones are {' or '.join(sorted(packable))}"
    return f"it has no linear layer of {_SMALLEST} numbers or more that is nn.Linear's own and alone holds its weight"


def _release(held: list[_PackedWeight], use: object) -> None:
    """Puts all weights back, and only then lets the first interruption or error through."""
    first = None
    held.reverse()
    for _ in range(_ATTEMPTS):
        failed = []
        while held:
            try:
                held[-1].release(use)
                held.pop()
            except BaseException as error:  # an interruption, too, must wait until the others are back
                first = first or error
                failed.append(held.pop())  # the others give memory back
        held.extend(failed)
    if first is not None:
        raise first


@contextmanager
def packed_weights(models: Mapping[str, nn.Module], setting: PackWeights | str = "auto") -> Generator[None]:
    """Inside, without gradients, larger linear layers on CPUs multiply with packed weights: those of float32, and of
    bfloat16 where the processor multiplies in it. To those of a layer with LoRA its product is added (`merged_lora`).

    Results differ from the layers' own by rounding. The weights come back bit for bit, however the context is left,
    be it half-way through packing. In a use inside another one, and in one that overlaps with it, both share what is
    packed, and the last to end puts it back.

    Args:
        models: "student", "teacher", ... -> model.
        setting: "auto" packs what can be packed and pays, and leaves layers of any other kind alone, all of them in
            mixed precision or where torch comes without oneDNN. True insists on some of every model; False packs
            nothing.

    Raises:
        ValueError: the setting is none of these; or it is True, and a model has nothing to pack (named, with the
            reason); or it is False inside of a use that has packed a model.
        RuntimeError: another thread uses one of the models in this way.
    """
    setting = pack_setting(setting)
    modules, use = _modules(models.values()), object()
    release_left_behind(modules)
    shared = _enclosing(modules)
    for packed in shared:
        _require_own_thread(packed)
    if setting is False and shared:
        raise ValueError("pack_weights=False: the weights are packed by a rollout inside of which this one runs")
    able = torch.backends.mkldnn.is_available() and not any(map(_is_mixed, models.values()))
    chosen = _chosen(modules) if able and setting is not False else {}
    if setting is True:
        weights = {id(weight) for weight in (*chosen, *(packed.weight for packed in shared))}
        for role, model in models.items():
            if not any(id(weight) in weights for weight in base_model(model).parameters()):
                name = type(base_model(model)).__name__
                raise ValueError(f"pack_weights=True: the {role} {name} cannot be packed: {_reason(model)}")
    held: list[_PackedWeight] = []
    packable = {id(layer) for layers in chosen.values() for layer in layers}
    try:
        with merged_lora(modules, packable, _product):  # before their weights are away
            with torch.no_grad():
                for packed in shared:
                    held.append(packed)
                    packed.uses.add(use)
                for weight, layers in chosen.items():
                    held.append(_PackedWeight(weight, layers))
                    held[-1].pack(use)
            yield
    finally:
        with torch.no_grad():
            _release(held, use)

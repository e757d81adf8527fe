"""What the engine uses of torch and of transformers' attention though it is not public.

All of it is here, under names of this package, and `tests/training/test_private.py` fails when one of them is not as
it is used here: `torch._dynamo` (`maybe_mark_dynamic`, `config.patch(recompile_limit=...)` and two exceptions),
`torch._higher_order_ops` (`while_loop`), oneDNN's products with packed weights (`_linear_pointwise`,
`_reorder_linear_weight` and `_is_mkldnn_bf16_supported` of `torch.ops.mkldnn`), and of transformers `_global_mapping`,
the table behind its attention interfaces, `_is_user_defined` of a cache, and the variables of its running `generate`
and `_extract_generation_mode_kwargs`. What belongs to models is in `lupi_trainer/models/private.py`.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._higher_order_ops.while_loop import while_loop
from transformers import GenerationMixin


__all__ = [
    "COMPILE_ERRORS",
    "at_most_graphs",
    "given_tokenizer",
    "is_given_cache",
    "kept_by_generate",
    "mark_dynamic",
    "pack_weight",
    "packed_product",
    "packed_types",
    "registered",
    "while_loop",
]

# What `torch.compile` raises where it cannot compile a function, or may not once more.
COMPILE_ERRORS = (TorchDynamoException, FailOnRecompileLimitHit)


def mark_dynamic(tensor: torch.Tensor, dims: int | list[int]) -> None:
    """Let one compiled graph serve all lengths of these dimensions but 0 and 1."""
    torch._dynamo.maybe_mark_dynamic(tensor, dims)


def at_most_graphs(number: int) -> AbstractContextManager:
    """Inside, one function may be compiled for so many shapes."""
    return torch._dynamo.config.patch(recompile_limit=number)


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight [out, in] on a CPU, of one of `packed_types()`, as oneDNN multiplies with it; `to_dense` undoes it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def packed_types() -> tuple[torch.dtype, ...]:
    """The types of weights that can be packed on this processor."""
    bfloat16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if bfloat16 else (torch.float32,)


def packed_product(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [..., in] times the transpose of a packed weight [out, in], plus bias [out] -> [..., out]."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def registered(interface: Any) -> dict[str, Callable]:
    """Attention or mask functions of all models by name, of `AttentionInterface` or `AttentionMaskInterface`."""
    return interface._global_mapping


def is_given_cache(cache: Any) -> bool:
    """Whether the caller of `generate` gave this cache, which is made there otherwise."""
    return getattr(cache, "_is_user_defined", False)


def _variables(function: Callable) -> dict[str, Any] | None:
    """The variables of the innermost running call of a function; None: it is not running."""
    code, frame = inspect.unwrap(function).__code__, sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return None if frame is None else frame.f_locals


def kept_by_generate() -> dict[str, Any]:
    """`streamer`, `assistant_model` and `synced_gpus` of the `generate` that is running a callable `custom_generate`,
    to which it does not give them; empty where none is running one.

    `synced_gpus` is what `generate` decides where its caller has not: true of weights that ZeRO-3 or FSDP shards.
    """
    variables = _variables(GenerationMixin.generate)
    if variables is None or not callable(variables["custom_generate"]):
        return {}
    kept = {name: variables[name] for name in ("streamer", "assistant_model", "synced_gpus")}
    decided = GenerationMixin._extract_generation_mode_kwargs(
        variables["self"], None, {}, *(kept[name] for name in ("synced_gpus", "assistant_model", "streamer"))
    )
    return kept | {"synced_gpus": decided["synced_gpus"]}


class given_tokenizer:
    """A function that as `custom_generate` is given `tokenizer`, and so are the `stop_strings`.

    `generate` takes it out of its arguments, asks for the function's signature, and hands on only what is left: it is
    put back at that moment.
    """

    def __init__(self, function: Callable):
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        variables = _variables(GenerationMixin._extract_generation_mode_kwargs)
        if variables is not None and "tokenizer" in (taken := variables["generation_mode_kwargs"]):
            variables["kwargs"]["tokenizer"] = taken["tokenizer"]
        return inspect.signature(self.function)

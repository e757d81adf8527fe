"""What the engine uses of torch and of transformers' attention though it is not public.

All of it is here, under names of this package, and `tests/training/test_private.py` fails when one of them is not as
it is used here: `torch._dynamo` (`maybe_mark_dynamic`, `config.patch(recompile_limit=...)` and two exceptions),
`torch._higher_order_ops` (`while_loop`), oneDNN's products with packed weights (`_linear_pointwise` and
`_reorder_linear_weight` of `torch.ops.mkldnn`), and `_global_mapping`, the table behind transformers' attention
interfaces. What belongs to models is in `lupi_trainer/models/private.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._higher_order_ops.while_loop import while_loop


__all__ = [
    "COMPILE_ERRORS",
    "at_most_graphs",
    "mark_dynamic",
    "pack_weight",
    "packed_product",
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
    """A weight [out, in], float32 on a CPU, in the layout that oneDNN multiplies with; `to_dense()` undoes it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def packed_product(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [..., in] times the transpose of a packed weight [out, in], plus bias [out] -> [..., out]."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def registered(interface: Any) -> dict[str, Callable]:
    """Attention or mask functions of all models by name, of `AttentionInterface` or `AttentionMaskInterface`."""
    return interface._global_mapping

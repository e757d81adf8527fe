"""Attention kernels that take a length for every row: no mask is built, and what lies beyond a length is not read.

Query j of row r sees the slots 0 to `used[r] - Q + j`, where Q is the number of queries; with a window, the last so
many of them. torch's variable-length attention and flash-attn (arXiv 2307.08691) do this on GPUs, in half precision.
Before one is used, its answers are compared with plain attention's: a kernel that lines queries up
otherwise, as early versions did, would make texts that look right and are not.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import warnings
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention


class Kernel(Protocol):
    """An attention function that takes lengths."""

    __name__: str

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        used: torch.Tensor,
        scale: float,
        window: int,
    ) -> torch.Tensor:
        """query [A, Q, G * H, D], key and value [A, K, H, D], used [A] int32, window or 0 -> [A, Q, G * H, D]."""


_HALF = (torch.float16, torch.bfloat16)
_LARGEST_HEAD = 256
_TOLERANCE = 0.05  # of numbers around 1 in bfloat16; a slot too many or too few makes a difference of about 1


@functools.lru_cache(maxsize=256)
def _bounds(rows: int, length: int, device: torch.device) -> torch.Tensor:
    """0, length, 2 * length, ...: made once for a shape, since every layer asks."""
    return torch.arange(0, (rows + 1) * length, length, dtype=torch.int32, device=device)


def _rows_as_one(states: torch.Tensor) -> torch.Tensor:
    """[A, K, H, D], the first K slots of A rows of a buffer -> [A * slots, H, D], all their slots, not copied."""
    rows, _, heads, dim = states.shape
    slots = states.stride(0) // states.stride(1)
    return states.as_strided((rows * slots, heads, dim), states.stride()[1:], states.storage_offset())


def _window(queries: int, window: int) -> tuple[int, int]:
    """How many slots before and behind its own a query sees, -1 for all; a single one has none in use behind it.

    Without a bound on either side FlashAttention takes the query heads of a group for queries, and splits the slots
    over the GPU: its quick path for one token a row.
    """
    return (-1, -1) if queries == 1 and not window else (window - 1 if window else -1, 0)


def torch_varlen(query, key, value, used, scale: float, window: int) -> torch.Tensor:
    """`torch.nn.attention.varlen.varlen_attn`, where it takes the number of keys in use."""
    from torch.nn.attention.varlen import varlen_attn

    (rows, width, heads, dim), keys = query.shape, _rows_as_one(key)
    slots = keys.shape[0] // rows
    out: Any = varlen_attn(
        query.reshape(rows * width, heads, dim),
        keys,
        _rows_as_one(value),
        _bounds(rows, width, query.device),
        _bounds(rows, slots, query.device),
        width,
        slots,
        scale=scale,
        window_size=_window(width, window),
        enable_gqa=heads != key.shape[2],
        seqused_k=used,
    )
    return out.view(rows, width, heads, dim)


def flash_attn(query, key, value, used, scale: float, window: int) -> torch.Tensor:
    """flash-attn's attention over a static cache."""
    from flash_attn import flash_attn_with_kvcache

    return flash_attn_with_kvcache(
        query,
        key,
        value,
        cache_seqlens=used,
        softmax_scale=scale,
        causal=True,
        window_size=(window - 1, 0) if window else (-1, -1),  # `causal` alone bounds it
    )


def seen_slots(used: torch.Tensor, queries: int, slots: int, window: int) -> torch.Tensor:
    """used [A] -> [A, 1, Q, slots] bool: what every query sees."""
    places = torch.arange(slots, device=used.device)
    last = (used[:, None] - queries + torch.arange(queries, device=used.device))[:, None, :, None]
    seen = places <= last
    return seen & (places > last - window) if window else seen


def masked(query, key, value, used, scale: float, window: int) -> torch.Tensor:
    """The same by a mask, on any device and in any precision."""
    mask = seen_slots(used, query.shape[1], key.shape[1], window)
    states = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(*states, attn_mask=mask, scale=scale, enable_gqa=True).transpose(1, 2)


def _has_torch_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "seqused_k" in inspect.signature(varlen_attn).parameters


def _candidates(device: str) -> list[Kernel]:
    if device != "cuda":
        return []
    flash = importlib.util.find_spec("flash_attn") is not None
    return [torch_varlen] * _has_torch_varlen() + [flash_attn] * flash


class _Case(NamedTuple):
    """A call that a kernel is tried with."""

    queries: int
    slots: int
    window: int = 0
    group: int = 2  # query heads of a key/value head, of which there are two
    used: tuple[int, ...] = (5, 77, 23)  # slots of each row


_LONG = 6575  # slots, of prompts of 2,460 tokens and answers of 4,096, where kernels divide them
_CASES = (
    _Case(5, 80),
    _Case(5, 80, window=6),
    _Case(1, 96),
    _Case(20, _LONG, group=8, used=(_LONG, 4111, 20)),  # Qwen3's groups
    _Case(1, _LONG, group=8, used=(_LONG, 4111, 20)),
)


def _states(case: _Case, head_dim: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random query [3, Q, 2 * group, head_dim], key and value [3, slots, 2, head_dim].

    Of many slots one would be lost: there, every query is like the key of the last slot that it sees, and like the
    next one's.
    """
    key, value = torch.randn(2, 3, case.slots, 2, head_dim, generator=generator)
    if case.slots < _LONG:
        return torch.randn(3, case.queries, 2 * case.group, head_dim, generator=generator), key, value
    last = torch.tensor(case.used)[:, None] - case.queries + torch.arange(case.queries)
    row = torch.arange(3)[:, None]
    near = key[row, last] + key[row, (last + 1).clamp(max=case.slots - 1)]
    return near.repeat_interleave(case.group, 2), key, value


def flaw(kernel: Kernel, device: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Compares a kernel with `masked` on few and on many slots; returns what is wrong with it, or None."""
    generator = torch.Generator().manual_seed(0)
    for case in _CASES:
        query, key, value = (part.to(device, dtype) for part in _states(case, head_dim, generator))
        states = query, key, value
        used = torch.tensor(case.used, dtype=torch.int32, device=device)
        rest = used, head_dim**-0.5, case.window
        try:
            with torch.no_grad():
                error = (kernel(*states, *rest).float() - masked(*states, *rest).float()).abs().max().item()
        except Exception as reason:  # of an extension: whatever it is, the kernel is of no use here
            return f"{type(reason).__name__}: {str(reason).strip().splitlines()[0] if str(reason).strip() else ''}"
        if not error < _TOLERANCE:
            return f"its result is {error:.2g} away from plain attention's ({case.slots} slots, window {case.window})"
    return None


@functools.cache
def find_kernel(device: str, dtype: torch.dtype, head_dim: int) -> Kernel | None:
    """The first kernel that works for tensors of this kind ("cuda", "cpu"); None: attention goes by masks.

    One that is installed and gives a wrong answer, or none, is named in a warning.
    """
    if dtype not in _HALF or head_dim % 8 or head_dim > _LARGEST_HEAD:
        return None
    for kernel in _candidates(device):
        reason = flaw(kernel, device, dtype, head_dim)
        if reason is None:
            return kernel
        warnings.warn(f"rollouts do not use {kernel.__name__} on this machine: {reason}", RuntimeWarning)
    return None


torch.library.define(
    "lupi_trainer::ragged_attention",
    "(Tensor query, Tensor key, Tensor value, Tensor used, float scale, int window) -> Tensor",
)


@torch.library.impl("lupi_trainer::ragged_attention", "CompositeExplicitAutograd")
def _ragged_attention(query, key, value, used, scale: float, window: int) -> torch.Tensor:
    kernel = find_kernel(query.device.type, query.dtype, query.shape[-1]) or masked
    return kernel(query, key, value, used, scale, window).contiguous()


@torch.library.register_fake("lupi_trainer::ragged_attention")
def _shape(query, key, value, used, scale: float, window: int) -> torch.Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])

"""Attention for rows of different lengths, through transformers' own interfaces.

transformers asks the cache where the queries start. A `RaggedCache` answers with one number for each row, and the mask
functions of `sdpa` and `eager` are taught, once and for good, to broadcast it; other calls they pass on as they are.
Windows, layer types and the way a model passes masks around stay the model's own business, so no model is modified and
no mask is passed in.

With a mask, transformers repeats the keys and values of grouped queries for every head before it calls `sdpa`. For a
few queries over a long cache that copy costs more than the attention; here the queries of a group are folded instead.

On a GPU, in half precision, no mask is made at all: where transformers hands a mask on, the rows' lengths travel, and
a kernel that takes them (`kernels.py`) does the rest. Prompts are read as before.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ...models.private import (
    attn_implementation,
    layer_types,
    set_attn_implementation,
    supports_flash_attention,
    supports_sdpa,
)
from .kernels import find_kernel, masked
from .private import registered
from .support import base_model, head_width, text_config


_MASKED = ("sdpa", "eager")
_LENGTHS = "lupi_lengths"  # a number for each row in place of a mask
_TIED = "tie_last_hidden_states"  # of a configuration: the last of the hidden states is what the lm_head reads
_FOLDS = "_lupi_folds"  # of a configuration: its layers' groups are folded, for a rollout runs

_taught: set = set()  # functions of this file among transformers' own


def _ragged(original, additive: bool):
    def mask(*args, **kwargs):
        q_offset = kwargs.get("q_offset")
        if not isinstance(q_offset, torch.Tensor) or q_offset.ndim != 1:
            return original(*args, **kwargs)
        device = q_offset.device
        rows = torch.arange(q_offset.shape[0], device=device)[:, None, None, None]
        heads = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
        queries = q_offset[:, None, None, None] + torch.arange(kwargs["q_length"], device=device)[:, None]
        slots = kwargs.get("kv_offset", 0) + torch.arange(kwargs["kv_length"], device=device)
        seen = kwargs["mask_function"](rows, heads, queries, slots)  # [A, 1, Q, visible] bool
        if not additive:
            return seen
        dtype = kwargs["dtype"]
        return torch.zeros((), dtype=dtype, device=device).where(seen, torch.finfo(dtype).min)

    return mask


def _grouped(original):
    def attention(module, query, key, value, attention_mask, *args, **kwargs):
        """query [B, G * H, Q, D], key and value [B, H, K, D], mask [B, 1, Q, K] -> ([B, Q, G * H, D], None)."""
        if not getattr(getattr(module, "config", None), _FOLDS, False):
            return original(module, query, key, value, attention_mask, *args, **kwargs)
        batch, heads, group = key.shape[0], key.shape[1], query.shape[1] // key.shape[1]
        special = args or kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None
        if group == 1 or special or attention_mask is None or attention_mask.shape[1] != 1:
            return original(module, query, key, value, attention_mask, *args, **kwargs)
        folded = query.reshape(batch, heads, group * query.shape[2], query.shape[3])
        mask = attention_mask.repeat(1, 1, group, 1)
        out = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=kwargs.get("scaling"))
        return out.reshape(batch, heads * group, query.shape[2], -1).transpose(1, 2).contiguous(), None

    return attention


def _used(original):
    def mask(*args, **kwargs):
        """Returns [A] int32, how many slots of each row the last of its queries sees; for prompts, sdpa's mask.

        With a window it is [A, window], each number many times, for not every model hands the window on.
        """
        q_offset = kwargs.get("q_offset")
        if not isinstance(q_offset, torch.Tensor) or q_offset.ndim != 1:
            return original(*args, **kwargs)
        used = (q_offset + kwargs["q_length"]).clamp(max=kwargs["kv_length"]).to(torch.int32)
        window = kwargs.get("local_size")
        return used[:, None].expand(-1, window) if window else used

    return mask


def _by_length(original):
    def attention(module, query, key, value, attention_mask, *args, **kwargs):
        """query [B, G * H, Q, D], key, value [B, H, K, D], lengths [B] or [B, window] -> ([B, Q, G * H, D], None)."""
        if attention_mask is None or attention_mask.ndim > 2:
            return original(module, query, key, value, attention_mask, *args, **kwargs)
        scale, window = kwargs.get("scaling"), kwargs.get("sliding_window") or 0
        if attention_mask.ndim == 2:
            attention_mask, window = attention_mask[:, 0].contiguous(), attention_mask.shape[1]
        given = [states.transpose(1, 2) for states in (query, key, value)] + [attention_mask]
        given += [query.shape[-1] ** -0.5 if scale is None else float(scale), window]
        alike = query.dtype == key.dtype == value.dtype and key.shape[-1] == value.shape[-1]
        return (torch.ops.lupi_trainer.ragged_attention if alike else masked)(*given), None

    return attention


def _teach(interface, name: str, wrap) -> None:
    """Puts `wrap(function)` in the place of the function `name`, unless that is done."""
    function = registered(interface)[name]
    if function not in _taught:
        _taught.add(wrapped := wrap(function))
        interface.register(name, wrapped)


def _teach_transformers() -> None:
    """Registers what rollouts need. It stays, since another rollout may run in another thread when one has ended."""
    _teach(AttentionMaskInterface, "eager", lambda mask: _ragged(mask, additive=True))
    _teach(AttentionMaskInterface, "sdpa", lambda mask: _ragged(mask, additive=False))
    _teach(AttentionInterface, "sdpa", _grouped)
    if _LENGTHS not in registered(AttentionInterface):
        AttentionMaskInterface.register(_LENGTHS, _used(registered(AttentionMaskInterface)["sdpa"]))
        AttentionInterface.register(_LENGTHS, _by_length(registered(AttentionInterface)["sdpa"]))


def _takes_lengths(model) -> bool:
    """Whether the model hands on all that a kernel needs, as it must for flash attention, and there is a kernel."""
    inner, config = base_model(model), text_config(model)
    if not (supports_flash_attention(inner) and supports_sdpa(inner)):
        return False
    # a kernel knows no chunks; and models whose layers share keys and values cut masks to the places that they want
    if {name for name, _ in layer_types(config)} & {"chunked_attention", "dummy"}:
        return False
    weight = inner.get_input_embeddings().weight
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return find_kernel(device, dtype, head_width(config)) is not None


@contextmanager
def _own_attention(model) -> Generator[None]:
    """Lets a model attend by lengths, else by masks: flash and flex attention take neither."""
    config, inner = base_model(model).config, text_config(model)
    before, folded = attn_implementation(config), getattr(inner, _FOLDS, False)
    tied = {_TIED: getattr(inner, _TIED)} if hasattr(inner, _TIED) else None
    if before != "eager" and _takes_lengths(model):
        set_attn_implementation(config, _LENGTHS)
    elif before not in (*_MASKED, _LENGTHS):
        set_attn_implementation(config, "sdpa" if supports_sdpa(base_model(model)) else "eager")
    setattr(inner, _FOLDS, True)
    setattr(inner, _TIED, True)
    try:
        yield
    finally:
        set_attn_implementation(config, before)
        if tied is None:
            delattr(inner, _TIED)
        else:
            setattr(inner, _TIED, tied[_TIED])
        if not folded:
            delattr(inner, _FOLDS)


def attends_by_length(model) -> bool:
    """Whether the model, inside `ragged_attention`, attends by a kernel that takes the rows' lengths."""
    return attn_implementation(base_model(model).config) == _LENGTHS


@contextmanager
def ragged_attention(*models) -> Generator[None]:
    """Inside, the models attend with per-row lengths when run on a `RaggedCache`; other calls are as before.

    On a GPU, in half precision, that goes by a kernel which takes lengths, if there is one (`kernels.find_kernel`);
    else by masks, for which models set to flash or flex attention are set to `sdpa` meanwhile. `eager` stays. Rollouts
    may run in several threads, each with models of its own.
    """
    _teach_transformers()
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(_own_attention(model))
        yield

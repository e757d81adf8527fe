"""Attention for rows of different lengths, through transformers' own interfaces.

transformers asks the cache where the queries start. A `RaggedCache` answers with one number for each row, and the mask
functions of `sdpa` and `eager` are taught, while a rollout runs, to broadcast it. Windows, layer types and the way a
model passes masks around stay the model's own business, so no model is modified and no mask is passed in.

With a mask, transformers repeats the keys and values of grouped queries for every head before it calls `sdpa`. For a
few queries over a long cache that copy costs more than the attention; here the queries of a group are folded instead.

On a GPU, in half precision, no mask is made at all: where transformers hands a mask on, the rows' lengths travel, and
a kernel that takes them (`kernels.py`) does the rest. Prompts are read as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from .kernels import find_kernel, masked
from .models import base_model, text_config


_MASKED = ("sdpa", "eager")
_LENGTHS = "lupi_lengths"  # a number for each row in place of a mask


def _ragged(original, additive: bool):
    def mask(*args, q_offset=0, **kwargs):
        if not isinstance(q_offset, torch.Tensor) or q_offset.ndim != 1:
            return original(*args, q_offset=q_offset, **kwargs)
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
    def mask(*args, q_offset=0, **kwargs):
        """Returns [A] int32, how many slots of each row the last of its queries sees; for prompts, sdpa's mask."""
        if not isinstance(q_offset, torch.Tensor) or q_offset.ndim != 1:
            return original(*args, q_offset=q_offset, **kwargs)
        return (q_offset + kwargs["q_length"]).clamp(max=kwargs["kv_length"]).to(torch.int32)

    return mask


def _by_length(original):
    def attention(module, query, key, value, attention_mask, *args, **kwargs):
        """query [B, G * H, Q, D], key and value [B, H, K, D], lengths [B] int32 -> ([B, Q, G * H, D], None)."""
        if attention_mask is None or attention_mask.ndim != 1:
            return original(module, query, key, value, attention_mask, *args, **kwargs)
        scale, window = kwargs.get("scaling"), kwargs.get("sliding_window") or 0
        given = [states.transpose(1, 2) for states in (query, key, value)] + [attention_mask]
        given += [query.shape[-1] ** -0.5 if scale is None else float(scale), window]
        alike = query.dtype == key.dtype == value.dtype and key.shape[-1] == value.shape[-1]
        return (torch.ops.lupi_trainer.ragged_attention if alike else masked)(*given), None

    return attention


@contextmanager
def _registered(interface, functions: dict) -> Iterator[None]:
    mapping = interface._global_mapping
    originals = {name: mapping[name] for name in functions if name in mapping}
    for name, function in functions.items():
        interface.register(name, function)
    try:
        yield
    finally:
        for name in functions:
            interface.register(name, originals[name]) if name in originals else mapping.pop(name)


@contextmanager
def _ragged_masks() -> Iterator[None]:
    masks = AttentionMaskInterface._global_mapping
    ragged = {name: _ragged(masks[name], additive=name == "eager") for name in _MASKED}
    grouped = _grouped(AttentionInterface._global_mapping["sdpa"])
    functions = {"sdpa": grouped, _LENGTHS: _by_length(grouped)}
    with _registered(AttentionMaskInterface, ragged | {_LENGTHS: _used(masks["sdpa"])}):
        with _registered(AttentionInterface, functions):
            yield


def _takes_lengths(model) -> bool:
    """Whether the model hands on all that a kernel needs, as it must for flash attention, and there is a kernel."""
    inner, config = base_model(model), text_config(model)
    if not (getattr(inner, "_supports_flash_attn", False) and getattr(inner, "_supports_sdpa", False)):
        return False
    weight = inner.get_input_embeddings().weight
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return find_kernel(device, dtype, head_dim) is not None


@contextmanager
def _own_attention(model) -> Iterator[None]:
    """Lets a model attend by lengths, else by masks: flash and flex attention take neither."""
    config = base_model(model).config
    before = config._attn_implementation
    if before != "eager" and _takes_lengths(model):
        config._attn_implementation = _LENGTHS
    elif before not in (*_MASKED, _LENGTHS):
        config._attn_implementation = "sdpa" if getattr(base_model(model), "_supports_sdpa", False) else "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def attends_by_length(model) -> bool:
    """Whether the model, inside `ragged_attention`, attends by a kernel that takes the rows' lengths."""
    return base_model(model).config._attn_implementation == _LENGTHS


@contextmanager
def ragged_attention(*models) -> Iterator[None]:
    """Inside, the models attend with per-row lengths when run on a `RaggedCache`; other calls are as before.

    On a GPU, in half precision, that goes by a kernel which takes lengths, if there is one (`kernels.find_kernel`);
    else by masks, for which models set to flash or flex attention are set to `sdpa` meanwhile. `eager` stays.
    """
    with ExitStack() as stack:
        stack.enter_context(_ragged_masks())
        for model in models:
            stack.enter_context(_own_attention(model))
        yield

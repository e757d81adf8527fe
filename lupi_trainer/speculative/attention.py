"""Attention for rows of different lengths, through transformers' own interfaces.

transformers asks the cache where the queries start. A `RaggedCache` answers with one number for each row, and the mask
functions of `sdpa` and `eager` are taught, while a rollout runs, to broadcast it. Windows, layer types and the way a
model passes masks around stay the model's own business, so no model is modified and no mask is passed in.

With a mask, transformers repeats the keys and values of grouped queries for every head before it calls `sdpa`. For a
few queries over a long cache that copy costs more than the attention; here the queries of a group are folded instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from .models import base_model


_MASKED = ("sdpa", "eager")


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


@contextmanager
def _registered(interface, functions: dict) -> Iterator[None]:
    originals = {name: interface._global_mapping[name] for name in functions}
    for name, function in functions.items():
        interface.register(name, function)
    try:
        yield
    finally:
        for name, original in originals.items():
            interface.register(name, original)


@contextmanager
def _ragged_masks() -> Iterator[None]:
    masks = AttentionMaskInterface._global_mapping
    ragged = {name: _ragged(masks[name], additive=name == "eager") for name in _MASKED}
    grouped = {"sdpa": _grouped(AttentionInterface._global_mapping["sdpa"])}
    with _registered(AttentionMaskInterface, ragged), _registered(AttentionInterface, grouped):
        yield


@contextmanager
def _masked_attention(model) -> Iterator[None]:
    config = base_model(model).config
    before = config._attn_implementation
    if before in _MASKED:
        yield
        return
    # flash and flex attention take no mask with a length for each row
    config._attn_implementation = "sdpa" if getattr(base_model(model), "_supports_sdpa", False) else "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def ragged_attention(*models) -> Iterator[None]:
    """Inside, the models attend with per-row lengths when run on a `RaggedCache`; other calls are as before.

    Models set to an implementation without such masks (flash or flex attention) attend by `sdpa` meanwhile.
    """
    with ExitStack() as stack:
        stack.enter_context(_ragged_masks())
        for model in models:
            stack.enter_context(_masked_attention(model))
        yield

"""What the engine must know of a model before it runs it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from ...models.private import is_stateful
from ...teachers.self_taught import AdapterDisabled


_ROLLS_BACK = {"full_attention", "sliding_attention"}


def base_model(model):
    """The transformers model inside a wrapper (`AdapterDisabled`, a PeftModel), or the model itself."""
    if isinstance(model, AdapterDisabled):
        model = model.peft_model
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def active(model) -> Generator[Any]:
    """Yields the module to call, as it is to be seen: a PeftModel without its adapter, or the model itself."""
    with model.peft_model.disable_adapter() if isinstance(model, AdapterDisabled) else nullcontext():
        yield model.peft_model if isinstance(model, AdapterDisabled) else model


def text_config(model):
    """The configuration of the language model (multimodal configurations hold it one level down)."""
    return base_model(model).config.get_text_config(decoder=True)


def usable_positions(model) -> int | None:
    """The longest text, in tokens, that a model reads with one set of rotary frequencies; None: it does not say.

    With `longrope`, one row that is longer than the model's original length changes the frequencies of all.
    """
    config = text_config(model)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, dict) and kind.get("rope_type") == "longrope"]
    limits = [getattr(config, "max_position_embeddings", None)]
    limits += [kind.get("original_max_position_embeddings") for kind in kinds]
    return min((limit for limit in limits if limit is not None), default=None)


def prefill_budget(model, rows: int, slots: int) -> int:
    """Tokens in one prefill forward, padding too: activations stay near an eighth of the weights and the cache."""
    config = text_config(model)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    states = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * head_dim
    width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    held = sum(parameter.numel() for parameter in model.parameters()) + states * rows * slots
    return min(max(held // (8 * (4 * width + 8 * config.hidden_size)), 128), 8192)


def _obstacle(inner, config) -> str | None:
    """What keeps a model from rollouts, as the rest of a sentence; None: nothing that is known."""
    if getattr(inner.config, "is_encoder_decoder", False):
        return " is an encoder-decoder: its texts do not begin with their prompts"
    if getattr(config, "is_decoder", None) is False and hasattr(config, "add_cross_attention"):
        return " is built as an encoder, whose tokens see those after them: load it with `is_decoder=True`"
    strange = sorted(set(getattr(config, "layer_types", None) or ()) - _ROLLS_BACK)
    known = " or ".join(sorted(_ROLLS_BACK))
    if strange == ["chunked_attention"]:
        return f" has layers of chunked_attention; rollouts are made for those of {known}"
    if is_stateful(inner) or strange:
        kinds = f" (layer types {', '.join(strange)})" if strange else ""
        return (
            f"{kinds} keeps a state that rejected tokens cannot be removed from; drafting and verifying need layers "
            f"of {known}"
        )
    if getattr(config, "num_kv_shared_layers", 0):
        return " has layers that share keys and values, which the cache of a rollout does not"
    if config.model_type == "gpt_neo" and "local" in config.attention_layers:
        return " has layers of local attention, whose masks know nothing of rows of different lengths"
    if config.model_type == "falcon" and config.alibi:
        return " has ALiBi, which it computes for rows of one length"
    return None


def require_support(model, role: str) -> None:
    """Raises ValueError, with the model's name, where a rollout could not be right: rejected tokens that cannot be
    taken back, a virtual prompt, an adapter that cannot be switched off without changing weights."""
    inner = base_model(model)
    obstacle = _obstacle(inner, text_config(model))
    if obstacle is not None:
        raise ValueError(f"the {role} {type(inner).__name__}{obstacle}")
    for name, adapter in getattr(model, "peft_config", {}).items():
        if adapter.is_prompt_learning:
            raise ValueError(
                f"the {role}'s adapter {name!r} ({type(adapter).__name__}) puts virtual tokens before the prompt, "
                "which rollouts do not support; LoRA and its kin work"
            )
    if isinstance(model, AdapterDisabled):
        merged = {name for module in inner.modules() for name in getattr(module, "merged_adapters", ())}
        if merged:
            raise ValueError(
                f"the {role} is AdapterDisabled of {type(inner).__name__}, whose adapter {', '.join(sorted(merged))} "
                "is merged into its weights; call unmerge_adapter() first"
            )


def require_cache(model, cache) -> None:
    """Raises ValueError, with the model's name, if a forward has left a layer's keys and values out of the cache: what
    is read next would know nothing of it."""
    if not all(layer.is_initialized for layer in cache.layers):
        raise ValueError(
            f"{type(base_model(model)).__name__} keeps no keys and values in the cache that it is given, which "
            "drafting and verifying need"
        )


@contextmanager
def evaluating(*models) -> Generator[None]:
    """Puts the models in eval mode, and each of their modules back as it was; gradients are off inside."""
    modules = {id(m): (m, m.training) for model in models for m in model.modules()}
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modules.values():
            module.training = training

"""What the engine must know of a model before it runs it."""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from ...models.private import has_mixed_precision, is_stateful, layer_types
from ...teachers.self_taught import AdapterDisabled


# of each layer type of transformers: what it keeps of the tokens that it has read
_KEEPS = {
    "full_attention": "attention",
    "sliding_attention": "attention",
    "chunked_attention": "attention",
    "conv": "state",
    "linear_attention": "state",
    "hybrid": "both",
    "hybrid_sliding": "both",
    "dummy": "nothing",
}
# model types whose scan over several tokens does not begin with the state before them
_SINGLY = {"bailing_hybrid", "falcon_mamba", "jamba", "kimi_linear", "mamba", "zamba"}
_OWN_STATE = " keeps a state of its own, outside of transformers' caches, that rejected tokens cannot be removed from"
_ONE_LENGTH = " counts positions by the length of its cache, which is one number for all rows"
_OWN_MASKS = " masks what it sees by the places of tokens in one call, which in a rollout stand elsewhere"
_NO_CACHE = " keeps no keys and values in the cache that it is given"
# model types whose attention, or whose state, is a way of their own
_OWN_WAYS = {
    **dict.fromkeys(("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart"), _ONE_LENGTH),
    **dict.fromkeys(("mvp", "pegasus", "plbart", "trocr", "roformer", "inkling_text", "inkling2_text"), _ONE_LENGTH),
    **dict.fromkeys(("gemma4_unified", "git"), _OWN_MASKS),
    **dict.fromkeys(("mllama_text_model", "openai-gpt", "reformer"), _NO_CACHE),
    "gpt_neox_japanese": " computes its attention on keys and values of one layout, which a rollout's cache has not",
    "recurrent_gemma": _OWN_STATE,
    "minimax": " takes a cache of its own class alone",
}
_OF_ANOTHER = " drafts for a model of its own, whose keys and values it reads: by itself it reads no text"
_FROM_PADDING = " counts its positions from the number of its padding token, and does not when it generates"
_CODES = " writes several streams of audio codes at once: it is no language model"
# model types of which no text is what they would write if they read it anew for each token
_NO_TEXTS = {
    "blt": " reads bytes in patches, with several models in one, and transformers does not generate with it",
    **dict.fromkeys(("camembert", "data2vec-text", "roberta", "roberta-prelayernorm"), _FROM_PADDING),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl", "xmod"), _FROM_PADDING),
    "cpmant": " puts a prompt of its own before each text, whose tokens see those after them",
    "gemma4_assistant": _OF_ANOTHER,
    "gemma4_unified_assistant": _OF_ANOTHER,
    "musicgen_decoder": _CODES,
    "musicgen_melody_decoder": _CODES,
    "prophetnet": " predicts several tokens ahead with an attention that knows one position a call",
    "xlm": " puts a mask token behind each text when it generates",
    "xlnet": " reads texts in any order: it is no causal language model",
}


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
    return min((limit for limit in limits if limit is not None and limit > 0), default=None)


def largest(config, name: str) -> int | None:
    """The largest number that any layer of a model has under a name; None: the configuration has none.

    Layers may differ: a list, or a configuration for each, which refuses to be asked for the number of all.
    """
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    found = [getattr(layer, name, None) for layer in layers]
    return max((n for each in found for n in (each if isinstance(each, (list, tuple)) else [each]) if n), default=None)


def head_width(config) -> int:
    """The numbers in a key of one head, of the widest layer."""
    return largest(config, "head_dim") or (largest(config, "hidden_size") or 0) // (
        largest(config, "num_attention_heads") or 1
    )


def cache_kinds(config) -> list[tuple[str, int]]:
    """What each layer of a language model keeps, "attention", "state", "both" or "nothing", and how many states."""
    return [(_KEEPS.get(name, "attention"), states) for name, states in layer_types(config)]


def keeps_states(model) -> bool:
    """Whether any layer of a model keeps a state, which tokens cannot be removed from."""
    return any(states for _, states in cache_kinds(text_config(model)))


def cache_argument(model) -> str:
    """The name under which a model's forward takes its cache."""
    taken = inspect.signature(base_model(model).forward).parameters
    return next((name for name in ("cache", "past_key_values", "cache_params") if name in taken), "past_key_values")


def reads_singly(model) -> bool:
    """Whether a model reads several tokens as if nothing came before them, so that they must come one at a time."""
    return text_config(model).model_type in _SINGLY


def rounding(model) -> float:
    """By how much two right ways to read a text may differ, as a share of the largest logit.

    A layer's rounding adds to that of those before it as steps of a random walk do.
    """
    depth = getattr(text_config(model), "num_hidden_layers", None) or 1
    return max(1e-4, 4 * torch.finfo(base_model(model).dtype).eps * max(depth / 4, 1) ** 0.5)


def resolution(model) -> float:
    """The spacing of the numbers at 1 that a model computes in, where that is half precision; else 0."""
    device = model.get_input_embeddings().weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else base_model(model).dtype
    if has_mixed_precision(base_model(model)):
        dtype = torch.bfloat16  # or float16, whose numbers lie nearer
    return torch.finfo(dtype).eps if dtype.itemsize < 4 else 0.0


def prefill_budget(model, rows: int, slots: int) -> int:
    """Tokens in one prefill forward, padding too: activations stay near an eighth of the weights and the cache."""
    return tokens_at_once(text_config(model), sum(parameter.numel() for parameter in model.parameters()), rows, slots)


def tokens_at_once(config, weights: int, rows: int, slots: int) -> int:
    """[`prefill_budget`] of a model of so many weights, as its configuration tells it."""
    heads = largest(config, "num_key_value_heads") or largest(config, "num_attention_heads") or 1
    states = 2 * config.num_hidden_layers * heads * head_width(config)
    width = largest(config, "intermediate_size") or 4 * config.hidden_size
    return min(max((weights + states * rows * slots) // (8 * (4 * width + 8 * config.hidden_size)), 128), 8192)


def _no_writer(config) -> str | None:
    """What keeps models of a configuration from writing a text at all, as the rest of a sentence."""
    if getattr(config, "is_encoder_decoder", False):
        return " is an encoder-decoder: its texts do not begin with their prompts"
    text = config.get_text_config(decoder=True)
    if getattr(text, "is_decoder", None) is False and hasattr(text, "add_cross_attention"):
        return " is built as an encoder, whose tokens see those after them: load it with `is_decoder=True`"
    return _NO_TEXTS.get(config.model_type) or _NO_TEXTS.get(text.model_type)


def _obstacle(config, stateful: bool) -> str | None:
    """What keeps models of a configuration from drafting and verifying; None: nothing that is known.

    `stateful`: whether the model's class says that it keeps a state.
    """
    text = config.get_text_config(decoder=True)
    if (own := _OWN_WAYS.get(config.model_type) or _OWN_WAYS.get(text.model_type)) is not None:
        return own
    strange = sorted({name for name, _ in layer_types(text)} - set(_KEEPS))
    if strange:
        return (
            f" has layers of {', '.join(strange)}, whose cache rejected tokens cannot be removed from; drafting and "
            f"verifying need layers of {', '.join(_KEEPS)}"
        )
    if stateful and not any(states for _, states in cache_kinds(text)):
        return _OWN_STATE
    if text.model_type == "gpt_neo" and "local" in text.attention_layers:
        return " has layers of local attention, whose masks know nothing of rows of different lengths"
    if text.model_type == "falcon" and text.alibi:
        return " has ALiBi, which it computes for rows of one length"
    return None


_INSTEAD = "; rollout_policy 'student' and 'teacher', which take nothing back, work with it"


def require_config_support(config, role: str, drafts: bool = True) -> None:
    """Raises ValueError as `require_support` does, for what a model's configuration tells before it is loaded.

    Args:
        config: of transformers.
        role: "student", "teacher", "target" or "draft", for the message.
        drafts: False where one model writes alone, so that nothing is verified or taken back: then every causal
            language model works.
    """
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    name = f"the {role} {getattr(model_class, '__name__', config.model_type)}"
    _require(config, is_stateful(model_class), name, role, drafts)


def _require(config, stateful: bool, name: str, role: str, drafts: bool) -> None:
    if (fault := _no_writer(config)) is not None:
        raise ValueError(name + fault)
    if drafts and (fault := _obstacle(config, stateful)) is not None:
        raise ValueError(name + fault + (_INSTEAD if role in ("student", "teacher") else ""))


def can_draft(model) -> bool:
    """Whether nothing that is known keeps a model, which can write, from drafting and verifying."""
    inner = base_model(model)
    return _obstacle(inner.config, is_stateful(inner)) is None


def config_can_draft(config) -> bool:
    """`can_draft` of the models of a configuration."""
    return _obstacle(config, is_stateful(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None))) is None


def require_support(model, role: str, drafts: bool = True) -> None:
    """Raises ValueError, with the model's name, where a rollout could not be right: rejected tokens that cannot be
    taken back (unless nothing `drafts`), a virtual prompt, an adapter that cannot be switched off without changing
    weights."""
    inner = base_model(model)
    _require(inner.config, is_stateful(inner), f"the {role} {type(inner).__name__}", role, drafts)
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

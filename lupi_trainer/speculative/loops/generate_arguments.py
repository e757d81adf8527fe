"""What transformers' `generate` asks of a drafting, read or refused: prompts, sampling, and where texts end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from ..runners.private import is_given_cache
from .checks import token_ids


# processor -> (keyword of `speculative_generate`, the processor's attribute)
_PROCESSORS: dict[type[LogitsProcessor], tuple[str, str]] = {
    TemperatureLogitsWarper: ("temperature", "temperature"),
    TopKLogitsWarper: ("top_k", "top_k"),
    TopPLogitsWarper: ("top_p", "top_p"),
    RepetitionPenaltyLogitsProcessor: ("repetition_penalty", "penalty"),
}
# keyword -> (those that it may not come after, and how two of it make one)
_ORDER: dict[str, tuple[set[str], Callable[[Any, Any], Any] | None]] = {
    "repetition_penalty": ({"top_k", "top_p"}, lambda a, b: a * b),
    "temperature": ({"top_p"}, lambda a, b: a * b),
    "top_k": ({"top_p"}, min),
    "top_p": ({"top_p"}, None),
}
_MODES = ("num_beams", "penalty_alpha", "dola_layers", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
_MODES += ("constraints", "force_words_ids")
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_CACHES = ("cache", "past_key_values", "cache_params")  # as transformers calls it from 5.24 on, before, of Mamba
_PREPARED = {"attention_mask", "use_cache", "cache_position", "position_ids", "logits_to_keep", *_CACHES}


def read_prompts(input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> list[list[int]]:
    """input_ids [B, L] -> B prompts without their padding.

    Raises:
        ValueError: padding that is not on the left, or positions that do not count the tokens.
    """
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask.to(input_ids.device)
    if mask.shape != input_ids.shape or not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"attention_mask must be one of 0 and 1 for input_ids of shape {list(input_ids.shape)}")
    mask = mask.long()  # as bool, it has no differences below 0
    if (mask.diff(dim=1) < 0).any():
        raise ValueError(
            "attention_mask: drafting reads prompts that are padded on the left alone (padding_side='left')"
        )
    positions = model_kwargs.get("position_ids")
    if positions is not None and not _counts(positions.to(mask.device), mask):
        raise ValueError("position_ids: drafting counts the positions itself, from 0 at a prompt's first token")
    at = model_kwargs.get("cache_position")
    if at is not None and at.tolist() != list(range(input_ids.shape[1])):
        raise ValueError("cache_position: drafting reads every prompt from its first token")
    return [row[kept].tolist() for row, kept in zip(input_ids, mask.bool())]


def _counts(positions: torch.Tensor, mask: torch.Tensor) -> bool:
    """positions [..., B or 1, L], mask [B, L]: whether they number the tokens of each row, apart from padding."""
    expected = mask.cumsum(1) - 1
    if mask.all():
        expected, mask = expected[:1], mask[:1]
    if positions.shape[-1] != mask.shape[1] or positions.numel() % mask.numel():
        return False
    return bool(((positions.reshape(-1, *mask.shape) == expected) | (mask == 0)).all())


def read_sampling(processors: LogitsProcessorList, do_sample: bool | None, padding: list[int]) -> dict[str, Any]:
    """The keywords of `speculative_generate` that say how tokens are drawn; `padding` is each row's, in tokens.

    Raises:
        ValueError: a processor, an option of one or an order that drafting does not have.
    """
    found: dict[str, Any] = {}
    for processor in processors:
        name = type(processor).__name__
        if type(processor) not in _PROCESSORS:
            raise ValueError(
                f"drafting cannot follow {name}; it knows temperature, top_k, top_p and repetition_penalty"
            )
        _check_options(processor, padding)
        keyword, attribute = _PROCESSORS[type(processor)]
        value, (later, combine) = getattr(processor, attribute), _ORDER[keyword]
        if later & found.keys():
            raise ValueError(
                f"drafting cannot follow {name} after {' and '.join(sorted(later & found.keys()))}: it applies "
                "repetition_penalty, temperature, top_k and top_p, in this order"
            )
        found[keyword] = combine(found[keyword], value) if combine and keyword in found else value
    if not do_sample:  # none of the others moves the largest logit
        return {"temperature": 0.0} | {k: v for k, v in found.items() if k == "repetition_penalty"}
    return {"temperature": 1.0} | found


def _check_options(processor: LogitsProcessor, padding: list[int]) -> None:
    name = type(processor).__name__
    for option, usual in (("filter_value", -float("inf")), ("min_tokens_to_keep", 1)):
        value = getattr(processor, option, usual)
        if value != usual and not (option == "min_tokens_to_keep" and isinstance(processor, TopKLogitsWarper)):
            raise ValueError(f"drafting cannot follow {name} with {option}={value}")
    if isinstance(processor, RepetitionPenaltyLogitsProcessor):
        ignored = getattr(processor, "prompt_ignore_length", None)
        ignored = 0 if ignored is None else ignored
        each = ignored.tolist() if isinstance(ignored, torch.Tensor) else [ignored] * len(padding)
        if each != padding:
            raise ValueError(
                f"drafting cannot follow {name} with prompt_ignore_length={ignored}: it counts all tokens of a prompt "
                f"and no padding ({padding} tokens here)"
            )


class Ends(NamedTuple):
    """Where texts end: after so many new tokens, at these tokens, or where a criterion finds a string."""

    limit: int
    eos: list[int]
    strings: list[StopStringCriteria]


def read_ends(criteria: StoppingCriteriaList, longest: int | None, prompt_length: int, rows: int) -> Ends:
    """Where the texts of B `rows` end; `longest` counts the prompt, for criteria that say nothing of a length.

    Raises:
        ValueError: a criterion that drafting cannot follow, or none that limits the length.
    """
    lengths, eos, strings = [], [], []
    for criterion in criteria:
        if type(criterion) is MaxLengthCriteria:
            lengths.append(criterion.max_length)
        elif type(criterion) is EosTokenCriteria:
            eos += token_ids("eos_token_id", criterion.eos_token_id)
        elif type(criterion) is StopStringCriteria:
            strings.append(criterion)
        else:
            raise ValueError(
                f"drafting cannot follow {type(criterion).__name__}; it ends at eos_token_id, a length or stop_strings"
            )
    if strings and not eos and rows > 1:  # there, `generate` lets rows that have ended go on to the end of the others
        raise ValueError("drafting follows stop_strings in several rows only with an eos_token_id")
    if not lengths:
        lengths = [] if longest is None else [longest]
    if not lengths:
        raise ValueError("nothing limits the texts: give max_new_tokens or max_length")
    return Ends(max(1, min(lengths) - prompt_length), eos, strings)


def _holds(cache) -> bool:
    """Whether a cache of transformers has anything in it; one of recurrent states alone has no length."""
    states = getattr(cache, "is_linear", [False])
    return cache.has_previous_state() if states and all(states) else cache.get_seq_length() > 0


def refuse_others(config: GenerationConfig, of_generate: dict[str, Any], model_kwargs: dict[str, Any]) -> None:
    """Raises ValueError for whatever else is asked for and would be dropped, by name.

    `of_generate` has what `generate` keeps to itself: `assistant_model`, `synced_gpus`.
    """
    if of_generate.get("assistant_model") is not None:
        raise ValueError("assistant_model: give the draft as draft_model")
    if of_generate.get("synced_gpus"):
        raise ValueError(
            "drafting does not keep processes in step, as synced_gpus=True asks for and weights need that ZeRO-3 or "
            "FSDP shards: generate without custom_generate, or with a model that is complete on each process"
        )
    if config.get_generation_mode() not in ("greedy_search", "sample"):
        asked = {name: getattr(config, name, None) for name in _MODES}
        named = ", ".join(f"{k}={v}" for k, v in asked.items() if v and not (k == "num_beams" and v == 1))
        raise ValueError(f"drafting cannot search with {named}: it writes greedy texts or samples")
    for name in _OUTPUTS:
        if getattr(config, name, False):
            raise ValueError(f"drafting does not return what {name}=True asks for")
    if config.cache_implementation not in (None, "dynamic"):
        raise ValueError(f"drafting has caches of its own, not cache_implementation={config.cache_implementation!r}")
    strange = {name for name, value in model_kwargs.items() if value is not None} - _PREPARED
    if strange:
        raise ValueError(f"drafting reads token ids alone, not {', '.join(sorted(strange))}")
    for cache in map(model_kwargs.get, _CACHES):
        if cache is not None and (is_given_cache(cache) or _holds(cache)):
            raise ValueError(
                "drafting neither reads nor fills a cache: leave past_key_values out, and give the entire text as "
                "input_ids"
            )

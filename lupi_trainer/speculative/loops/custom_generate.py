"""`model.generate(..., custom_generate=draft_and_verify, draft_model=draft)`: the way in through transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .checks import refuse_former, token_ids
from .generation import speculative_generate


# processor -> (keyword of `speculative_generate`, the processor's attribute)
_PROCESSORS = {
    TemperatureLogitsWarper: ("temperature", "temperature"),
    TopKLogitsWarper: ("top_k", "top_k"),
    TopPLogitsWarper: ("top_p", "top_p"),
    RepetitionPenaltyLogitsProcessor: ("repetition_penalty", "penalty"),
}
_PREPARED = {
    "attention_mask",
    "past_key_values",
    "use_cache",
    "cache_position",
    "position_ids",
    "logits_to_keep",
}


def _sampling(processors: LogitsProcessorList, do_sample: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"temperature": 1.0 if do_sample else 0.0}
    for processor in processors:
        if type(processor) not in _PROCESSORS:
            raise ValueError(
                f"drafting cannot follow {type(processor).__name__}; it knows temperature, top_k, top_p and "
                "repetition_penalty"
            )
        keyword, attribute = _PROCESSORS[type(processor)]
        found[keyword] = getattr(processor, attribute)
    return found


def _refuse(config: GenerationConfig, criteria: StoppingCriteriaList, model_kwargs: dict) -> None:
    if (config.num_beams or 1) > 1:
        raise ValueError(f"drafting cannot search with num_beams={config.num_beams}")
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        if getattr(config, name, False):
            raise ValueError(f"drafting does not return what {name}=True asks for")
    for criterion in criteria:
        if not isinstance(criterion, (EosTokenCriteria, MaxLengthCriteria)):
            raise ValueError(f"drafting cannot follow {type(criterion).__name__}; it ends at eos_token_id or a length")
    strange = {name for name, value in model_kwargs.items() if value is not None} - _PREPARED
    if strange:
        raise ValueError(f"drafting reads token ids alone, not {', '.join(sorted(strange))}")
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError("drafting cannot continue from past_key_values: give the entire text as input_ids")


def draft_and_verify(
    model,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    draft_model=None,
    num_draft_tokens: int = 5,
    block_verification: bool = True,
    gamma_policy="fixed",
    compile: bool = False,
    verification=None,
    draft_length=None,
    **model_kwargs,
):
    """Speculative decoding as a `custom_generate` of transformers, for any batch size.

    input_ids [B, L], padded on the left -> [B, L + longest completion], padded on the right (or a
    `GenerateDecoderOnlyOutput` with them). `draft_model` is a model or a source of drafts such as `PromptLookup()`;
    the other arguments are those of [`speculative_generate`], which runs all rows at a time here. Sampling takes its
    seed from torch's own generator. `verification` and `draft_length` are names of earlier versions, refused.

    It follows temperature, top_k, top_p and repetition_penalty, and ends at eos_token_id or a length. It does not
    search with beams, stream, stop at strings, continue from `past_key_values`, read `inputs_embeds` or pictures, or
    return scores and hidden states; statistics are what `speculative_generate` alone returns.

    Raises:
        ValueError: there is no draft, or something was asked for that drafting cannot honor (named).
    """
    refuse_former(verification=verification, draft_length=draft_length)
    if draft_model is None:
        raise ValueError("draft_model is missing: pass a model, or PromptLookup()")
    _refuse(generation_config, stopping_criteria, model_kwargs)
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    prompts = [row[kept].tolist() for row, kept in zip(input_ids, mask.bool())]
    eos = token_ids("eos_token_id", generation_config.eos_token_id)
    pad = generation_config.pad_token_id
    pad = pad if pad is not None else eos[0] if eos else 0
    output = speculative_generate(
        model,
        draft_model,
        prompts,
        max_new_tokens=generation_config.max_length - input_ids.shape[1],
        num_draft_tokens=num_draft_tokens,
        eos_token_id=eos,
        block_verification=block_verification,
        gamma_policy=gamma_policy,
        compile=compile,
        seed=int(torch.randint(2**62, ())),
        **_sampling(logits_processor, generation_config.do_sample),
    )
    longest = max(map(len, output.completion_ids))
    completions = [row + [pad] * (longest - len(row)) for row in output.completion_ids]
    sequences: Any = torch.cat([input_ids, torch.tensor(completions, device=input_ids.device)], 1)
    return GenerateDecoderOnlyOutput(sequences=sequences) if generation_config.return_dict_in_generate else sequences

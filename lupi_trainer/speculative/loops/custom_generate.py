"""`model.generate(..., custom_generate=draft_and_verify, draft_model=draft)`: the way in through transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from ..runners.private import given_tokenizer, kept_by_generate
from ..runners.support import require_support
from .checks import refuse_former, token_ids
from .generate_arguments import read_ends, read_prompts, read_sampling, refuse_others
from .generation import speculative_generate
from .streaming import Followed


@given_tokenizer
def draft_and_verify(
    model,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    streamer=None,
    tokenizer=None,
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

    It follows temperature, top_k, top_p and repetition_penalty, ends at eos_token_id, a length or stop_strings (for
    which `generate` reads the `tokenizer`), and feeds a `streamer` block by block. It does not search with beams or
    otherwise, continue from `past_key_values`, read padding within a text, `position_ids` of one's own,
    `inputs_embeds` or pictures, or return scores and hidden states; statistics are what `speculative_generate` alone
    returns. Its caches are its own, whatever `use_cache` says.

    Raises:
        ValueError: there is no draft, or something was asked for that drafting cannot honor (named).

    Example:

    ```python
    >>> from lupi_trainer.speculative import draft_and_verify

    >>> inputs = tokenizer(["What is Fova's capital?"], return_tensors="pt")
    >>> drafted = teacher.generate(**inputs, max_new_tokens=8, custom_generate=draft_and_verify, draft_model=student)
    >>> bool((drafted == teacher.generate(**inputs, max_new_tokens=8)).all())
    True
    ```
    """
    refuse_former(verification=verification, draft_length=draft_length)
    require_support(model, "target")
    of_generate = kept_by_generate()
    streamer = of_generate.get("streamer") if streamer is None else streamer
    refuse_others(generation_config, of_generate, model_kwargs)
    if draft_model is None:
        raise ValueError("draft_model is missing: pass a model, or PromptLookup()")
    rows, length = input_ids.shape
    prompts = read_prompts(input_ids, model_kwargs)
    sampling = read_sampling(
        logits_processor, generation_config.do_sample, [length - len(prompt) for prompt in prompts]
    )
    ends = read_ends(stopping_criteria, generation_config.max_length, length, rows)
    pads = [generation_config.pad_token_id, *token_ids("eos_token_id", generation_config.eos_token_id), *ends.eos, 0]
    pad = next(token for token in pads if token is not None)
    followed = Followed(input_ids, ends, pad, streamer)
    output = speculative_generate(
        model,
        draft_model,
        prompts,
        max_new_tokens=ends.limit,
        num_draft_tokens=num_draft_tokens,
        eos_token_id=ends.eos,
        block_verification=block_verification,
        gamma_policy=gamma_policy,
        compile=compile,
        seed=int(torch.randint(2**62, ())),
        on_tokens=followed if ends.strings or streamer is not None else None,
        **sampling,
    )
    if streamer is not None:
        streamer.end()
    completions = followed.cut(output.completion_ids)
    longest = max(map(len, completions))
    padded = [row + [pad] * (longest - len(row)) for row in completions]
    sequences: Any = torch.cat([input_ids, torch.tensor(padded, device=input_ids.device)], 1)
    return GenerateDecoderOnlyOutput(sequences=sequences) if generation_config.return_dict_in_generate else sequences

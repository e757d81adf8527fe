"""Lossless speculative decoding, the way in: `speculative_generate`."""

from __future__ import annotations

from collections.abc import Callable

from ..drafts.source import is_source
from ..rules.gamma import GammaPolicy
from ..runners.attention import ragged_attention
from ..runners.float32_logits import float32_logits
from ..runners.packed_weights import PackWeights, packed_weights
from ..runners.support import evaluating
from .checks import check_sampling, integer, prompt_lists, refuse_former, token_ids
from .decoder import Decoder
from .request import DecodingRequest
from .results import SpeculativeOutput


def speculative_generate(
    target,
    draft,
    prompt_ids: list[list[int]],
    *,
    max_new_tokens: int,
    num_draft_tokens: int = 5,
    gamma_policy: str | GammaPolicy = "fixed",
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | list[int] | None = None,
    seed: int = 0,
    max_slots: int | None = None,
    compile: bool = False,
    pack_weights: PackWeights = "auto",
    block_verification: bool = True,
    on_tokens: Callable[[int, list[int]], bool | None] | None = None,
    verification=None,
    draft_length=None,
) -> SpeculativeOutput:
    """Completes B prompts as the target alone would, faster where the draft guesses well.

    At temperature 0 the text is the target's own greedy text; above, it has the target's law, and is a pure function
    of the models, prompts, draft lengths, `block_verification` and `seed`, whatever the batch (arXiv 2211.17192,
    2403.10444). That holds in float32; in half precision rounding decides where two tokens are as good as equal.

    Args:
        target: a causal language model of transformers, on any device and in any dtype.
        draft: another one with the same tokenizer, or a source of drafts such as `PromptLookup()`. The vocabularies of
            two models may differ in padding: the target's counts.
        prompt_ids: B ragged lists of token ids.
        max_new_tokens: the longest completion, in tokens.
        num_draft_tokens: tokens that the draft proposes a round; where a policy chooses, the most.
        gamma_policy: "fixed", "goodput" (the length with the highest expected goodput, from measured times and
            acceptance), or a policy object. Above temperature 0 a text depends on the lengths, its law does not.
        temperature, top_k, top_p, repetition_penalty: applied to both models alike, in the order and with the meaning
            that transformers gives them; `top_k=0` keeps every token.
        eos_token_id: tokens that end a row (one or several, of torch or numpy too); the one that did is kept.
        seed: address of the noise.
        max_slots: how many rows run at a time; the others take the places of those that have ended.
        compile: compile the forwards of both models, and on a GPU record them as CUDA graphs.
        pack_weights: "auto" lays the larger linear layers of models on CPUs (in float32, and in bfloat16 where the
            processor has it) out as it wants them until all rows have ended, with LoRA merged into them; True
            insists on it, for every model; False leaves all as they are. Texts are the same but for rounding.
        block_verification: verify drafted tokens jointly, which accepts at least as many, or (`False`) one by one;
            matters above temperature 0 alone.
        on_tokens: called after every round with a row's index and its new tokens; a true answer ends the row.
        verification, draft_length: names of earlier versions, refused.

    Raises:
        ValueError: an argument, prompt or model that cannot work, by name, before anything runs.
        FloatingPointError: the target's logits are no distribution where a row's next token is to be drawn (named).

    Example:

    ```python
    >>> from lupi_trainer.speculative import speculative_generate

    >>> output = speculative_generate(teacher, student, prompt_ids, max_new_tokens=8)
    >>> texts = tokenizer.batch_decode(output.completion_ids)
    ```
    """
    refuse_former(verification=verification, draft_length=draft_length)
    rows = len(prompt_ids)
    request = DecodingRequest(
        prompts=prompt_lists("prompt_ids", prompt_ids),
        max_new_tokens=max_new_tokens,
        num_draft_tokens=num_draft_tokens,
        gamma_policy=gamma_policy,
        sampling=check_sampling(temperature, top_k, top_p, repetition_penalty),
        eos_token_ids=token_ids("eos_token_id", eos_token_id),
        seed=integer("seed", seed),
        slots=rows if max_slots is None else min(max_slots, rows),
        compile=compile,
        block_verification=block_verification,
    )
    request.check(target, draft)
    models = {"target": target} if is_source(draft) else {"target": target, "draft": draft}
    used = models.values()
    with evaluating(*used), ragged_attention(*used), float32_logits(*used), packed_weights(models, pack_weights):
        return Decoder(target, draft, request, on_tokens).run()

"""How far the heads' guesses carry: a few texts written by the model, drafted by its own heads."""

import torch

from ..models.backbone import context_length
from ..models.generation import eos_token_ids
from ..speculative import HeadsDraft, SpeculativeStats, speculative_generate
from ..training.private import unwrap_model_for_generation


def draft_prompts(dataset, count: int) -> list[list[int]]:
    """The first `count` different prompts of tokenised rows: what is before the first label, or half of the text."""
    prompts: dict[tuple[int, ...], None] = {}
    for row in dataset:
        ids, labels = row["input_ids"], row["labels"]
        start = next((i for i, label in enumerate(labels) if label != -100), len(ids))
        prompts[tuple(ids[: start or max(1, len(ids) // 2)])] = None
        if len(prompts) == count:
            break
    return [list(prompt) for prompt in prompts]


def acceptance(stats: SpeculativeStats, horizon: int) -> dict[str, float]:
    """`accept_rate/head_k` (k from 2): share of the rounds in which head k's token is accepted; `accept_length`:
    tokens a round, the model's own among them. A row's first round, in which no head has a state yet, counts too."""
    accepted = [sum(stats.accepted_lengths[k - 1 :]) for k in range(2, horizon + 1)]
    rates = {f"accept_rate/head_{k}": n / max(stats.blocks, 1) for k, n in enumerate(accepted, 2)}
    return rates | {"accept_length": stats.acceptance_length}


@torch.no_grad()
def draft_metrics(trainer, dataset) -> dict[str, float]:
    """Figures of [`acceptance`] on the first `draft_eval_prompts` prompts of a tokenised dataset; every process
    writes the same texts."""
    args = trainer.args
    prompts = draft_prompts(dataset, args.draft_eval_prompts)
    longest = context_length(trainer.model.config)
    if longest is not None:
        prompts = [prompt for prompt in prompts if len(prompt) + args.draft_eval_new_tokens <= longest]
    if not prompts:
        raise ValueError("draft_eval_prompts: no prompt and draft_eval_new_tokens together fit the model's context")
    with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:
        output = speculative_generate(
            model,
            HeadsDraft(model, model.mtp_heads),
            prompts,
            max_new_tokens=args.draft_eval_new_tokens,
            num_draft_tokens=args.horizon - 1,
            eos_token_id=eos_token_ids(model, trainer.processing_class),
        )
    return acceptance(output.stats, args.horizon)

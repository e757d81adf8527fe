"""Gold answers in the loss: the cross-entropy of a record's `answer` beside the divergence from the teacher."""

from typing import Any

import torch
from torch.nn.functional import pad as pad_end

from ..losses.chunked_kd import chunked_kd_ce
from ..models.backbone import completion_states
from ..models.lm_head import Head
from ..training.private import pad


def gold_columns(
    batch: dict[str, Any], gold: list[list[int] | None], pad_token_id: int, accelerator: Any
) -> dict[str, torch.Tensor]:
    """What a batch of B records, all that an optimizer step reads of them here, has besides for [`gold_loss`].

    Args:
        batch: `completion_mask` [B, C] and `num_items_in_batch`, of all processes.
        gold: of each record its answer in tokens, or `None`.
        pad_token_id: behind answers that are shorter than others.
        accelerator: of the run.

    Returns:
        `gold_ids` and `gold_mask` [B, G], and `gold_weight` []: what a sum of cross-entropies over answers counts in
        a loss that is averaged over processes, `share / tokens * processes`, where `share` is how many of the step's
        completion tokens are of records with an answer, and `tokens` how many the answers have; 0 without answers.
    """
    device = batch["completion_mask"].device
    ids = [torch.tensor(one or [pad_token_id]) for one in gold]
    masks = [torch.full((len(one),), int(known is not None)) for one, known in zip(ids, gold)]
    gold_ids, gold_mask = pad(ids, pad_token_id, "right").to(device), pad(masks, 0, "right").to(device)
    mixed = batch["completion_mask"] * gold_mask.any(1, keepdim=True)
    tokens, shared = accelerator.reduce(torch.stack([gold_mask.sum(), mixed.sum()]).double(), reduction="sum")
    share = shared / batch["num_items_in_batch"].clamp(min=1)
    weight = (share / tokens.clamp(min=1) * accelerator.num_processes).float()
    return {"gold_ids": gold_ids, "gold_mask": gold_mask, "gold_weight": weight}


def states_of_both(student: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The student's states over completions [B, C, H], and over the answers [A, G, H] of the A records that have one.

    One forward: where weights are sharded, all processes run as many, however many answers each has.
    """
    answered = batch["gold_mask"].any(1)
    width = max(batch["completion_ids"].size(1), batch["gold_ids"].size(1))
    given = [torch.cat([batch[name], batch[name][answered]]) for name in ("prompt_ids", "prompt_mask")]
    for own, gold in (("completion_ids", "gold_ids"), ("completion_mask", "gold_mask")):
        parts = batch[own], batch[gold][answered]
        given.append(torch.cat([pad_end(part, (0, width - part.size(1))) for part in parts]))
    states, rows = completion_states(student, *given), len(answered)
    return states[:rows, : batch["completion_ids"].size(1)], states[rows:, : batch["gold_ids"].size(1)]


def gold_cross_entropy(states: torch.Tensor, head: Head, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum over answers' tokens of -log p(token), in nats, over the vocabulary that both models have.

    Args:
        states: [A, G, H], of the A records that have an answer.
        head: the student's `lm_head`, cut to that vocabulary.
        batch: of [`gold_columns`].
    """
    answered = batch["gold_mask"].any(1)
    mask = batch["gold_mask"][answered].bool()
    labels = batch["gold_ids"][answered][mask]
    return chunked_kd_ce(states[mask], head, None, None, labels, kd_alpha=0.0, kd_temperature=1.0).total

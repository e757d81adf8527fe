"""Perplexity on labeled tokens, weighted by tokens over a complete set."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset

from ..models.backbone import labeled_states
from ..models.head_check import check_head
from ..models.lm_head import Head


MAX_LOGITS = 1 << 24  # logits built at a time


@dataclass
class PerplexityResult:
    """`perplexity = exp(nll)`; `nll` is the mean over `num_tokens` labeled tokens, in nats."""

    perplexity: float
    nll: float
    num_tokens: int

    def metrics(self) -> dict[str, float]:
        return asdict(self)


def _check_row(row: dict[str, Any], number: int, known: int) -> None:
    """Raise ValueError, with its number, for a row whose labels are not those of its tokens, or beyond the model's."""
    ids, labels = list(row["input_ids"]), list(row["labels"])
    if len(ids) != len(labels):
        raise ValueError(f"row number {number} has {len(ids)} tokens and {len(labels)} labels")
    strange = [i for i in (*ids, *(label for label in labels if label != -100)) if not 0 <= i < known]
    if strange:
        raise ValueError(f"row number {number} holds the token id {strange[0]}; the model has those below {known}")


@torch.no_grad()
def perplexity(
    model: Any, rows: Sequence[dict[str, Any]] | Dataset, *, pad_token_id: int = 0, batch_size: int = 8
) -> PerplexityResult:
    """The exponential of the mean negative log-likelihood of all labeled tokens of a set.

    Every token counts the same, whichever record or batch it is in. Only labeled positions meet the `lm_head`.

    Args:
        model: a causal language model (or a `PeftModel`).
        rows: records with `input_ids` and `labels` (-100 where nothing counts), unpadded.
        pad_token_id: id that shorter rows of a batch are filled up with; it is never read.
        batch_size: rows a forward, the longest ones first.

    Raises:
        ValueError: no token is labeled, a row is longer than the model's context, holds a token that the model lacks
            or has more or fewer labels than tokens, or the model's logits are not its
            `lm_head` on its last hidden states.
    """
    check_head(model, "model")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    for number, row in enumerate(rows):
        _check_row(row, number, model.config.get_text_config().vocab_size)
    was_training = model.training
    model.eval()
    head = Head(model, model.config.get_text_config().vocab_size)
    device = model.get_input_embeddings().weight.device
    total, count = 0.0, 0
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
    try:
        for start in range(0, len(order), batch_size):
            chosen = [rows[i] for i in order[start : start + batch_size]]
            length = len(chosen[0]["input_ids"])
            input_ids = torch.full((len(chosen), length), pad_token_id)
            labels = torch.full((len(chosen), length), -100)
            mask = torch.zeros_like(input_ids)
            for n, row in enumerate(chosen):
                size = len(row["input_ids"])
                input_ids[n, :size], labels[n, :size] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
                mask[n, :size] = 1
            labeled = labels[:, 1:] != -100
            inputs = {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}
            states = labeled_states(model, inputs, labeled, "model").to(head.weight.device)
            targets = labels[:, 1:][labeled].to(head.weight.device)
            step = max(1, MAX_LOGITS // head.weight.size(0))
            for part, target in zip(states.split(step), targets.split(step)):
                total += F.cross_entropy(head.logits(part), target, reduction="sum").item()
            count += len(targets)
    finally:
        model.train(was_training)
    if count == 0:
        raise ValueError("no token is labeled, so there is no perplexity")
    nll = total / count
    return PerplexityResult(math.exp(min(nll, 700.0)), nll, count)

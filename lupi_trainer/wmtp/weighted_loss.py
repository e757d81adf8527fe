"""One batch of weighted multi-token prediction: its targets, its heads' states, its loss and what is logged of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ..losses.chunked_mtp import chunked_ce
from ..losses.reference import head_coefficients, shift_targets
from ..losses.token_weights import head_entropy
from ..models.backbone import backbone_states
from ..models.lm_head import Head


def text_segments(inputs: dict[str, Any]) -> torch.Tensor | None:
    """[B, S] which of several packed texts each position belongs to; `None` where a row is one text.

    TRL's collator says it as `seq_idx`, or by position ids that begin anew.
    """
    if inputs.get("seq_idx") is not None:
        return inputs["seq_idx"]
    if inputs.get("position_ids") is not None and inputs.get("attention_mask") is None:
        return (inputs["position_ids"] == 0).cumsum(dim=-1)
    return None


@dataclass
class Batch:
    """A batch on its way to the loss. H heads; head k at position t predicts token t + k + 1 (k from 0)."""

    inputs: dict[str, Any]
    hidden: torch.Tensor  # [B, S, D] of the backbone
    targets: torch.Tensor  # [B, S, H], -100 where there is none
    segments: torch.Tensor | None  # [B, S]
    heads_ce: Callable[[], torch.Tensor]

    @cached_property
    def has_target(self) -> torch.Tensor:
        """[B, S, H] bool."""
        return self.targets != -100

    @cached_property
    def ce(self) -> torch.Tensor:
        """[B, S, H] the heads' cross-entropies in nats, without a gradient; computed when first asked for."""
        return self.heads_ce()


@dataclass
class WeightedLoss:
    """The loss of a batch and, without gradients, what it was made of."""

    loss: torch.Tensor  # scalar, the mean over the batch's positions or predictions
    weights: torch.Tensor  # [B, S, H]
    ce: torch.Tensor  # [B, S, H]
    rank: torch.Tensor  # [B, S, H]: how many tokens were likelier than the target
    factors: torch.Tensor  # [B, S, H]: loss = (factors * ce).sum()
    counts: torch.Tensor  # [B] of what the loss is a mean: positions with targets, or predictions


def weighted_loss(
    model: Any, inputs: dict[str, Any], weigh: Callable[[Batch], torch.Tensor], reduction: str
) -> tuple[WeightedLoss, Batch]:
    """[`~lupi_trainer.losses.compute_weighted_mtp_loss`] of a model with `mtp_heads`, in chunks.

    Args:
        model: not wrapped for several processes.
        inputs: `input_ids`, `labels` [B, S], and whatever goes with them.
        weigh: the batch's weights [B, S, H], none negative.
        reduction: as in [`~lupi_trainer.losses.head_coefficients`].
    """
    segments = text_segments(inputs)
    targets = shift_targets(inputs["labels"], model.mtp_heads.horizon, segments)
    by_head = targets.movedim(-1, 0)  # [H, B, S]: a head's predictions together
    chosen = by_head != -100
    hidden = backbone_states(model, inputs)
    states = torch.cat([state[mask] for state, mask in zip(model.mtp_heads(hidden, segments), chosen)])  # [N, D]
    head, wanted = Head(model, model.config.get_text_config().vocab_size), by_head[chosen]

    def spread(values: torch.Tensor) -> torch.Tensor:
        """[N] of the predictions -> [B, S, H], 0 where there is none."""
        return values.new_zeros(by_head.shape).masked_scatter_(chosen, values).movedim(0, -1)

    @torch.no_grad()
    def heads_ce() -> torch.Tensor:
        return spread(chunked_ce(states, head, wanted)[1])

    batch = Batch(inputs, hidden.detach(), targets, segments, heads_ce)
    with torch.no_grad():
        weights = weigh(batch)
        weights = weights.to(torch.promote_types(torch.promote_types(weights.dtype, hidden.dtype), torch.float32))
        factors, _ = head_coefficients(weights, batch.has_target, reduction)
    loss, ce, rank = chunked_ce(states, head, wanted, factors.movedim(-1, 0)[chosen])
    counts = counted(targets, reduction).flatten(1).sum(dim=1)
    return WeightedLoss(loss, weights, spread(ce), spread(rank), factors, counts), batch


def counted(targets: torch.Tensor, reduction: str) -> torch.Tensor:
    """Of what the loss is a mean, as bool: predictions [B, S, H], or positions [B, S] from which there is one."""
    has_target = targets != -100
    return has_target if reduction == "token" else has_target.any(dim=-1)


def row_sums(out: WeightedLoss, batch: Batch) -> torch.Tensor:
    """[B, 5 H + 5]: each head's cross-entropies, hits with one guess and with five, weights and targets; then loss,
    of what it is a mean, entropy, positions, tokens."""
    has_target, learned = batch.has_target, batch.has_target.any(dim=-1)
    hits = [(out.rank < guesses) & has_target for guesses in (1, 5)]
    parts = [out.ce, *hits, out.weights * has_target, has_target]
    sums = [part.to(out.ce.dtype).sum(dim=1) for part in parts]
    loss = (out.factors * out.ce).sum(dim=(1, 2)) * out.counts.sum()
    entropy = (head_entropy(out.weights * has_target) * learned).sum(dim=1)
    mask = batch.inputs.get("attention_mask")
    tokens = learned.new_full((len(loss),), learned.shape[1], dtype=torch.long) if mask is None else mask.sum(dim=1)
    last = [loss, out.counts, entropy, learned.sum(dim=1), tokens]
    return torch.cat([*sums, torch.stack([part.to(out.ce.dtype) for part in last], dim=1)], dim=1).detach()


def means(sums: torch.Tensor) -> dict[str, float]:
    """[5 H + 5] sums over rows -> the logged figures, k from 1: `loss/head_k`, `top1/head_k` and `top5/head_k` (shares
    of targets that are the head's likeliest token, or among its five likeliest), `head_weight/k`."""
    *heads, loss, counts, entropy, positions, _ = sums.tolist()
    horizon = len(heads) // 5
    *parts, targets = (heads[i * horizon : (i + 1) * horizon] for i in range(5))
    figures = {}
    for name, part in zip(("loss/head_", "top1/head_", "top5/head_", "head_weight/"), parts):
        figures |= {f"{name}{k + 1}": part[k] / max(targets[k], 1.0) for k in range(horizon)}
    return figures | {"head_weight/entropy": entropy / max(positions, 1.0), "loss": loss / max(counts, 1.0)}

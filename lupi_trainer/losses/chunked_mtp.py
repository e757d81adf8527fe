"""Cross-entropies of many heads from their states, in chunks of predictions: [B, S, H, V] is never built.

All heads share the chunks and one gradient of the `lm_head`, so the horizon hardly costs memory.
"""

import torch

from ..models.lm_head import Head
from .chunks import Chunk, chunked_loss


def _weighted_ce(logits: torch.Tensor, target: torch.Tensor, factor: torch.Tensor, with_grad: bool) -> Chunk:
    """The equation: logits [n, V] (written over), target and factor [n, 1].

    The gradient with respect to the logits is `factor * (softmax(logits) - onehot(target))`.
    """
    factor = factor.to(logits.dtype)
    log_z = logits.logsumexp(dim=-1, keepdim=True)
    gold = logits.gather(1, target)
    ce = log_z - gold
    rank = (logits > gold).sum(dim=-1, dtype=torch.int32)
    grad = None
    if with_grad:
        grad = logits.sub_(log_z).exp_().mul_(factor)
        grad.scatter_add_(1, target, -factor)
    return Chunk((factor * ce).squeeze(1), (ce.squeeze(1), rank), grad)


def chunked_ce(
    states: torch.Tensor, head: Head, targets: torch.Tensor, factors: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weighted sum of N predictions' cross-entropies.

    Args:
        states: [N, D], what the `lm_head` reads for each.
        head: the model's `lm_head`.
        targets: [N] token ids.
        factors: [N], without a gradient; `None`: the cross-entropies alone are wanted, and no gradient is computed.

    Returns:
        `(total, ce, rank)`: scalar with a gradient, `sum(factors * ce)`; [N] in nats, without a gradient; [N]
        how many tokens are likelier than the target.
    """
    weighted = factors is not None
    factors = factors if weighted else states.new_zeros(len(targets))

    def equation(rows: slice, logits: torch.Tensor, with_grad: bool) -> Chunk:
        return _weighted_ce(logits, targets[rows, None], factors[rows, None], with_grad)

    total, ce, rank = chunked_loss(states, head, equation, with_grad=weighted)
    return total, ce, rank

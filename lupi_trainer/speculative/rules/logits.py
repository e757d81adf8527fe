"""Logits as distributions: of a token its rank and its probability, and whether there is one at all."""

from __future__ import annotations

import torch


def rank(logits: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """logits [B, Q, V], token [B, Q] -> [B, Q] int64: how many logits are strictly larger than the token's."""
    return (logits > logits.gather(-1, token[..., None])).sum(-1)


def probability(logits: torch.Tensor, token: torch.Tensor, temperature: float) -> torch.Tensor:
    """logits [B, Q, V] float32, token [B, Q] -> [B, Q]: softmax(logits / temperature) at the token."""
    if temperature == 0:
        return (logits.argmax(-1) == token).to(logits.dtype)
    scaled = logits / temperature
    return (scaled.gather(-1, token[..., None])[..., 0] - scaled.logsumexp(-1)).exp()


def is_distribution(logits: torch.Tensor) -> torch.Tensor:
    """logits [..., V] -> [...] bool: whether they make one, with no NaN, no +inf, and a token that is possible."""
    return logits.amax(-1).isfinite()  # NaN wins every comparison, and -inf only where there is nothing else


def distribution(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """logits [..., V] -> softmax(logits / temperature); at temperature 0 all of it lies on the largest logit."""
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    return (logits / temperature).softmax(-1)


def gain(logits: torch.Tensor, bare_logits: torch.Tensor) -> torch.Tensor:
    """Both [..., V] -> [...] nats: KL(p || p_bare) at temperature 1, what the knowledge changes in a distribution."""
    log_p = logits.log_softmax(-1)
    # below 0 by rounding alone
    return torch.linalg.vecdot(log_p.exp(), log_p - bare_logits.log_softmax(-1)).clamp(min=0)

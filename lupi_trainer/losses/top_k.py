"""The divergence from a remote teacher, of which the likeliest tokens are known, in chunks of tokens."""

import torch

from ..models.lm_head import Head
from .chunks import Chunk, chunked_loss
from .reference import top_k_divergence


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    """logits [n, V] -> [n], in nats."""
    log_probs = logits.log_softmax(-1)
    return -torch.linalg.vecdot(log_probs.exp(), log_probs)


def _divergence(logits: torch.Tensor, top: torch.Tensor, beta: float, with_grad: bool) -> Chunk:
    """The equation is the reference itself, differentiated over one chunk: logits [n, V], top [n, 2 * K]."""
    ids, log_probs = top.chunk(2, dim=-1)
    entropy = _entropy(logits)
    with torch.set_grad_enabled(with_grad):
        logits.requires_grad_(with_grad)
        loss = top_k_divergence(logits, ids.long(), log_probs, beta)
        grad = torch.autograd.grad(loss.sum(), logits)[0] if with_grad else None
    return Chunk(loss.detach(), (entropy,), grad)


def top_k_divergence_loss(
    student_states: torch.Tensor,
    head: Head,
    top: torch.Tensor,
    completion_mask: torch.Tensor,
    beta: float,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[`~lupi_trainer.losses.top_k_divergence`] over a batch, in chunks of tokens.

    Args:
        student_states: [B, C, H] at completion positions.
        head: the student's `lm_head`, cut to the shared vocabulary.
        top: [B, C, 2 * K], the teacher's likeliest token ids and then their log-probabilities.
        completion_mask: [B, C].
        beta: as in `top_k_divergence`.
        num_items_in_batch: tokens that the sum is divided by; those of this batch unless given.

    Returns:
        Scalar loss, the sum of the student's entropy (nats), and the number of tokens.
    """
    valid = completion_mask.bool()
    top = top[valid]

    def equation(rows: slice, logits: torch.Tensor, with_grad: bool) -> Chunk:
        return _divergence(logits, top[rows], beta, with_grad)

    total, entropy = chunked_loss(student_states[valid], head, equation)
    num_tokens = valid.sum()
    count = num_tokens.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return total / count, entropy.sum(), num_tokens

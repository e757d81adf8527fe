"""The skeleton of every chunked loss: a sum over tokens from hidden states, without the logits [N, V] of all tokens.

The gradient is computed in the forward, chunk by chunk, while a chunk's logits are at hand; the backward only scales
it. So the `lm_head` is multiplied as often as in a dense loss, and nothing of size [N, V] is kept for later. What is
left for a loss to say is its equation: of the logits of a few tokens, the losses and the gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..models.lm_head import Head, loss_dtype


CHUNK_ELEMENTS = 1 << 22  # logits of one model at a time: 131 tokens of a vocabulary of 32,000


class Chunk(NamedTuple):
    """What an equation makes of the logits of n tokens."""

    loss: torch.Tensor  # [n], to be summed over all tokens
    figures: tuple[torch.Tensor, ...]  # [n] each, reported without a gradient
    grad: torch.Tensor | None  # [n, V], of the summed loss with respect to the logits; `None` unless it is wanted


# (rows of the chunk, its logits [n, V], whether the gradient is wanted) -> Chunk; it may write over the logits
Equation = Callable[[slice, torch.Tensor, bool], Chunk]


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, bias, head, equation, with_grad):
        dtype = loss_dtype(states)
        wide = torch.promote_types(dtype, torch.float32)
        wanted = [with_grad and needed for needed in ctx.needs_input_grad[:3]]
        grads = [torch.zeros_like(x, dtype=wide) if want else None for x, want in zip((states, weight, bias), wanted)]
        states_grad, weight_grad, bias_grad = grads
        ctx.dtypes = states.dtype, weight.dtype, None if bias is None else bias.dtype
        size, columns = max(1, CHUNK_ELEMENTS // weight.size(0)), []
        with torch.autocast(states.device.type, enabled=False):
            head = head.cast(dtype)
            for start in range(0, max(1, len(states)), size):  # no tokens are one empty chunk
                rows = slice(start, start + size)
                part = states[rows].to(dtype)
                logits = head.logits(part)
                slope = head.slope(logits) if any(wanted) else None
                loss, figures, grad = equation(rows, logits, any(wanted))
                columns.append((loss, *figures))
                if grad is None:
                    continue
                if slope is not None:
                    grad *= slope
                if bias_grad is not None:
                    bias_grad += grad.sum(dim=0)
                grad = grad.to(dtype)
                if states_grad is not None:
                    states_grad[rows] = (grad @ head.weight).to(wide)
                if weight_grad is not None:
                    weight_grad += grad.t() @ part
        if any(wanted):
            ctx.save_for_backward(*grads)
        loss, *figures = (torch.cat(column) for column in zip(*columns))
        ctx.mark_non_differentiable(*figures)
        return loss.sum(), *figures

    @staticmethod
    def backward(ctx, grad_total, *_):  # ty: ignore[incompatible-method-override] # as torch documents it
        grads = [None if g is None else (g * grad_total).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes)]
        return *grads, None, None, None


def chunked_loss(
    states: torch.Tensor, head: Head, equation: Equation, with_grad: bool = True
) -> tuple[torch.Tensor, ...]:
    """A loss summed over N tokens, [`CHUNK_ELEMENTS`] logits at a time.

    Products are in [`~lupi_trainer.models.lm_head.loss_dtype`]; logits, losses and sums of gradients in float32 at
    least.

    Args:
        states: [N, D], what the `lm_head` reads for each token.
        head: the model's `lm_head`.
        equation: what the loss is, of one chunk.
        with_grad: whether a gradient is wanted, where gradients are enabled at all.

    Returns:
        The sum of the losses, a scalar whose gradient reaches the states and the head's weight and bias; then the
        figures of all chunks, [N] each, without a gradient.
    """
    with_grad = with_grad and torch.is_grad_enabled()
    return _ChunkedLoss.apply(states, head.weight, head.bias, head, equation, with_grad)

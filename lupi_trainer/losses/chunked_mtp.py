"""Cross-entropies of many heads from their states, some hundred tokens at a time: [B, S, H, V] is never built.

The gradient is computed in the forward, chunk by chunk, while the chunk's logits are at hand; the backward only scales
it. All heads share the chunks and one gradient of the `lm_head`, so the horizon hardly costs memory.
"""

import torch

from ..models.lm_head import Head, loss_dtype


CHUNK_ELEMENTS = 1 << 22  # logits at a time: 131 tokens of a vocabulary of 32,000


class _ChunkedCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, bias, head, targets, factors, with_grad):
        num, device = states.size(0), states.device
        dtype = loss_dtype(states)
        result = torch.promote_types(dtype, torch.float32)
        ce = torch.zeros(num, dtype=result, device=device)
        rank = torch.zeros(num, dtype=torch.int32, device=device)
        wants = [with_grad and needed for needed in ctx.needs_input_grad[:3]]
        grads = [torch.zeros_like(x, dtype=result) if w else None for x, w in zip((states, weight, bias), wants)]
        ctx.dtypes = states.dtype, weight.dtype, None if bias is None else bias.dtype
        chunk = max(1, CHUNK_ELEMENTS // weight.size(0))
        with torch.autocast(device.type, enabled=False):
            head = head.cast(dtype)
            for start in range(0, num, chunk):
                rows = slice(start, start + chunk)
                part, target = states[rows].to(dtype), targets[rows, None]
                logits = head.logits(part)
                log_z = logits.logsumexp(dim=-1, keepdim=True)
                gold = logits.gather(1, target)
                ce[rows] = (log_z - gold).squeeze(1)
                rank[rows] = (logits > gold).sum(dim=-1, dtype=torch.int32)
                if not any(wants):
                    continue
                bend = None if head.softcap is None else 1 - (logits / head.softcap).square_()
                factor = factors[rows, None].to(logits.dtype)
                grad = logits.sub_(log_z).exp_().mul_(factor)
                grad.scatter_add_(1, target, -factor)
                if bend is not None:  # logits = cap * tanh(raw / cap)
                    grad *= bend
                if head.scale != 1.0:
                    grad *= head.scale
                if grads[2] is not None:
                    grads[2] += grad.sum(dim=0)
                grad = grad.to(dtype)
                if grads[0] is not None:
                    grads[0][rows] = (grad @ head.weight).to(result)
                if grads[1] is not None:
                    grads[1] += grad.t() @ part
        if any(wants):
            ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(ce, rank)
        return (factors.to(result) * ce).sum(), ce, rank

    @staticmethod
    def backward(ctx, grad_total, *_):
        grads = [None if g is None else (g * grad_total).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes)]
        return *grads, None, None, None, None


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
    with_grad = factors is not None and torch.is_grad_enabled()
    factors = states.new_zeros(len(targets)) if factors is None else factors
    return _ChunkedCE.apply(states, head.weight, head.bias, head, targets, factors, with_grad)

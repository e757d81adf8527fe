"""The distillation loss from hidden states, a few hundred tokens at a time: no model's [N, V] logits are ever built.

The gradient is computed in the forward, chunk by chunk, while the chunk's logits are at hand; the backward only scales
it. So the two heads are multiplied as often as in the dense loss, and nothing of size [N, V] is kept for later.
"""

from dataclasses import dataclass

import torch

from ..models.lm_head import Head, loss_dtype


CHUNK_ELEMENTS = 1 << 22  # logits of one model at a time: 131 tokens of a vocabulary of 32,000


@dataclass
class KDCELoss:
    """What [`chunked_kd_ce`] returns.

    Attributes:
        total: scalar with a gradient, the *sum* of `kd_alpha * T^2 * kd + (1 - kd_alpha) * ce` over tokens.
        kd: [N] KL(teacher || student) at T in nats, without the factor T^2 and without a gradient; 0 without teacher.
        ce: [N] cross-entropy in nats, without a gradient.
        entropy: [N] entropy of the student's distribution at temperature 1, in nats.
        correct: [N] whether the label is the student's likeliest token.
    """

    total: torch.Tensor
    kd: torch.Tensor
    ce: torch.Tensor
    entropy: torch.Tensor
    correct: torch.Tensor


def _normalize(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(probabilities [n, V], log of the normalizer [n, 1])."""
    log_z = logits.logsumexp(dim=-1, keepdim=True)
    return (logits - log_z).exp_(), log_z


class _ChunkedKDCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, student, teacher_hidden, teacher, labels, alpha, temperature, with_grad):
        num_tokens, vocab_size = hidden.size(0), weight.size(0)
        dtype = loss_dtype(hidden)
        result_type = torch.promote_types(dtype, torch.float32)
        kd, ce, entropy = (torch.zeros(num_tokens, dtype=result_type, device=hidden.device) for _ in range(3))
        correct = torch.zeros(num_tokens, dtype=torch.bool, device=hidden.device)
        wants = [with_grad and needed for needed in ctx.needs_input_grad[:3]]
        grads = [
            torch.zeros_like(x, dtype=result_type) if want else None for x, want in zip((hidden, weight, bias), wants)
        ]
        chunk = max(1, CHUNK_ELEMENTS // vocab_size)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        with torch.autocast(hidden.device.type, enabled=False):
            student = student.cast(dtype)
            teacher = teacher.cast(teacher_hidden.dtype) if teacher is not None else None
            for start in range(0, num_tokens, chunk):
                rows = slice(start, start + chunk)
                states = hidden[rows].to(dtype)
                target = labels[rows, None]
                logits = student.logits(states)
                probs, log_z = _normalize(logits)
                gold = logits.gather(1, target)
                ce[rows] = (log_z - gold).squeeze(1)
                correct[rows] = gold.squeeze(1) >= logits.amax(dim=-1)
                entropy[rows] = log_z.squeeze(1) - torch.linalg.vecdot(probs, logits)
                grad = None
                if any(wants):
                    grad = probs.mul_(1 - alpha)
                    grad.scatter_add_(1, target, grad.new_full((1, 1), alpha - 1).expand_as(target))
                if teacher is not None:
                    soft = teacher.logits(teacher_hidden[rows]).to(result_type)
                    soft.div_(temperature)
                    shared = soft.size(1)
                    student_soft = logits[:, :shared] / temperature
                    soft_probs, soft_log_z = _normalize(soft)
                    student_soft_log_z = student_soft.logsumexp(dim=-1, keepdim=True)
                    gap = torch.linalg.vecdot(soft_probs, soft.sub_(student_soft))
                    kd[rows] = gap + (student_soft_log_z - soft_log_z).squeeze(1)
                    if grad is not None:
                        soft_grad = student_soft.sub_(student_soft_log_z).exp_().sub_(soft_probs)
                        grad[:, :shared].add_(soft_grad, alpha=alpha * temperature)
                if grad is not None:
                    if student.softcap is not None:  # logits = cap * tanh(raw / cap)
                        grad *= 1 - (logits / student.softcap).square_()
                    if student.scale != 1.0:
                        grad *= student.scale
                    if grads[2] is not None:
                        grads[2] += grad.sum(dim=0)
                    grad = grad.to(dtype)
                    if grads[0] is not None:
                        grads[0][rows] = (grad @ student.weight).to(result_type)
                    if grads[1] is not None:
                        grads[1] += grad.t() @ states
        if any(wants):
            ctx.save_for_backward(*grads)
        total = (alpha * temperature**2 * kd + (1 - alpha) * ce).sum()
        ctx.mark_non_differentiable(kd, ce, entropy, correct)
        return total, kd, ce, entropy, correct

    @staticmethod
    def backward(ctx, grad_total, *_):
        grads = [None if g is None else (g * grad_total).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes)]
        return *grads, *(None,) * 7


def chunked_kd_ce(
    student_hidden: torch.Tensor,
    student: Head,
    teacher_hidden: torch.Tensor | None,
    teacher: Head | None,
    labels: torch.Tensor,
    kd_alpha: float,
    kd_temperature: float,
) -> KDCELoss:
    """[`~lupi_trainer.losses.kd_ce_loss`] summed over tokens, from hidden states, in chunks of tokens.

    Args:
        student_hidden: [N, H_student], at labeled positions only, each one place before its label.
        student: the student's head, all of its columns.
        teacher_hidden: [N, H_teacher] on the student's device, or `None`: cross-entropy alone.
        teacher: the teacher's head, cut to the columns that both models have, on the student's device.
        labels: [N] token ids.
        kd_alpha: weight of the KL, in [0, 1].
        kd_temperature: temperature of both distributions in the KL.
    """
    return KDCELoss(
        *_ChunkedKDCE.apply(
            student_hidden, student.weight, student.bias, student, teacher_hidden, teacher, labels, kd_alpha,
            kd_temperature, torch.is_grad_enabled(),
        )
    )  # fmt: skip

"""The generalized Jensen-Shannon divergence from the teacher (arXiv 2306.13649, eq. 1), in chunks of tokens.

TRL has the same loss, whose kernels for GPUs project both models once in the forward and once more in the backward.
Here the gradient is made in the forward, so each projection is done once, at the states' own precision: on a CPU,
where TRL's has no kernel and multiplies padding, too, and all of it in float32, it takes a fraction of the time.
"""

import math

import torch

from ..models.lm_head import Head
from .chunks import Chunk, chunked_loss


def _divergence(
    logits: torch.Tensor, teacher_logits: torch.Tensor, beta: float, temperature: float, with_grad: bool
) -> Chunk:
    """The equation: logits [n, V] and teacher_logits [n, V], both written over.

    With softmaxes p of the teacher and q of the student at the temperature T, and m = beta * p + (1 - beta) * q, the
    loss is KL(p || q) for beta = 0, KL(q || p) for beta = 1 and else beta * KL(p || m) + (1 - beta) * KL(q || m). Its
    gradient with respect to the student's logits is, times T, q - p for beta = 0, and else
    w * q * (log(q / r) - KL(q || r)), where for beta = 1 r = p and w = 1, and else r = m and w = 1 - beta.
    """
    if temperature != 1.0:
        logits.div_(temperature)
        teacher_logits.div_(temperature)
    log_q, log_p = logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    q = log_q.exp()
    entropy = -torch.linalg.vecdot(q, log_q)
    if beta == 0.0:
        p = log_p.exp()
        loss = torch.linalg.vecdot(p, log_p.sub_(log_q))
        grad = q.sub_(p) if with_grad else None
    else:
        log_r, weight, from_teacher = log_p, 1.0, 0.0
        if beta != 1.0:
            weight = 1 - beta
            log_r = torch.logaddexp(log_p + math.log(beta), log_q + math.log(weight))
            from_teacher = beta * torch.linalg.vecdot(log_p.exp(), log_p.sub_(log_r))
        gap = log_q.sub_(log_r)
        from_student = torch.linalg.vecdot(q, gap)
        loss = from_teacher + weight * from_student
        grad = gap.sub_(from_student[:, None]).mul_(q).mul_(weight) if with_grad else None
    if grad is not None and temperature != 1.0:
        grad.div_(temperature)
    return Chunk(loss, (entropy,), grad)


def divergence_loss(
    student_states: torch.Tensor,
    student: Head,
    teacher_states: torch.Tensor,
    teacher: Head,
    completion_mask: torch.Tensor,
    beta: float,
    num_items_in_batch: torch.Tensor | int | None = None,
    temperature: float = 1.0,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The divergence over a batch, from hidden states, in chunks of tokens.

    Products are in the dtype of each model's states (autocast's for the student, where it is on); logits and losses
    in float32 at least.

    Args:
        student_states: [B, C, H_student] at completion positions, each one before its token.
        student: the student's `lm_head`, cut to the shared vocabulary.
        teacher_states: [B, C, H_teacher], on the student's device.
        teacher: the teacher's `lm_head`, cut likewise, on the student's device.
        completion_mask: [B, C], 1 at tokens of the loss; what lies elsewhere is not read.
        beta: 0 is KL(teacher || student), 1 is KL(student || teacher), between them the generalized
            Jensen-Shannon divergence.
        num_items_in_batch: tokens that the sum is divided by; those of this batch unless given.
        temperature: of both distributions.
        weights: [B, C], what each token's divergence is multiplied by; `None`: 1.

    Returns:
        Scalar loss in nats, whose gradient reaches the student's states and head; the sum of the student's entropy
        at the temperature (nats); and the number of tokens.
    """
    valid = completion_mask != 0
    states, teacher = teacher_states[valid], teacher.cast(teacher_states.dtype)
    token_weights = None if weights is None else weights[valid]

    def equation(rows: slice, logits: torch.Tensor, with_grad: bool) -> Chunk:
        teacher_logits = teacher.logits(states[rows]).to(logits.dtype)
        loss, figures, grad = _divergence(logits, teacher_logits, beta, temperature, with_grad)
        if token_weights is not None:
            of_rows = token_weights[rows].to(loss.dtype)
            loss = loss * of_rows
            grad = None if grad is None else grad.mul_(of_rows[:, None])
        return Chunk(loss, figures, grad)

    total, entropy = chunked_loss(student_states[valid], student, equation)
    num_tokens = valid.sum()
    count = num_tokens.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    if isinstance(count, torch.Tensor):
        count = count.to(total.device)
    return total / count, entropy.sum(), num_tokens

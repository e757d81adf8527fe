"""The distillation loss from hidden states, in chunks of tokens; its dense reference is `kd_ce_loss`."""

from dataclasses import dataclass

import torch

from ..models.lm_head import Head
from .chunks import Chunk, chunked_loss


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


def _kd_ce(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    label: torch.Tensor,
    alpha: float,
    temperature: float,
    with_grad: bool,
) -> Chunk:
    """The equation: logits [n, V], teacher_logits [n, V' <= V] (written over) and label [n, 1].

    With softmaxes p of the teacher and q of the student at T, and s of the student at 1, the gradient with respect to
    the student's logits is `alpha * T * (q - p) + (1 - alpha) * (s - onehot(label))`.
    """
    probs, log_z = _normalize(logits)
    gold = logits.gather(1, label)
    ce = (log_z - gold).squeeze(1)
    correct = gold.squeeze(1) >= logits.amax(dim=-1)
    entropy = log_z.squeeze(1) - torch.linalg.vecdot(probs, logits)
    kd, grad = torch.zeros_like(ce), None
    if with_grad:
        grad = probs.mul_(1 - alpha)
        grad.scatter_add_(1, label, grad.new_full((1, 1), alpha - 1).expand_as(label))
    if teacher_logits is not None:
        soft = teacher_logits.to(logits.dtype).div_(temperature)
        student_soft = logits[:, : soft.size(1)] / temperature
        p, soft_log_z = _normalize(soft)
        student_log_z = student_soft.logsumexp(dim=-1, keepdim=True)
        kd = torch.linalg.vecdot(p, soft.sub_(student_soft)) + (student_log_z - soft_log_z).squeeze(1)
        if grad is not None:
            q = student_soft.sub_(student_log_z).exp_()
            grad[:, : q.size(1)].add_(q.sub_(p), alpha=alpha * temperature)
    return Chunk(alpha * temperature**2 * kd + (1 - alpha) * ce, (kd, ce, entropy, correct), grad)


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
        student_hidden: [N, H_student], at labeled positions only, each one position before its label.
        student: the student's head, all of its columns.
        teacher_hidden: [N, H_teacher] on the student's device, or `None`: cross-entropy alone.
        teacher: the teacher's head, cut to the columns that both models have, on the student's device.
        labels: [N] token ids.
        kd_alpha: weight of the KL, in [0, 1].
        kd_temperature: temperature of both distributions in the KL.
    """
    if teacher_hidden is not None and teacher is not None:
        teacher = teacher.cast(teacher_hidden.dtype)

    def equation(rows: slice, logits: torch.Tensor, with_grad: bool) -> Chunk:
        known = teacher is not None and teacher_hidden is not None
        teacher_logits = teacher.logits(teacher_hidden[rows]) if known else None
        return _kd_ce(logits, teacher_logits, labels[rows, None], kd_alpha, kd_temperature, with_grad)

    return KDCELoss(*chunked_loss(student_hidden, student, equation))

"""Losses on plain tensors, dense and readable: the references that trainers' chunked losses are tested against."""

import torch
import torch.nn.functional as F


def kd_ce_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    kd_alpha: float,
    kd_temperature: float,
) -> torch.Tensor:
    """Distillation and cross-entropy: `kd_alpha * T^2 * KL(teacher || student at T) + (1 - kd_alpha) * CE`.

    The soft targets and the factor `T^2`, which keeps the two gradients in proportion, are those of Hinton et al.,
    arXiv 1503.02531, section 2; the mixture is that of KD-LoRA, arXiv 2410.20777.

    Args:
        student_logits: [B, S, V_student], aligned: position t predicts `labels[:, t]`.
        teacher_logits: [B, S, V_teacher]. Where one vocabulary is padded to more columns than the other, the KL is
            that of the columns that both have; the cross-entropy is the student's own, over all of its columns.
        labels: [B, S] token ids, -100 where nothing is to be learned.
        kd_alpha: weight of the KL, in [0, 1].
        kd_temperature: T > 0 of both distributions in the KL (in nats); the cross-entropy is at temperature 1.

    Returns:
        Scalar, the mean over labelled tokens; 0 where there are none.

    Raises:
        ValueError: `kd_alpha` or `kd_temperature` out of range.
    """
    check_kd_arguments(kd_alpha, kd_temperature)
    labelled = labels != -100
    student, teacher = student_logits[labelled], teacher_logits[labelled]
    shared = min(student.size(-1), teacher.size(-1))
    ce = F.cross_entropy(student, labels[labelled], reduction="sum")
    student_log_probs = F.log_softmax(student[:, :shared] / kd_temperature, dim=-1)
    teacher_log_probs = F.log_softmax(teacher[:, :shared] / kd_temperature, dim=-1)
    kl = F.kl_div(student_log_probs, teacher_log_probs, reduction="sum", log_target=True)
    return (kd_alpha * kd_temperature**2 * kl + (1 - kd_alpha) * ce) / labelled.sum().clamp(min=1)


def check_kd_arguments(kd_alpha: float, kd_temperature: float) -> None:
    """Refuse a weight that is no share and a temperature that is none.

    Raises:
        ValueError: `kd_alpha` outside [0, 1], or `kd_temperature` not above 0.
    """
    if not 0.0 <= kd_alpha <= 1.0:
        raise ValueError(f"kd_alpha must be in [0, 1], got {kd_alpha}: it is the weight of the distillation term")
    if not 0.0 < kd_temperature < float("inf"):
        raise ValueError(f"kd_temperature must be above 0, got {kd_temperature}")

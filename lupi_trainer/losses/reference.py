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
        Scalar, the mean over labeled tokens; 0 where there are none.

    Raises:
        ValueError: `kd_alpha` or `kd_temperature` out of range.

    Example:

    ```python
    >>> import torch
    >>> from lupi_trainer.losses import kd_ce_loss

    >>> logits, labels = torch.zeros(1, 2, 4), torch.tensor([[3, -100]])
    >>> kd_ce_loss(logits, logits, labels, kd_alpha=0.5, kd_temperature=2.0)  # log(4) / 2: both are uniform
    tensor(0.6931)
    ```
    """
    check_kd_arguments(kd_alpha, kd_temperature)
    labeled = labels != -100
    student, teacher = student_logits[labeled], teacher_logits[labeled]
    shared = min(student.size(-1), teacher.size(-1))
    log_q = F.log_softmax(student[:, :shared] / kd_temperature, dim=-1)
    log_p = F.log_softmax(teacher[:, :shared] / kd_temperature, dim=-1)
    kl = _kl(log_p, log_q).sum()
    ce = F.cross_entropy(student, labels[labeled], reduction="sum")
    return (kd_alpha * kd_temperature**2 * kl + (1 - kd_alpha) * ce) / labeled.sum().clamp(min=1)


def check_kd_arguments(kd_alpha: float, kd_temperature: float) -> None:
    """Refuse a weight or a temperature that is out of range.

    Raises:
        ValueError: `kd_alpha` outside [0, 1], or `kd_temperature` not above 0.

    Args:
        kd_alpha: weight of the distillation term.
        kd_temperature: of both distributions in it.

    Example:

    ```python
    >>> from lupi_trainer.losses import check_kd_arguments

    >>> check_kd_arguments(kd_alpha=0.1, kd_temperature=2.0)
    ```
    """
    if not 0.0 <= kd_alpha <= 1.0:
        raise ValueError(f"kd_alpha must be in [0, 1], got {kd_alpha}: it is the weight of the distillation term")
    if not 0.0 < kd_temperature < float("inf"):
        raise ValueError(f"kd_temperature must be above 0, got {kd_temperature}")


def shift_targets(
    target_ids: torch.Tensor, horizon: int, segment_ids: torch.Tensor | None = None, ignore_index: int = -100
) -> torch.Tensor:
    """What every head is to predict at every position: head k at position t predicts `target_ids[:, t + k + 1]`.

    Args:
        target_ids: [B, S] unshifted labels, `ignore_index` where nothing is to be learned.
        horizon: H, the number of heads; head 0 here is the model's own next-token head.
        segment_ids: [B, S] which of several packed texts a position belongs to; no head looks into the next text.

    Returns:
        [B, S, H] token ids, `ignore_index` beyond the end of the text.

    Raises:
        ValueError: a horizon below 1.

    Example:

    ```python
    >>> import torch
    >>> from lupi_trainer.losses import shift_targets

    >>> shift_targets(torch.tensor([[5, 6, 7]]), horizon=2)
    tensor([[[   6,    7],
             [   7, -100],
             [-100, -100]]])
    ```
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}")
    batch, length = target_ids.shape
    shifted = target_ids.new_full((batch, length, horizon), ignore_index)
    for k in range(min(horizon, length - 1)):
        ahead = target_ids[:, k + 1 :]
        if segment_ids is not None:
            ahead = ahead.masked_fill(segment_ids[:, k + 1 :] != segment_ids[:, : -(k + 1)], ignore_index)
        shifted[:, : length - k - 1, k] = ahead
    return shifted


def head_coefficients(
    head_weights: torch.Tensor, has_target: torch.Tensor, reduction: str = "position"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of the heads' cross-entropies in the loss, which is their weighted sum.

    Args:
        head_weights: [B, S, H], none negative.
        has_target: [B, S, H] bool.
        reduction: `"position"`: the mean over positions of each position's weighted mean over its heads, so that a
            weight counts against the position's other heads only; `"token"`: one weighted mean over all predictions,
            so that it counts against other positions too.

    Returns:
        ([B, S, H] factors that sum to 1, or to 0 where nothing counts; [B, S] bool, the positions that count: those
        whose weights sum to more than 1e-8).

    Raises:
        ValueError: an unknown reduction.

    Example:

    ```python
    >>> import torch
    >>> from lupi_trainer.losses import head_coefficients

    >>> factors, counts = head_coefficients(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[True, True]]]))
    >>> factors
    tensor([[[0.2500, 0.7500]]])
    ```
    """
    if reduction not in ("position", "token"):
        raise ValueError(f"reduction must be 'position' or 'token', got {reduction!r}")
    weights = head_weights * has_target
    sums = weights.sum(dim=-1)
    counts = sums > 1e-8
    weights = weights * counts[..., None]
    if reduction == "token":
        return weights / weights.sum().clamp(min=1e-8), counts
    return weights / sums.clamp(min=1e-8)[..., None] / counts.sum().clamp(min=1), counts


def compute_weighted_mtp_loss(
    logits: torch.Tensor,
    target_ids: torch.Tensor,
    head_weights: torch.Tensor,
    horizon: int = 4,
    ignore_index: int = -100,
    segment_ids: torch.Tensor | None = None,
    reduction: str = "position",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weighted multi-token prediction: at each position the weighted mean of its heads' cross-entropies.

    `L = mean over t of sum_k w[t, k] CE[t, k] / sum_k w[t, k]`, over the positions t with `sum_k w > 1e-8` (k: heads
    that have a target there). With weights of one it is the loss of multi-token prediction, arXiv 2404.19737,
    equation 2, as a mean over heads.

    Args:
        logits: [B, S, H, V], of every head at every position.
        target_ids: [B, S] unshifted labels: head k at position t predicts `target_ids[:, t + k + 1]`.
        head_weights: [B, S, H], none negative; without a gradient of their own, normally.
        horizon: H.
        ignore_index: the label of what is not to be learned.
        segment_ids, reduction: as in [`shift_targets`] and [`head_coefficients`].

    Returns:
        `(weighted_loss, valid_mask, ce_per_head)`: scalar, 0 where nothing counts; [B, S] bool, the positions that
        count; [B, S, H] in nats, 0 where there is no target.

    Raises:
        ValueError: shapes that do not match, or an unknown reduction.

    Example:

    ```python
    >>> import torch
    >>> from lupi_trainer.losses import compute_weighted_mtp_loss

    >>> logits, weights = torch.zeros(1, 3, 2, 4), torch.ones(1, 3, 2)
    >>> loss, valid, ce = compute_weighted_mtp_loss(logits, torch.tensor([[0, 1, 2]]), weights, horizon=2)
    >>> loss, valid  # log(4)
    (tensor(1.3863), tensor([[ True,  True, False]]))
    ```
    """
    expected = (*target_ids.shape, horizon)
    if logits.shape[:-1] != expected or head_weights.shape != expected:
        raise ValueError(
            f"with target_ids {tuple(target_ids.shape)} and horizon={horizon}, logits must be {expected} + (V,) and "
            f"head_weights {expected}; got {tuple(logits.shape)} and {tuple(head_weights.shape)}"
        )
    targets = shift_targets(target_ids, horizon, segment_ids, ignore_index)
    ce = F.cross_entropy(
        logits.flatten(0, 2).to(torch.promote_types(logits.dtype, torch.float32)),
        targets.flatten(),
        ignore_index=ignore_index,
        reduction="none",
    ).view(expected)
    factors, counts = head_coefficients(head_weights, targets != ignore_index, reduction)
    return (factors * ce).sum(), counts, ce


def top_k_divergence(
    student_logits: torch.Tensor, teacher_ids: torch.Tensor, teacher_log_probs: torch.Tensor, beta: float
) -> torch.Tensor:
    """Divergence between two next-token distributions of which the teacher's likeliest tokens are known.

    All other tokens are one bucket, to which both give what is left of their probability. Merging tokens can only
    lower a divergence, so this is a lower bound of the one over the full vocabulary, and equal to it where K = V or
    where the student spreads the bucket as the teacher does. `beta` is that of [`~trl.DistillationTrainer`]: 0 is
    KL(teacher || student), 1 is KL(student || teacher), between them the generalized Jensen-Shannon divergence with
    mixture `(1 - beta) * student + beta * teacher` (arXiv 2306.13649).

    Args:
        student_logits: [N, V], at the temperature of the teacher's probabilities.
        teacher_ids: [N, K] int64; V or more where there is no token.
        teacher_log_probs: [N, K] natural logarithms.
        beta: in [0, 1].

    Returns:
        [N] float32, in nats.

    Example:

    ```python
    >>> import torch
    >>> from lupi_trainer.losses import top_k_divergence

    >>> teacher_log_probs = torch.tensor([[0.5, 0.25]]).log()  # of tokens 0 and 1; all others have 0.25 together
    >>> top_k_divergence(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0, 1]]), teacher_log_probs, beta=0.0)
    tensor([0.])
    ```
    """
    log_q, log_p, present = _bucketed(student_logits.float(), teacher_ids, teacher_log_probs)
    # absent entries are made equal and improbable, so that neither they nor their gradients count
    log_q, log_p = log_q.masked_fill(~present, -1e4), log_p.masked_fill(~present, -1e4)
    if beta == 0.0:
        return _kl(log_p, log_q)
    if beta == 1.0:
        return _kl(log_q, log_p)
    shares = torch.tensor([1 - beta, beta], device=log_q.device).log()
    log_m = torch.logaddexp(log_q + shares[0], log_p + shares[1])
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """[N, K] -> [N], KL(p || q) in nats."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _bucketed(
    logits: torch.Tensor, ids: torch.Tensor, log_probs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logarithms of both models' probabilities of the K known tokens, and of all others together in the last column.

    Returns:
        `(log_q, log_p, present)`: [N, K + 1] of the student and of the teacher; [N, K + 1] bool, false where there is
        no token, and in the last column where all tokens are known.
    """
    vocab_size = logits.size(-1)
    known = ids < vocab_size
    ids = ids.clamp(max=vocab_size)
    logits = F.pad(logits, (0, 1), value=-torch.inf)  # a sink column for ids that are no token
    rest = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    log_q = torch.cat([logits.gather(-1, ids), rest], -1) - logits.logsumexp(-1, keepdim=True)
    # a sum of float32 probabilities cannot tell less than this from nothing
    left = (1 - (log_probs.double().exp() * known).sum(-1, keepdim=True)).clamp(min=1e-7).log().float()
    log_p = torch.cat([log_probs.float(), left], -1)
    present = torch.cat([known, known.sum(-1, keepdim=True) < vocab_size], -1)
    return log_q, log_p, present

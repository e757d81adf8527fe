"""The losses: their equations (`reference`), and the same over chunks of tokens, for models of any vocabulary."""

from .reference import (
    check_kd_arguments,
    compute_weighted_mtp_loss,
    head_coefficients,
    kd_ce_loss,
    shift_targets,
    top_k_divergence,
)


__all__ = [
    "check_kd_arguments",
    "compute_weighted_mtp_loss",
    "head_coefficients",
    "kd_ce_loss",
    "shift_targets",
    "top_k_divergence",
]

"""Training that stops before the optimizer would take a step on numbers that are not finite."""

from typing import Any

import torch

from ..models.loading import keep_4bit_exact
from .private import TrainerHooks


class FiniteSteps(TrainerHooks):
    """Mix-in for a [`~transformers.Trainer`]: a loss or gradient that is NaN or infinite ends the run, with its step;
    4-bit layers keep their backward on every CPU.

    One question to the device an optimizer step. With float16, whose loss scaler skips steps with overflown
    gradients by itself, only the loss is looked at.

    Raises:
        `FloatingPointError`: from `train()`; the weights are those of the step before.
    """

    model: Any
    _losses_finite: torch.Tensor | None = None  # [] bool: of the batches accumulated so far

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        keep_4bit_exact(self.model)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        finite = loss.isfinite().all()
        self._losses_finite = finite if self._losses_finite is None else self._losses_finite & finite
        return loss

    def gradient_norm(self, model, norm):
        norm = super().gradient_norm(model, norm)
        losses_finite, self._losses_finite = self._losses_finite, None
        finite = losses_finite
        assert finite is not None  # a gradient comes of a loss
        if norm is not None and self.accelerator.scaler is None:
            finite = finite & torch.as_tensor(norm, device=finite.device).isfinite()
        if not finite:
            what, step = "gradient" if losses_finite else "loss", self.state.global_step
            raise FloatingPointError(
                f"step {step + 1}: the {what} is NaN or infinite{self._where_not_finite()}. The weights are still "
                f"those of step {step}; a lower learning rate, bfloat16 or float32 may help"
            )
        return norm

    def _where_not_finite(self) -> str:
        """What else the message says about the step."""
        return ""

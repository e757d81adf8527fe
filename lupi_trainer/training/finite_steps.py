"""Training that stops before the optimizer would take a step on numbers that are not finite."""

from typing import Any

import torch

from ..models.loading import keep_4bit_exact
from .mixins import TrainerMixin


class FiniteSteps(TrainerMixin):
    """Mix-in for a [`~transformers.Trainer`]: a loss or gradient that is NaN or infinite ends the run, with its step;
    4-bit layers keep their backward on every CPU.

    One question to the device an optimizer step. With float16, whose loss scaler skips steps with overflown
    gradients by itself, only the loss is looked at.

    Raises:
        `FloatingPointError`: from `train()`; the weights are those of the step before.
    """

    model: Any
    _sound: torch.Tensor | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        keep_4bit_exact(self.model)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        sound = loss.isfinite().all()
        self._sound = sound if self._sound is None else self._sound & sound
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        loss_is_sound, self._sound = self._sound, None
        sound = loss_is_sound
        assert sound is not None  # a gradient comes of a loss
        if norm is not None and self.accelerator.scaler is None:
            sound = sound & torch.as_tensor(norm, device=sound.device).isfinite()
        if not sound:
            what, step = "gradient" if loss_is_sound else "loss", self.state.global_step
            raise FloatingPointError(
                f"step {step + 1}: the {what} is NaN or infinite{self._unsound_where()}. The weights are still those "
                f"of step {step}; a lower learning rate, bfloat16 or float32 may help"
            )
        return norm

    def _unsound_where(self) -> str:
        """What else the message says about the step."""
        return ""

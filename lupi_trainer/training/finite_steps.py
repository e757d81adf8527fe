"""Training that stops before the optimizer would take a step on numbers that are not finite, or one of no effect."""

import os
from collections.abc import Sized
from typing import Any

import torch

from ..models.loading import keep_4bit_exact
from .movement import require_movement
from .private import TrainerHooks


_ROUNDING = 1e-5  # a student that is as its teacher has such a loss, and may have no gradient
_FIRST = 5  # steps of a run that are not all without any effect


class FiniteSteps(TrainerHooks):
    """Mix-in for a [`~transformers.Trainer`]: a loss or gradient that is NaN or infinite ends the run, with its step;
    so does a gradient that is zero everywhere though the loss is not, and a loss or gradient that is exactly 0 in each
    of the first five steps. 4-bit layers keep their backward on every CPU.

    One question to the device an optimizer step. With float16, whose loss scaler skips steps with overflown
    gradients by itself, gradients may be infinite.

    Raises:
        `ValueError`: at construction; the model has nothing that can be trained, or its weights would not move.
        `FloatingPointError`: from `train()`; the weights are those of the step before.
        `RuntimeError`: from `train()`; the loss does not reach the weights or is always 0, or a stream of records had
            none.
    """

    model: Any
    train_dataset: Any
    _losses: torch.Tensor | None = None
    """[3] bool, of the batches accumulated so far: all finite, any beyond rounding, any not exactly 0."""
    _zero_steps = 0  # of the run's first ones, all of which were without effect

    def __init__(self, *args, **kwargs):
        folder = getattr(kwargs.get("args"), "output_dir", None)
        is_new = folder is not None and not os.path.exists(folder)
        super().__init__(*args, **kwargs)
        keep_4bit_exact(self.model)
        try:
            self.require_trainable()
        except ValueError:
            if is_new and os.path.isdir(folder) and not os.listdir(folder):
                os.rmdir(folder)  # transformers makes it before anything is known of the weights
            raise

    def require_trainable(self) -> None:
        """Raise ValueError if no parameter of the model requires a gradient, one does that a given optimizer does not
        hold, or too many are of a type that rounds their steps away."""
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ValueError(
                f"nothing can be trained: no parameter of the {type(self.model).__name__} requires a gradient. Load "
                "an adapter with `is_trainable=True`, pass a `peft_config`, or set `requires_grad_(True)` where the "
                "model is to learn"
            )

        groups = getattr(self.optimizer, "param_groups", None)  # of one that was given to the constructor
        held = {id(parameter) for group in groups or () for parameter in group["params"]}
        left = [n for n, p in self.model.named_parameters() if p.requires_grad and id(p) not in held]
        if groups is not None and left:
            raise ValueError(
                f"the optimizer does not hold {len(left)} of the parameters that are to be trained, the first of them "
                f"{left[0]!r}: make it of the model with its adapter or heads, or give none; freeze what is not to "
                "be trained by `requires_grad_(False)`"
            )
        if self.accelerator.is_main_process:  # others may have no weights yet
            require_movement(self)

    def train(self, *args, **kwargs):
        self._zero_steps = 0
        output = super().train(*args, **kwargs)
        if not self.state.global_step and not isinstance(self.train_dataset, Sized):
            raise RuntimeError("nothing was trained: the stream of records ended without a row that could be learned")
        return output

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        finite, moves, counts = loss.isfinite().all(), (loss.abs() > _ROUNDING).any(), (loss != 0).any()
        if self._losses is not None:
            finite, moves, counts = finite & self._losses[0], moves | self._losses[1], counts | self._losses[2]
        self._losses = torch.stack([finite, moves, counts])
        return loss

    def gradient_norm(self, model, norm):
        norm = super().gradient_norm(model, norm)
        losses, self._losses = self._losses, None
        assert losses is not None  # a gradient comes of a loss
        losses_finite, losses_move, losses_count = losses.unbind()
        finite, moves = losses_finite, ~losses_move
        if norm is not None:
            gradient = torch.as_tensor(norm, device=losses.device)
            moves = moves | (gradient != 0)
            if self.accelerator.scaler is None:
                finite = finite & gradient.isfinite()
        if not finite & moves:
            self._stop(bool(finite), bool(losses_finite))
        if self.state.global_step == self._zero_steps < _FIRST:
            self._look_for_zeros(losses_count, norm)
        return norm

    def _look_for_zeros(self, losses_count: torch.Tensor, norm: Any) -> None:
        """Count a step that had no effect, if all before it had none either."""
        counts = self.accelerator.reduce(losses_count.float(), reduction="sum")
        what = "loss" if counts == 0 else "gradient" if norm is not None and norm == 0 else None
        self._zero_steps += what is not None
        if self._zero_steps == _FIRST:
            raise RuntimeError(
                f"the {what} is exactly 0 in each of the first {_FIRST} steps: nothing is learned. A student that "
                "is its own teacher learns from records with knowledge alone; else look for a loss with weights of 0"
            )

    def _stop(self, finite: bool, losses_finite: bool) -> None:
        step = self.state.global_step
        if finite:
            raise RuntimeError(
                f"step {step + 1}: the loss is not zero, but the gradient is, of every trainable parameter: nothing "
                "would be learned. What is trained has no part in the loss, or a layer on the way has no backward"
            )
        raise FloatingPointError(
            f"step {step + 1}: the {'gradient' if losses_finite else 'loss'} is NaN or infinite"
            f"{self._where_not_finite()}. The weights are still those of step {step}; a lower learning rate, bfloat16 "
            "or float32 may help"
        )

    def _where_not_finite(self) -> str:
        """What else the message says about the step."""
        return ""

"""What a run has learned, and what it has cost, every so many steps."""

import time
from collections.abc import Callable
from typing import Any

from transformers import Trainer, TrainerCallback


class Track(TrainerCallback):
    """Measures a trainer's student along its run; the measuring itself costs it nothing.

    Args:
        trainer: any [`~transformers.Trainer`] whose batches have `completion_mask` or `labels`.
        measure: (model) to named figures.
        every: optimizer steps between two measures; the first step and the last are always measured.
        say: is told every point of the curve.

    Attributes:
        curve: dictionaries of `step`, `tokens` (supervised: those that the loss was taken on), `seconds` (of training
            steps, rollouts included), and what `measure` gives.
    """

    def __init__(
        self,
        trainer: Trainer,
        measure: Callable[[Any], dict[str, float]],
        every: int,
        say: Callable[[dict[str, float]], None] | None = None,
    ):
        self.measure, self.every, self.say = measure, every, say
        self.curve: list[dict[str, float]] = []
        self.tokens, self.seconds, self._started = 0, 0.0, 0.0
        compute_loss = trainer.compute_loss

        def counted(model, inputs, *args, **kwargs):
            mask = inputs["completion_mask"] if "completion_mask" in inputs else inputs["labels"] != -100
            self.tokens += int(mask.sum())
            return compute_loss(model, inputs, *args, **kwargs)

        trainer.compute_loss = counted
        trainer.add_callback(self)

    def _take(self, step: int, model) -> None:
        point = {"step": step, "tokens": self.tokens, "seconds": round(self.seconds, 2)}
        self.curve.append(point | self.measure(model))
        if self.say is not None:
            self.say(self.curve[-1])

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._take(0, model)

    def on_step_begin(self, args, state, control, **kwargs):
        self._started = time.perf_counter()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seconds += time.perf_counter() - self._started
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._take(state.global_step, model)

"""Ctrl-C and other signals: where a training was when it was stopped, and how it goes on."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from .checkpoints import last_complete_checkpoint
from .signals import AtNextStep, Signalled, ending_at_next_step


class Stopped(Signalled):
    """A signal while a training runs; its text says where it was, and from which step the same command goes on."""

    def __init__(self, text: str, error: BaseException):
        super().__init__(getattr(error, "number", signal.SIGINT), text)


class SaveAndStop(TrainerCallback):
    """Ends a training at the first step after a SIGTERM on any process, when its checkpoint is complete.

    Args:
        trainer: it is added to.
        wish: where the signal is kept.
    """

    def __init__(self, trainer: Any, wish: AtNextStep):
        self.trainer, self.wish = trainer, wish
        self.agreed = False  # by all processes, at one step

    def on_train_begin(self, args, state, control, **kwargs):
        self.wish.active = True

    def on_train_end(self, args, state, control, **kwargs):
        self.wish.active = False

    def on_step_end(self, args, state, control, **kwargs):
        self._agree(control)

    def on_evaluate(self, args, state, control, **kwargs):
        if self.wish.active:  # the checkpoint of this step is still to come
            self._agree(control)

    def on_save(self, args, state, control, **kwargs):
        if self.agreed:
            self.trainer.accelerator.wait_for_everyone()  # the main process has put the seal on it
            raise Signalled(signal.SIGTERM)

    def _agree(self, control: Any) -> None:
        accelerator, asked = self.trainer.accelerator, self.wish.asked
        if accelerator.num_processes > 1:
            wishes = torch.tensor(float(asked), device=accelerator.device)
            asked = bool(accelerator.reduce(wishes, reduction="sum") > 0)
        if asked:
            self.agreed = control.should_save = control.should_training_stop = True


@contextmanager
def saving_on_sigterm(trainer: Any, wanted: bool = True) -> Generator[None]:
    """Inside, SIGTERM ends a training with a checkpoint of the step that it is at.

    Args:
        trainer: whose training it is.
        wanted: else it ends at once, as by Ctrl-C.

    Raises:
        Signalled: when the checkpoint is there, or at once where no step is taken.
    """
    if not wanted:
        yield
        return
    wish = AtNextStep()
    trainer.add_callback(SaveAndStop(trainer, wish))
    with ending_at_next_step(wish):
        yield


def how_to_go_on(args: Any, state: Any, resumed_from: str | None) -> str:
    """What is said after Ctrl-C.

    Args:
        args: the run's configuration.
        state: transformers' `TrainerState`.
        resumed_from: the checkpoint that this process began with.
    """
    stopped = f"stopped at step {state.global_step}"
    folder = last_complete_checkpoint(args.output_dir)
    if folder is not None:
        step = Path(folder).name.rpartition("-")[2]
        return f"{stopped}; the same command with --resume_from_checkpoint true goes on from step {step}"
    if resumed_from is not None:
        return f"{stopped}; the same command goes on from {resumed_from} again: no later checkpoint is complete"
    strategy = getattr(args.save_strategy, "value", args.save_strategy)
    every = f"save_strategy is {strategy!r}" if strategy != "steps" else f"save_steps is {args.save_steps:g}"
    return f"{stopped}; the same command begins anew: there is no complete checkpoint yet ({every})"

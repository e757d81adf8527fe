"""What goes to W&B and trackio beside what transformers sends there."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from types import ModuleType

from transformers import TrainerCallback
from transformers.integrations import TrackioCallback


# Metrics of rollouts: transformers puts `train/` before every name; these are reported under their own names too.
ROLLOUT_METRICS = ("acc_rate/", "gamma/", "tokens/", "rollout/")
# transformers' name in the log -> one more name
ALIASES = {"learning_rate": "train/lr", "eval_loss": "val/loss"}


def reported_names(logs: Mapping[str, float], step: int) -> dict[str, float]:
    """The names that transformers' own callbacks do not write, for one log.

    Args:
        logs: a log as the trainer makes it.
        step: optimizer steps done.

    Returns:
        `acc_rate/*`, `gamma/*`, `tokens/*` and `rollout/*` of training as they are (transformers writes them as
        `train/acc_rate/*` ..., and those of evaluations as `eval/acc_rate/*` ...), `train/lr`, `train/step` and
        `val/loss`.
    """
    names = {k: v for k, v in logs.items() if k.startswith(ROLLOUT_METRICS)}
    names |= {alias: logs[name] for name, alias in ALIASES.items() if name in logs}
    if "loss" in logs:
        names["train/step"] = step
    return names


class RolloutReport(TrainerCallback):
    """Reports rollout metrics under their plain names, draft lengths as a histogram, and texts with their writers.

    transformers' own callbacks go on reporting as for every trainer. This one adds, in the same W&B or trackio run:
    what [`reported_names`] says, `gamma/history` (a histogram of the draft lengths of all rounds since the last log)
    and, if texts are logged, `rollouts` (a table with the tokens that the teacher wrote in brackets).
    """

    def __init__(self):
        self.gammas: list[int] = []
        self.texts: dict[tuple[str, str], float] = {}  # (prompt, marked completion) -> share of the teacher's tokens

    def add(self, gammas: Iterable[int], texts: Iterable[tuple[str, str, float]] = ()) -> None:
        """Keeps a training rollout until the next log: draft lengths, and (prompt, marked text, teacher's share)."""
        self.gammas.extend(gammas)
        texts = list(texts)
        if texts:  # the latest rollout's, as TRL's table of completions
            self.texts = {(prompt, marked): share for prompt, marked, share in texts}

    @staticmethod
    def backends(args) -> list[ModuleType]:
        """The reporting libraries of this run that have been set up."""
        found = []
        for name in ("wandb", "trackio"):
            module = sys.modules.get(name) if name in (args.report_to or []) else None
            if module is not None and (name != "wandb" or module.run is not None):
                found.append(module)
        return found

    def on_log(self, args, state, control, logs=None, **kwargs):
        gammas, texts = self.gammas, self.texts
        logs = logs or {}
        if "loss" in logs:
            self.gammas, self.texts = [], {}
        if not state.is_world_process_zero:
            return
        names = reported_names(logs, state.global_step)
        if not names:
            return
        for backend in self.backends(args):
            entry = {**names, "train/global_step": state.global_step}
            if gammas and "loss" in logs:
                entry["gamma/history"] = backend.Histogram(gammas)
            if texts and "loss" in logs:
                entry["rollouts"] = backend.Table(
                    columns=["step", "prompt", "completion", "teacher_share"],
                    data=[[state.global_step, *pair, share] for pair, share in texts.items()],
                )
            backend.log(entry)


def open_trackio(trainer) -> None:
    """Open the trackio run of a trainer that evaluates before or after training.

    transformers ends it with the training, and TRL logs what an evaluation takes to a run that must be there.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TrackioCallback) and trainer.is_world_process_zero():
            if sys.modules["trackio"].context_vars.current_run.get() is None:
                callback.setup(trainer.args, trainer.state, trainer.model)

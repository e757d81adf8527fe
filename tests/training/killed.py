"""Training runs in processes of their own, to be killed."""

import gc
import json
import os
import signal
import sys
from pathlib import Path

import torch

from lupi_trainer import LUPISKDTrainer
from lupi_trainer.data.mixing import mix
from lupi_trainer.data.records import to_columns
from lupi_trainer.lab import load_lab_records, resolve_model
from tests.lupi_skd.training import make_config


SETTINGS = {  # two optimizer steps an epoch, logs and checkpoints at steps of their own
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 6,
    "logging_steps": 3,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 1,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "log_rollout_blocks": True,
    "max_completion_length": 8,  # 10 and 22 rounds before the first two checkpoints: no multiples of gamma
}
MIXED = {
    "gamma_policy": "tests.training.killed:Wandering",
    "shuffle_dataset": False,
    "train_sampling_strategy": "sequential",
}
MEASURED = ("step_time", "runtime", "per_second")  # times


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Wandering:
    """A draft length that depends on all rounds before: drafted tokens are counted wrong if they are forgotten."""

    def __init__(self, gamma: int):
        self.longest, self.rounds = gamma, 0

    def choose(self, remaining: dict[int, int], waiting: int) -> int:
        return 1 + self.rounds % self.longest

    def observe(self, gamma: int, outcomes, seconds: float) -> None:
        self.rounds += 1

    def state(self) -> dict[str, int]:
        return {"rounds": self.rounds}

    def restore(self, state: dict[str, int]) -> None:
        self.rounds = state["rounds"]


class Countdown:
    """Kills the process at the n-th call."""

    def __init__(self, calls: int):
        self.calls = calls

    def __call__(self, *_) -> None:
        self.calls -= 1
        if self.calls == 0:
            die()


class Mortal(LUPISKDTrainer):
    """A trainer that dies at the n-th block of its rollouts, or at the n-th call made to write a checkpoint."""

    at_block = Countdown(0)
    at_call: Countdown | None = None

    def _log_block(self, block) -> None:
        self.at_block()

    def save_checkpoint(self, model, trial):
        sys.setprofile(self.at_call)
        try:
            super().save_checkpoint(model, trial)
        finally:
            sys.setprofile(None)


def records(mixed: bool):
    """Ten records, read again in every epoch; or a mixture of two stages, as long as the run."""
    if not mixed:
        return load_lab_records("lab:new")[:10]
    new, base = (to_columns(load_lab_records(name)[:10]) for name in ("lab:new", "lab:common"))
    batch = SETTINGS["per_device_train_batch_size"] * SETTINGS["gradient_accumulation_steps"]
    stages = [{"share": 0.75, "until": 0.5}, {"share": 0.25}]
    return mix(new, base, stages, total=SETTINGS["max_steps"] * batch, batch=batch)


def train(
    output_dir: str,
    begun=None,
    die_at: tuple[str, int] | None = None,
    changes: dict | None = None,
    mixed: bool = False,
) -> None:
    """Train from the last complete checkpoint, if there is one, and write `result.json` and the weights.

    Args:
        output_dir: of the run.
        begun: an event, set when training begins.
        die_at: (what, n): die at the n-th "block" of a rollout, "backward", or call that writes a "checkpoint".
        changes: of `SETTINGS`.
        mixed: train on a mixture, with a policy that remembers.
    """
    gc.freeze()  # as in conftest.py
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")
    from transformers import AutoModelForCausalLM

    what, n = die_at or ("", 0)
    changes = (MIXED if mixed else {}) | (changes or {})
    student = AutoModelForCausalLM.from_pretrained(resolve_model("lab:student"), attention_dropout=0.1)
    trainer = Mortal(
        student,
        "lab:teacher",
        args=make_config(Path(output_dir), **{**SETTINGS, "output_dir": output_dir, **changes}),
        train_dataset=records(mixed),
        eval_dataset=load_lab_records("lab:eval")[:2],
    )
    if what == "block":
        trainer.at_block = Countdown(n)
    elif what == "backward":
        student.model.layers[0].mlp.up_proj.weight.register_hook(Countdown(n))
    elif what == "checkpoint":
        trainer.at_call = Countdown(n)
    if begun is not None:
        begun.set()
    trainer.train(resume_from_checkpoint=True)
    logs = [{k: v for k, v in e.items() if not any(m in k for m in MEASURED)} for e in trainer.state.log_history]
    torch.save(student.state_dict(), os.path.join(output_dir, "weights.pt"))
    if trainer.at_call is not None:
        Path(output_dir, "calls.json").write_text(str(n - trainer.at_call.calls))
    Path(output_dir, "result.json").write_text(json.dumps(logs))

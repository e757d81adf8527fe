"""Ctrl-C: where a training was when it was stopped, and how it goes on."""

from pathlib import Path
from typing import Any

from .checkpoints import last_complete_checkpoint


class Stopped(KeyboardInterrupt):
    """Ctrl-C while a training runs; its text says where it was, and from which step the same command goes on."""


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

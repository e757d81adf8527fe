"""What `lupi plan` reads and prints."""

import argparse
import json
from typing import Any

import transformers
import yaml

from ..data.credentials import without_secrets
from ..planning.advice import changes
from ..planning.gpus import GPU, find_gpu
from ..planning.lengths import find_lengths
from ..planning.plan import DevicePlan, fits, largest_batch, plan_bytes
from ..planning.recipe import Lengths, make_run
from ..planning.run import Run
from ..planning.speed import assumptions, best_gamma, speed_of
from .dry_run.settings import Settings, read_settings, variables
from .plan_page import (
    activations_line,
    as_data,
    batch_line,
    bytes_table,
    change_lines,
    estimate_line,
    lengths_line,
    models_table,
    moments_table,
    speed_lines,
)
from .recipe_files import find_accelerate_config, find_recipe


def recipe_settings(args: argparse.Namespace) -> Settings:
    """The recipe with its flags.

    Raises:
        ValueError: unknown keys, or values that theirs cannot have: all of them, a line each.
    """
    settings = read_settings("skd", ["--config", str(find_recipe(args.recipe)), *args.recipe_flags])
    if settings.faults:
        raise ValueError("; ".join(map(without_secrets, settings.faults)))
    return settings


def plan_recipe(args: argparse.Namespace) -> int:
    """Print the plan; returns 1 where it does not fit the GPU that is named, else 0."""
    gpu = None if args.gpu is None else find_gpu(args.gpu)
    launched: dict[str, Any] = {}
    if args.accelerate_config is not None:
        launched = yaml.safe_load(find_accelerate_config(args.accelerate_config).read_text(encoding="utf-8"))
    settings = recipe_settings(args)
    transformers.logging.set_verbosity_error()
    with variables(settings.env):
        lengths = find_lengths(
            settings.get,
            args.student_prompt_tokens,
            args.teacher_prompt_tokens,
            args.prefix_tokens,
            args.completion_tokens,
        )
        known: dict[Any, Any] = {}

        def remake(keys: dict[str, Any]) -> Run:
            def get(key: str, default: Any = None) -> Any:
                return keys.get(key, settings.get(key, default))

            return make_run(get, lengths, launched, known)

        run = remake({})
        room = gpu is None or fits(run, gpu.memory)
        ways_out = [] if gpu is None or room else changes(run, gpu.memory, remake)
    plans = plan_bytes(run)
    if args.json:
        print(json.dumps(_data(args, lengths, plans, run, gpu, ways_out), indent=1))
        return 0 if room else 1
    print(models_table(run))
    print(f"\n{lengths_line(lengths)}\n")
    print(estimate_line(run) + bytes_table(plans, None if gpu is None else gpu.memory))
    print(f"\n{moments_table(run)}\n\n{activations_line(run)}")
    if gpu is None:
        print("\nName a GPU (--gpu h100-80) to see whether this fits, and how long a step takes.")
        return 0
    print("\n" + batch_line(run, largest_batch(run, gpu.memory), gpu))
    if not room:
        print(change_lines(ways_out, gpu))
    given = run, gpu, lengths.mean, args.acceptance
    print("\n" + speed_lines(speed_of(*given), best_gamma(*given), assumptions(*given)))
    return 0 if room else 1


def _data(args: argparse.Namespace, lengths: Lengths, plans: list[DevicePlan], run: Run, gpu: GPU | None, ways_out):
    found: dict[str, Any] = {"lengths": vars(lengths), "devices": as_data(plans)}
    if gpu is not None:
        given = run, gpu, lengths.mean, args.acceptance
        speed = speed_of(*given)
        found |= {
            "gpu": vars(gpu),
            "fits": fits(run, gpu.memory),
            "largest_batch": largest_batch(run, gpu.memory),
            "changes": [vars(change) for change in ways_out],
            "step": {**vars(speed), "seconds": speed.step, "assumptions": assumptions(*given)},
        }
    return found

"""What `lupi plan` reads and prints."""

import argparse
import json
from typing import Any

import transformers
import yaml

from ..data.credentials import without_secrets
from ..lupi_skd.values import value_faults
from ..planning.advice import changes
from ..planning.gpus import GPU, find_gpu
from ..planning.lengths import find_lengths
from ..planning.plan import DevicePlan, fits, largest_batch, plan_bytes
from ..planning.recipe import Lengths, make_run
from ..planning.run import Run
from ..planning.speed import assumptions, best_gamma, speed_of
from ..training.settings import least_faults
from .dry_run.settings import Settings, read_settings, variables
from .launch import TRAINING
from .no_plugins import FLAG
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
    path = str(find_recipe(args.recipe))
    guarded = [FLAG] if args.no_plugins else []
    settings = read_settings("skd", ["--config", path, *args.recipe_flags, *guarded])
    if settings.faults:
        for command in TRAINING:
            if command != "skd" and not read_settings(command, ["--config", path]).faults:
                raise ValueError(f"{path} is a recipe of `lupi {command}`; `lupi plan` is for those of `lupi skd`")
        raise ValueError("; ".join(map(without_secrets, settings.faults)))
    if settings.get("model_name_or_path") is None:
        raise ValueError("`model_name_or_path` is required: the student's name or path")
    arguments: Any = settings.as_arguments()
    if faults := [*value_faults(arguments), *least_faults(arguments)]:
        raise ValueError("; ".join(faults))
    mean, longest = args.completion_tokens, arguments.max_completion_length
    if mean is not None and mean > longest:
        raise ValueError(f"--completion_tokens {mean} is more than a text can have: max_completion_length={longest}")
    return settings


def launch_settings(name: str | None) -> dict[str, Any]:
    """What an accelerate configuration sets; nothing where none is named.

    Raises:
        FileNotFoundError: there is none of this name.
        ValueError: it is no mapping of keys to values.
    """
    if name is None:
        return {}
    path = find_accelerate_config(name)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"--accelerate_config: {path} is no mapping of keys to values")
    return found


def plan_recipe(args: argparse.Namespace) -> int:
    """Print the plan; returns 1 where it does not fit the GPU that is named, else 0."""
    gpu = None if args.gpu is None else find_gpu(args.gpu)
    launched = launch_settings(args.accelerate_config)
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

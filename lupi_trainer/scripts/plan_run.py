"""What `lupi plan` reads and prints."""

import argparse
import json
from typing import Any

import transformers
import yaml

from ..data.credentials import without_secrets
from ..planning.gpus import find_gpu
from ..planning.lengths import find_lengths
from ..planning.plan import fits, largest_batch, plan_bytes
from ..planning.recipe import make_run
from .dry_run.settings import Settings, read_settings, variables
from .plan_page import as_data, batch_line, bytes_table, lengths_line, models_table
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
        run = make_run(settings.get, lengths, launched)
    plans = plan_bytes(run)
    rows = None if gpu is None else largest_batch(run, gpu.memory)
    if args.json:
        found: dict[str, Any] = {"lengths": vars(lengths), "devices": as_data(plans)}
        if gpu is not None:
            found |= {"gpu": vars(gpu), "fits": fits(run, gpu.memory), "largest_batch": rows}
        print(json.dumps(found, indent=1))
    else:
        print(models_table(run))
        print("\n" + lengths_line(lengths) + "\n")
        print(bytes_table(plans, None if gpu is None else gpu.memory))
        if gpu is None:
            print("\nName a GPU (--gpu h100-80) to see whether this fits, and how long a step takes.")
        else:
            print("\n" + batch_line(run, rows or 0, gpu))
    return 0 if gpu is None or fits(run, gpu.memory) else 1

"""`lupi skd`, `kd`, `wmtp` and `sft`: a training script, run here or through `accelerate launch`.

Their flags are the keys of their recipes, which the scripts themselves read (see [`RecipeParser`]).
"""

import importlib
import sys

from ..data.credentials import without_secrets
from ..training import reporters
from .dry_run.launched import Launched
from .dry_run.look import look
from .dry_run.settings import read_settings, variables
from .kd_flags import FLAGS
from .key_help import all_keys, keys
from .launched import launch
from .no_plugins import FLAG, HELP
from .recipe_files import expand_tiny, find_accelerate_config, find_recipe


TRAINING = {"skd": "lupi_skd", "kd": "kd_lora", "wmtp": "wmtp", "sft": "sft"}  # command -> script
METHODS = {
    "skd": "speculative knowledge distillation",
    "kd": "distillation into a LoRA adapter, beside the cross-entropy on gold answers",
    "wmtp": "weighted multi-token prediction; --tiny in place of --config runs everything in a minute",
    "sft": "supervised fine-tuning, the baseline",
}


def summary(command: str) -> str:
    """The line of a training command in `lupi --help`."""
    usage = f"lupi {command} --config RECIPE [--accelerate_config NAME] [--KEY VALUE ...]"
    return f"train by {METHODS[command]}: {usage}"


def explanation(command: str, everything: bool = False) -> str:
    """What `lupi COMMAND --help` says, with the keys that matter, or with `everything` that there is."""
    short = ""
    if command == "kd":
        short = "\n\nShort names: " + ", ".join(f"--{name} ({key})" for name, key in FLAGS.items())
    return (
        f"usage: lupi {command} --config RECIPE [--accelerate_config NAME] [--KEY VALUE ...]\n\n"
        "RECIPE is a YAML file, or the name of a shipped one (`lupi recipes ls`); every key of it can be overridden\n"
        "on the command line. NAME is an accelerate configuration: a path, or single_cpu, multi_cpu, single_gpu,\n"
        "multi_gpu, paired_gpu, multi_node, zero2, zero3, fsdp2. Without it the script runs in this process.\n"
        "--check does everything short of a step: all records, packages, disk, and how long a step may take.\n"
        f"{FLAG}: {HELP}.\n"
        f"--KEY none leaves a key without a value.{short}\n\n"
        f"{all_keys(command) if everything else keys(command)}"
        + ("" if everything else f"\n\nAll keys: lupi {command} --help all")
    )


def module(command: str) -> str:
    """The script of a training command."""
    return f"lupi_trainer.scripts.{TRAINING[command]}"


def train(command: str, rest: list[str]) -> int:
    """Run a training script here, or through `accelerate launch` if `--accelerate_config` is given.

    What files alone can tell is told before anything heavy is imported; with `--check` so is everything else, short of
    a step.

    Raises:
        FileNotFoundError: no such recipe or accelerate configuration.
        ValueError: `--accelerate_config` without a name, either flag twice, or a recipe that is none.
    """
    own = ("--config=", "--accelerate_config=")
    args = [part for arg in rest for part in (arg.split("=", 1) if arg.startswith(own) else [arg])]
    for flag in own:
        if args.count(name := flag.rstrip("=")) > 1:
            raise ValueError(f"{name} is given more than once: leave one of them")
    only_check, args = "--check" in args, [arg for arg in args if arg != "--check"]
    if command == "wmtp":
        args = expand_tiny(args)
    if "--config" in args[:-1]:
        at = args.index("--config") + 1
        args[at] = str(find_recipe(args[at]))
    config = None
    if "--accelerate_config" in args:
        at = args.index("--accelerate_config")
        if at + 1 == len(args):
            raise ValueError("--accelerate_config needs a name or a path")
        config = find_accelerate_config(args[at + 1])
        del args[at : at + 2]
    settings = read_settings(command, args)
    launched = Launched.read(config)
    with variables(settings.env):
        stopping, other = look(settings)
    other += launched.faults(settings.get("use_cpu"))
    if stopping or (other and not only_check):
        for fault in [*stopping, *other]:
            print(f"error: {without_secrets(fault)}", file=sys.stderr)
        return 1 if only_check else 2
    output_dir, report_to = settings.get("output_dir") or "trainer_output", settings.get("report_to")
    if only_check:
        from .dry_run.check import check

        with variables(settings.env):
            return check(command, module(command), args, output_dir, report_to, launched.processes, other)
    with variables(settings.env):
        reporters.place(report_to, output_dir)
    if config is not None:
        accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
        return launch(
            [
                *accelerate,
                "--config_file",
                str(config),
                "-m",
                "lupi_trainer.scripts.launched",
                TRAINING[command],
                *args,
            ]
        )
    importlib.import_module(module(command)).main(args)
    return 0

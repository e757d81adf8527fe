"""`lupi plan`: what a recipe needs of its GPUs, before anything is loaded."""

import argparse

from .flags import positive
from .no_plugins import FLAG
from .no_plugins import HELP as NO_PLUGINS


HELP = "what a recipe needs: bytes, the largest batch, seconds, what to change: lupi plan RECIPE --gpu h100-80"
DESCRIPTION = """\
Reads the recipe of `lupi skd`, both models' configurations and the records' lengths; no weight is read. Every key of
the recipe can be given as a flag, as in training.

  lupi plan recipes/qwen3-4b/lupi_skd/config_korean_culture.yaml --gpu h100-80
  lupi plan RECIPE --gpu rtx4090-24 --teacher_load_in_4bit true --per_device_train_batch_size 2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class, parser.description = argparse.RawDescriptionHelpFormatter, DESCRIPTION
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped one (`lupi recipes ls`)")
    add("--gpu", help="what it shall run on: h100-80, a100-80, rtx4090-24, ... (a wrong name lists them)")
    add("--accelerate_config", metavar="NAME", help="as in training: zero2, fsdp2, paired_gpu, a path, ...")
    add("--student_prompt_tokens", type=positive, help="longest student prompt (default: that of the records)")
    add("--teacher_prompt_tokens", type=positive, help="longest teacher prompt (default: that of the records)")
    add("--prefix_tokens", type=natural, help="tokens that all teacher prompts share (default: those of the records)")
    add("--completion_tokens", type=positive, help="a text on average, for the seconds (default: the longest)")
    add("--acceptance", type=share, default=0.9, help="share of the drafts accepted, for the seconds (default: 0.9)")
    add("--json", action="store_true", help="print the figures as JSON")
    add(FLAG, action="store_true", help=NO_PLUGINS)
    parser.set_defaults(recipe_flags=[])  # --KEY VALUE


def natural(text: str) -> int:
    """A number of tokens, or none.

    Raises:
        argparse.ArgumentTypeError: it is below 0, or no number.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number from 0, got {text!r}")
    return int(text)


def share(text: str) -> float:
    """A share below 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"a share from 0 to below 1, got {text!r}")
    return value


def main(args: argparse.Namespace) -> int:
    """Print what a recipe needs; 1 where it does not fit the GPU that is named.

    Raises:
        ValueError: an unknown GPU, recipe, key or value, a model that cannot be trained so; each is named.
        OSError: no such recipe or model.
    """
    from .plan_run import plan_recipe

    return plan_recipe(args)

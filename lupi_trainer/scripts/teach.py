"""`lupi teach`: what a teacher writes, and says of each token, once and for all: a store that students train from."""

import argparse
from pathlib import Path

from . import run
from .flags import positive
from .no_plugins import FLAG
from .no_plugins import HELP as NO_PLUGINS


HELP = "write a teacher's texts and likeliest tokens into a store, to train from without it: --config, --store"
DESCRIPTION = """\
Writes, for every record of a recipe with `rollout_policy: teacher` (or `gold`: the texts are the records' answers),
texts of its teacher, and its `loss_top_k` likeliest tokens at each place of them, into a folder. A recipe with
`teacher_store: FOLDER` trains from it, with no teacher in memory. Every key can be given as a flag, as in training.

  lupi teach --config RECIPE --store runs/store --samples 4
  lupi skd --config RECIPE --teacher_store runs/store

A writing that was killed goes on where it was: complete shards are kept.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class, parser.description = argparse.RawDescriptionHelpFormatter, DESCRIPTION
    add = parser.add_argument
    add("--config", required=True, metavar="RECIPE", help="of `lupi skd`: a YAML file, or the name of a shipped one")
    add("--store", type=Path, metavar="FOLDER", help="where it is written (default: the recipe's `teacher_store`)")
    add("--axolotl", type=Path, metavar="FILE", help="take the texts from rows that axolotl distills from instead")
    add("--samples", type=positive, default=1, help="texts of each prompt, of which training draws one each time")
    add("--shard_rows", type=positive, default=256, help="texts of a shard, which are written and kept together")
    add(FLAG, action="store_true", help=NO_PLUGINS)
    parser.set_defaults(recipe_flags=[])  # --KEY VALUE


def check_policy(policy: str) -> None:
    """Refuse texts that a student would have to write with its teacher.

    Raises:
        ValueError: it is another `rollout_policy`.
    """
    if policy not in ("teacher", "gold"):
        raise ValueError(
            f"rollout_policy={policy!r}: a store holds texts that need no student: set `teacher`, or `gold` for the "
            "records' own answers"
        )


def main(args: argparse.Namespace) -> int:
    """Write the store, or what it lacks; what the user can mend is said in one line."""
    return run(lambda: teach(args))


def teach(args: argparse.Namespace) -> None:
    """As [`main`].

    Raises:
        ValueError: no folder is named, or the recipe, its records or its models cannot work; each is named.
    """
    from .dry_run.look import look
    from .dry_run.settings import read_settings, variables
    from .recipe_files import find_recipe

    words = ["--config", str(find_recipe(args.config)), *args.recipe_flags, *([FLAG] if args.no_plugins else [])]
    settings = read_settings("skd", words)
    folder = args.store or settings.get("teacher_store")
    if folder is None:
        raise ValueError("no folder for the store: --store FOLDER, or `teacher_store` in the recipe")
    settings.values["teacher_store"] = None
    check_policy(settings.get("rollout_policy"))
    with variables(settings.env):
        found, _ = look(settings)
    if found:
        raise ValueError(found[0])
    from .teach_run import write

    words += ["--teacher_store", str(folder)]
    print(write(words, Path(folder), args.samples, args.shard_rows, args.axolotl))

"""`lupi real`: a real language model learns real knowledge, and a table says how well."""

import argparse
import logging
import warnings
from pathlib import Path

from . import run
from .dry_run.settings import read_settings
from .no_plugins import FLAG
from .no_plugins import HELP as NO_PLUGINS
from .recipe_files import find_recipe


HELP = "SmolLM2-135M learns Korean culture on two CPU cores; --KEY VALUE as in `skd`"
RECIPE = "smollm2-135m/lupi_skd/config_lora.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", default=RECIPE, help="a LUPI-SKD recipe (default: %(default)s)")
    add("--data_dir", type=Path, default=Path("data/smollm2"), help="folder of the questions (default: %(default)s)")
    add("--output_dir", type=Path, default=Path("runs/real"))
    add("--source", default="auto", help="where the model comes from: auto, hub or wheel")
    add("--max_new_tokens", type=int, default=40, help="longest answer to a question")
    add(FLAG, action="store_true", help=NO_PLUGINS)
    parser.set_defaults(recipe_flags=[])  # --KEY VALUE


def main(args: argparse.Namespace) -> int:
    """Get the model, teach it, and print what it knew and knows; what the user can mend is said in one line."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

    def start() -> None:
        if args.no_plugins:
            read_settings("skd", ["--config", str(find_recipe(args.config)), *args.recipe_flags, FLAG])
        from .real_run import run_real

        run_real(args)

    return run(start)

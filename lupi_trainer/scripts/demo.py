"""`lupi demo`: the main job, shown."""

import argparse
import logging
import warnings
from pathlib import Path


HELP = "the main job on two CPU cores, in a minute or two"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"))


def main(args: argparse.Namespace) -> int:
    """Run the demo."""
    # of no use to a newcomer: names that libraries are about to change, and kernels that the demo has no use for
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from .demo_run import run_demo

    run_demo(args.output_dir)
    return 0

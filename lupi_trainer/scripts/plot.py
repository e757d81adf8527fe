"""`lupi plot`: curves of one or several runs as pictures."""

import argparse
from pathlib import Path


HELP = "curves of one or several runs as PNG and SVG"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run_dirs", type=Path, nargs="+", metavar="RUN", help="output_dir of a run")
    add("--output_dir", type=Path, default=Path("plots"), help="folder of the pictures")
    add("--curves", nargs="+", action="extend", help="loss, acceptance, gamma, ... (default: all that were logged)")


def main(args: argparse.Namespace) -> int:
    """Write the pictures, and print where they are."""
    from ..inspection import plot_runs, read_run

    for path in plot_runs([read_run(run) for run in args.run_dirs], args.output_dir, args.curves):
        print(f"written to {path}")
    return 0

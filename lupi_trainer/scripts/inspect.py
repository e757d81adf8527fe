"""`lupi inspect`: a run as a page for the browser."""

import argparse
from pathlib import Path


HELP = "a page of a run for the browser: curves, and every token's story"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN", help="output_dir of a run")
    add("--output", type=Path, help="the HTML file (default: RUN/inspect.html)")
    add("--max_rollouts", type=int, default=1000, help="the most rollouts to put into the page, spread over the run")
    add("--first_step", type=int, help="show no rollouts before it")
    add("--last_step", type=int, help="show no rollouts after it")


def main(args: argparse.Namespace) -> int:
    """Write the page, and print where it is."""
    from ..inspection import read_run, write_page

    output = args.output or args.run_dir / "inspect.html"
    output = write_page(read_run(args.run_dir), output, args.max_rollouts, args.first_step, args.last_step)
    print(f"written to {output}")
    return 0

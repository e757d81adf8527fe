"""`lupi data report`: what was made of documents, as a table and as a page."""

import argparse
from pathlib import Path


HELP = "show what was made of documents: a table, and a page with every chunk beside its questions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="--output of `lupi data make`")
    add("--output", type=Path, help="the HTML file (default: FOLDER/report.html)")


def main(args: argparse.Namespace) -> int:
    """Print the table, and write the page.

    Raises:
        FileNotFoundError: the folder was not made of documents.
        ValueError: its files cannot be read.
    """
    from ..data.files import read_records
    from ..documents.page import write_page
    from ..documents.write import CHUNKS, read_make
    from .making import show

    name = read_make(args.folder).get("folder", args.folder.name)
    rows = read_records(args.folder / CHUNKS)
    show(rows)
    print(f"written to {write_page(rows, name, args.output or args.folder / 'report.html')}")
    return 0

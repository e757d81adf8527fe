"""`lupi recipes`: the recipes that travel with the package, listed, shown and copied."""

import argparse
from pathlib import Path

from .recipe_files import SHIPPED, copy_recipe, find_recipe, list_recipes


HELP = "list, show or copy the shipped recipes and notebooks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("ls", help="list them")
    show = actions.add_parser("cat", help="show one")
    show.add_argument("name")
    copy = actions.add_parser("cp", help="copy one to a file or folder")
    copy.add_argument("name")
    copy.add_argument("destination", type=Path)


def main(args: argparse.Namespace) -> int:
    """List, show or copy.

    Raises:
        FileNotFoundError: no such recipe.
        FileExistsError: the destination exists.
    """
    if args.action == "ls":
        print("\n".join(list_recipes(*SHIPPED)))
    elif args.action == "cat":
        print(find_recipe(args.name, *SHIPPED).read_text(encoding="utf-8"), end="")
    else:
        print(f"copied to {copy_recipe(args.name, args.destination)}")
    return 0

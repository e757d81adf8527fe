"""`lupi data`: what is done with documents and records before anything is trained on them."""

import argparse

from . import data_check, data_make, data_report, data_select


HELP = "make records of documents, check a file of records, or select what can be taught"
ACTIONS = {"make": data_make, "report": data_report, "check": data_check, "select": data_select}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, script in ACTIONS.items():
        script.add_arguments(actions.add_parser(name, help=script.HELP))


def main(args: argparse.Namespace) -> int:
    """Do what the action says; returns the exit status."""
    return ACTIONS[args.action].main(args)

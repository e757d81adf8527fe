"""`lupi push`: the student of a finished run to the Hub."""

import argparse
from pathlib import Path


HELP = "send the student of a finished run to the Hub"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="RUN", type=Path, help="the folder that the student was saved to")
    add("--repo_id", required=True, help="user/name, or a name in the namespace of the token's owner")
    add(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="whether a repository that is created is private",
    )
    add("--base_model", help="Hub name of an adapter's base model, where it was a local folder")
    add("--overwrite", action="store_true", help="replace a student that is there (history keeps it)")
    add("--revision", help="branch to commit to, created if it is not there (default: main)")
    add("--commit_message", default="Upload student")


def main(args: argparse.Namespace) -> int:
    """Push, and print where to."""
    from ..publishing.push import push_folder

    url = push_folder(
        args.folder,
        args.repo_id,
        private=args.private,
        base_model=args.base_model,
        overwrite=args.overwrite,
        revision=args.revision,
        commit_message=args.commit_message,
    )
    print(f"pushed to {url}")
    return 0

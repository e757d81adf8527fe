"""`lupi restore`: bundles of layers back into the model that they were dropped from."""

import argparse
from pathlib import Path

from .flags import check_models
from .model_folders import check_free, copy_tokenizer


HELP = "put bundles back at their places"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--base", required=True, help="the base: a path")
    add("--bundle", required=True, action="append", type=Path, help="folder of a bundle; repeatable")
    add("--out", required=True, type=Path, help="folder of the model")


def main(args: argparse.Namespace) -> int:
    """Write the base with bundles back at their places."""
    check_models({"--base": args.base})
    from ..models.loading import load_complete
    from ..pruning.layers import describe_numbers, kept_layers, restore_bundles

    check_free(args.out)
    model = restore_bundles(load_complete(args.base, "base", dtype="auto"), args.bundle)
    model.save_pretrained(args.out)
    copy_tokenizer(args.base, args.out)
    print(f"layers {describe_numbers(kept_layers(model.config))} in {args.out}")
    return 0

"""`lupi restore`: bundles of layers back into the model that they were dropped from."""

import argparse
from pathlib import Path

from .model_folders import check_free, copy_tokenizer


HELP = "put bundles back at their places"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--base", required=True, help="the base: a path")
    add("--bundle", required=True, action="append", type=Path, help="folder of a bundle; repeatable")
    add("--out", required=True, type=Path, help="folder of the model")


def main(args: argparse.Namespace) -> int:
    """Write the base with bundles back at their places."""
    from transformers import AutoModelForCausalLM

    from ..lab import resolve_model
    from ..models.loading import SAFE_WEIGHTS
    from ..pruning.layers import describe_numbers, kept_layers, restore_bundle

    check_free(args.out)
    model = AutoModelForCausalLM.from_pretrained(resolve_model(args.base), dtype="auto", **SAFE_WEIGHTS)
    for folder in args.bundle:
        model = restore_bundle(model, folder)
    model.save_pretrained(args.out)
    copy_tokenizer(args.base, args.out)
    print(f"layers {describe_numbers(kept_layers(model.config))} in {args.out}")
    return 0

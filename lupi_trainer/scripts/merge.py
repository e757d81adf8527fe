"""`lupi merge`: an adapter folded into the layers that it was trained on."""

import argparse
from pathlib import Path

from .model_folders import copy_tokenizer


HELP = "fold an adapter into its model, or into the layers of its stage"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--base_dir", "--model", required=True, help="the model that the adapter was trained on")
    add("--adapter", required=True, help="folder of the adapter")
    add("--stage", type=int, default=1, help="stage of the training")
    add("--bundles_dir", help="folder of the bundles, from stage 2")
    add("--out", type=Path, help="folder of the merged model (stage 1; a bundle has its own place)")


def main(args: argparse.Namespace) -> int:
    """Fold an adapter into the layers that its stage trains, or into a complete model."""
    if args.stage == 1 and args.out is None:
        raise ValueError("--out is needed: the folder of the merged model")
    if args.stage > 1 and args.out is not None:
        raise ValueError("--out has no meaning from stage 2: the bundle goes beside its original, as NAME_merged")
    from ..pruning.stages import load_stage, merge_stage

    stage = load_stage(args.base_dir, args.bundles_dir, args.stage, dtype="auto")
    target = merge_stage(stage, args.adapter, args.out)
    if stage.bundle is None:
        copy_tokenizer(args.base_dir, target)
    print(f"merged into {target}")
    return 0

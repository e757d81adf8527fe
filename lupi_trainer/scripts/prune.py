"""`lupi prune`: layers out of a model, into bundles."""

import argparse
from pathlib import Path

from .flags import check_models
from .model_folders import check_free, copy_tokenizer


HELP = "drop layers of a model into bundles, and save what is left"
LEAST = "least:"  # `--drop least:8`: the 8 consecutive layers of least influence


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help="a name, a path, or lab:NAME")
    add(
        "--drop",
        required=True,
        action="append",
        help="layers of a bundle, counted from 0: 21-28, or least:8 (the 8 consecutive ones of least influence)",
    )
    add("--bundle", required=True, action="append", help="its name; again for each --drop")
    add("--out", required=True, type=Path, help="folder of base/ and bundles/NAME/")
    add("--data", help="questions to measure influence on: a file, lab:NAME, or a dataset name")
    add("--samples", type=int, default=32, help="so many of them")
    add("--seq_len", type=int, default=1024)
    add("--dtype", default="auto", help="type that the model is loaded and saved in")


def parse_range(text: str) -> list[int]:
    """`21-28` to [21, ..., 28], `5` to [5].

    Raises:
        ValueError: neither.
    """
    first, _, last = text.partition("-")
    try:
        numbers = list(range(int(first), int(last or first) + 1))
    except ValueError:
        numbers = []
    if not numbers:
        raise ValueError(f"--drop takes a range of layers such as 21-28, one such as 5, or least:8; got {text!r}")
    return numbers


def read_drops(args: argparse.Namespace) -> tuple[dict[str, list[int]], dict[str, int]]:
    """(bundle name to layers, bundle name to how many layers are to be found by their influence), as `--drop` says.

    Raises:
        ValueError: drops without names, names that cannot be, or nothing to measure on.
    """
    from ..pruning.stages import MERGED

    drops, names = args.drop, args.bundle
    if len(drops) != len(names):
        raise ValueError(f"every --drop needs its --bundle: got {len(drops)} and {len(names)}")
    if len(set(names)) != len(names):
        raise ValueError(f"two bundles of one name: {names}")
    for name in names:
        if name.endswith(MERGED):
            raise ValueError(f"--bundle {name}: names in {MERGED} are those of the bundles that `lupi merge` writes")
    bundles = {name: parse_range(text) for name, text in zip(names, drops) if not text.startswith(LEAST)}
    sizes = {name: text.removeprefix(LEAST) for name, text in zip(names, drops) if text.startswith(LEAST)}
    if sizes and args.data is None:
        raise ValueError("--drop least:N measures the influence of layers on text: name it with --data")
    for size in sizes.values():
        if not size.isdigit():
            raise ValueError(f"--drop least:N takes a number of layers, got {LEAST + size!r}")
    return bundles, {name: int(size) for name, size in sizes.items()}


def measure(args: argparse.Namespace, model, bundles: dict[str, list[int]], sizes: dict[str, int], records: list):
    """Add the layers of least influence to `bundles`; returns it in the order of the command line.

    Args:
        model: whose layers they are.
        bundles, sizes: of [`read_drops`].
        records: questions that the influence is measured on.
    """
    from transformers import AutoTokenizer

    from ..data.squad import tokenize_qa
    from ..lab import resolve_model
    from ..models.loading import NO_CODE
    from ..pruning.influence import block_influence, choose_block
    from ..pruning.layers import describe_numbers, kept_layers

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(args.model), **NO_CODE)
    rows = tokenize_qa(records, tokenizer, seq_len=args.seq_len).dataset["input_ids"]
    influence = block_influence(model, rows)
    for name, size in sizes.items():
        taken = {number for numbers in bundles.values() for number in numbers}
        bundles[name] = choose_block(influence, model.config, size, taken)
        at = kept_layers(model.config).index(bundles[name][0])
        score = influence[at, at + size].item()
        print(f"bundle {name}: layers {describe_numbers(bundles[name])}, influence {score:.4f}")
    return {name: bundles[name] for name in args.bundle}


def main(args: argparse.Namespace) -> int:
    """Write `OUT/base` and `OUT/bundles/NAME`."""
    check_models({"--model": args.model})
    check_free(args.out)
    from ..data.squad import load_qa_records
    from ..models.loading import load_complete
    from ..pruning.layers import describe_numbers, drop_layers, kept_layers, save_bundle

    bundles, sizes = read_drops(args)
    records = load_qa_records(args.data, max_samples=args.samples) if sizes else []
    model = load_complete(args.model, "model", dtype=args.dtype)
    if sizes:
        bundles = measure(args, model, bundles, sizes, records)
    base = drop_layers(model, bundles)
    base.save_pretrained(args.out / "base")
    copy_tokenizer(args.model, args.out / "base")
    for name, numbers in bundles.items():
        save_bundle(args.out / "bundles" / name, name, model, numbers)
        print(f"bundle {name}: layers {describe_numbers(numbers)} in {args.out / 'bundles' / name}")
    print(f"base: layers {describe_numbers(kept_layers(base.config))} in {args.out / 'base'}")
    return 0

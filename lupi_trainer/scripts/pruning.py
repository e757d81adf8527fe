"""`lupi prune`, `lupi restore` and `lupi merge`: layers out of a model, back into it, and adapters folded in."""

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from ..data.squad import load_qa_records, tokenize_qa
from ..lab import resolve_model
from ..models.loading import NO_CODE, SAFE_WEIGHTS
from ..pruning.influence import block_influence, choose_block
from ..pruning.layers import describe_numbers, drop_layers, kept_layers, restore_bundle, save_bundle
from ..pruning.stages import MERGED, load_stage, merge_stage


LEAST = "least:"  # `--drop least:8`: the 8 consecutive layers of least influence


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


def _free(folder: Path) -> Path:
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists already; nothing was written")
    return folder


def _save_tokenizer(source: str, target: Path) -> None:
    try:
        AutoTokenizer.from_pretrained(resolve_model(source), **NO_CODE).save_pretrained(target)
    except (OSError, ValueError):
        print(f"{source} has no tokenizer: {target} has none either")


def choose_layers(args: argparse.Namespace, model) -> dict[str, list[int]]:
    """Bundle name to layers, as `--drop` and `--bundle` say; `least:N` is measured on `--data`."""
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
    if not sizes:
        return bundles
    if args.data is None:
        raise ValueError("--drop least:N measures the influence of layers on text: name it with --data")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(args.model), **NO_CODE)
    records = load_qa_records(args.data, max_samples=args.samples)
    rows = tokenize_qa(records, tokenizer, seq_len=args.seq_len).dataset["input_ids"]
    influence = block_influence(model, rows)
    for name, size in sizes.items():
        taken = {number for numbers in bundles.values() for number in numbers}
        if not size.isdigit():
            raise ValueError(f"--drop least:N takes a number of layers, got {LEAST + size!r}")
        bundles[name] = choose_block(influence, model.config, int(size), taken)
        at = kept_layers(model.config).index(bundles[name][0])
        score = influence[at, at + int(size)].item()
        print(f"bundle {name}: layers {describe_numbers(bundles[name])}, influence {score:.4f}")
    return {name: bundles[name] for name in names}


def prune(args: argparse.Namespace) -> int:
    """Write `OUT/base` and `OUT/bundles/NAME`."""
    _free(args.out)
    model = AutoModelForCausalLM.from_pretrained(resolve_model(args.model), dtype=args.dtype, **SAFE_WEIGHTS)
    bundles = choose_layers(args, model)
    base = drop_layers(model, bundles)
    base.save_pretrained(args.out / "base")
    _save_tokenizer(args.model, args.out / "base")
    for name, numbers in bundles.items():
        save_bundle(args.out / "bundles" / name, name, model, numbers)
        print(f"bundle {name}: layers {describe_numbers(numbers)} in {args.out / 'bundles' / name}")
    print(f"base: layers {describe_numbers(kept_layers(base.config))} in {args.out / 'base'}")
    return 0


def restore(args: argparse.Namespace) -> int:
    """Write the base with bundles back at their places."""
    _free(args.out)
    model = AutoModelForCausalLM.from_pretrained(resolve_model(args.base), dtype="auto", **SAFE_WEIGHTS)
    for folder in args.bundle:
        model = restore_bundle(model, folder)
    model.save_pretrained(args.out)
    _save_tokenizer(args.base, args.out)
    print(f"layers {describe_numbers(kept_layers(model.config))} in {args.out}")
    return 0


def merge(args: argparse.Namespace) -> int:
    """Fold an adapter into the layers that its stage trains, or into a whole model."""
    if args.stage == 1 and args.out is None:
        raise ValueError("--out is needed: the folder of the merged model")
    if args.stage > 1 and args.out is not None:
        raise ValueError("--out has no meaning from stage 2: the bundle goes beside its original, as NAME_merged")
    stage = load_stage(args.base_dir, args.bundles_dir, args.stage, dtype="auto")
    target = merge_stage(stage, args.adapter, args.out)
    if stage.bundle is None:
        _save_tokenizer(args.base_dir, target)
    print(f"merged into {target}")
    return 0

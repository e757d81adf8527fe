"""`lupi merge`: an adapter folded into the layers that it was trained on."""

import argparse
import json
from pathlib import Path

from ..lab.folders import ADAPTER_CONFIG, folders_with, no_folder
from .flags import check_models
from .model_folders import check_free, copy_tokenizer


HELP = "fold an adapter into its model, which then is one folder that any tool loads"
DESCRIPTION = """\
What `lupi skd`, `kd` or `sft` leave with `use_peft: true` is an adapter: a small file that works only beside the model
that it was trained on. Merged into it, there is one model, without PEFT, as fast as the original:

  lupi merge runs/mine --out runs/mine-merged            the base model is the one that the adapter names
  lupi ask runs/mine-merged "What is Fova's capital?"
  lupi push runs/mine-merged --repo_id me/mine           weights, tokenizer and model card are all in it

The base is loaded in the type that it was saved in, not in 4 bits, even if the adapter was trained so. A student whose
weights were all trained needs no merging.

A model that grows back in stages (`lupi prune`, `lupi kd --stage N`) is merged stage by stage: stage 1 as above, with
--base_dir; from stage 2, --stage N --bundles_dir FOLDER writes the bundle NAME_merged beside the bundle NAME.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class, parser.description = argparse.RawDescriptionHelpFormatter, DESCRIPTION
    add = parser.add_argument
    add("folder", nargs="?", metavar="RUN", help="folder of the adapter: the output_dir of its run")
    add("--adapter", help="the same, as a flag")
    add("--base_dir", "--model", help="the model that the adapter was trained on (default: the one that it names)")
    add("--stage", type=int, default=1, help="stage of the training")
    add("--bundles_dir", help="folder of the bundles, from stage 2")
    add("--out", type=Path, help="folder of the merged model (stage 1; a bundle has its own place)")


def find_adapter(args: argparse.Namespace) -> Path:
    """The folder of the adapter.

    Raises:
        ValueError: none is named, or two.
        FileNotFoundError: there is no adapter in it; the message says what there is.
    """
    if (args.folder is None) == (args.adapter is None):
        raise ValueError("name the folder of one adapter: lupi merge RUN --out FOLDER")
    folder = Path(args.folder or args.adapter)
    if not folder.is_dir():
        raise FileNotFoundError(no_folder(folder, "folder"))
    if not (folder / ADAPTER_CONFIG).is_file():
        inside = [str(folder / name) for name in folders_with(folder, (ADAPTER_CONFIG,))]
        hint = f", but in {' and '.join(inside)}" if inside else ""
        if (folder / "config.json").is_file():
            hint = ": it holds a complete model, which needs no merging"
        raise FileNotFoundError(f"no adapter in {folder}: there is no {ADAPTER_CONFIG}{hint}")
    return folder


def find_base(args: argparse.Namespace, adapter: Path) -> str:
    """The model that the adapter was trained on.

    Raises:
        ValueError: neither the command nor the adapter names one, the adapter's file cannot be read, or the model is
            not where it is said to be.
    """
    if args.base_dir:
        check_models({"--base_dir": args.base_dir})
        return args.base_dir
    path = adapter / ADAPTER_CONFIG
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a configuration of an adapter ({error})") from error
    if not isinstance(named, str | None):
        raise ValueError(f"{path}: base_model_name_or_path must be the name of a model, got {named!r}")
    if not named or args.stage > 1:
        raise ValueError("--base_dir is needed: the model that the adapter was trained on")
    check_models({f"{path} names the base (--base_dir names another)": named})
    return named


def main(args: argparse.Namespace) -> int:
    """Fold an adapter into the layers that its stage trains, or into a complete model with its card."""
    adapter = find_adapter(args)
    if args.stage == 1 and args.out is None:
        raise ValueError("--out is needed: the folder of the merged model")
    if args.stage > 1 and args.out is not None:
        raise ValueError("--out has no meaning from stage 2: the bundle goes beside its original, as NAME_merged")
    base = find_base(args, adapter)
    if args.out is not None:
        check_free(args.out)
    from ..pruning.stages import load_stage, merge_stage

    stage = load_stage(base, args.bundles_dir, args.stage, dtype="auto")
    target = merge_stage(stage, str(adapter), args.out)
    print(f"merged into {target}")
    if stage.bundle is None:
        from ..publishing.merged_card import merged_card

        own = (adapter / "tokenizer_config.json").is_file()
        copy_tokenizer(str(adapter) if own else base, target)
        (target / "README.md").write_text(merged_card(adapter, base, target.name), encoding="utf-8")
        print(f'ask it: lupi ask {target} "..."\nsend it: lupi push {target} --repo_id NAME')
    return 0

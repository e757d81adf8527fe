"""`lupi sweep`: a set of KD-LoRA recipes one after another, then a table and a plot beside what was expected.

A run that is done is not run again, one that was cut off goes on from its last complete checkpoint, and a result that
was made with other settings is never taken for one of these.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .flags import check_models
from .kd_flags import FLAGS
from .no_plugins import FLAG, refuse_code
from .no_plugins import HELP as NO_PLUGINS
from .recipe_files import find_recipe, find_recipes
from .recipe_words import load_recipe


HELP = "a set of KD-LoRA recipes one after another: table and plot"
RECIPE = "sweep_recipe.yaml"
MODELS = ("model_name_or_path", "teacher_model_name_or_path")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("recipes", help="a folder of recipes, or the name of a shipped one: recipes/kd_lora")
    add("--output_dir", required=True, type=Path, help="a folder a run, table.md and plot.svg")
    add("--override", type=Path, help="a recipe whose keys go before those of every run")
    add(FLAG, action="store_true", help=NO_PLUGINS)
    parser.set_defaults(recipe_flags=[])  # --KEY VALUE


def flags_to_settings(flags: list[str]) -> dict[str, list[str]]:
    """`["--lr", "1e-3"]` to `{"learning_rate": ["1e-3"]}`; a key without a value is `true`.

    Raises:
        ValueError: a value before any key, or a token.
    """
    from .recipe_parser import RecipeParser

    settings: dict[str, list[str]] = {}
    for flag in flags:
        if flag.startswith("--"):
            name, equals, value = flag.removeprefix("--").partition("=")
            key = name.replace("-", "_")
            values = settings[FLAGS.get(key, key)] = [value] if equals else []
        elif not settings:
            raise ValueError(f"expected --KEY VALUE, got {flag!r}")
        else:
            values.append(flag)
    for key, values in settings.items():
        RecipeParser.refuse_secret(key, "option ", " ".join(values))
    return {key: values or ["true"] for key, values in settings.items()}


def as_text(value: Any) -> str:
    """A recipe's value as the settings of a run hold it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def merge(recipe: Path, override: Path | None, flags: dict[str, list[str]]) -> tuple[dict[str, Any], dict[str, str]]:
    """(the recipe with the other put over it, everything that the run is made of as text by key).

    Raises:
        ValueError: a recipe that cannot be read, or one whose run would have nothing to show.
    """
    from ..experiments.sweep_plot import parse_expected
    from .kd_lora import evaluation_source, make_parser

    parser = make_parser()
    merged = parser.read_recipe(recipe) | (parser.read_recipe(override) if override is not None else {})
    given = merged | {key: " ".join(values) for key, values in flags.items()}
    unset = {key for key, value in given.items() if value is None or parser.unsets(key, [value])}
    settings = {key: as_text(value) for key, value in given.items() if key not in unset}
    if evaluation_source(settings.get("dataset_name"), settings.get("eval_dataset_name")) is None:
        raise ValueError(f"{recipe}: a sweep compares perplexities, and without `eval_dataset_name` there is none")
    try:
        parse_expected(settings.get("expected_perplexity"))
    except ValueError as error:
        raise ValueError(f"{recipe}: {error}") from error
    return merged, settings


def main(args: argparse.Namespace) -> int:
    """Run what is not done yet, then write `table.md` and `plot.svg`; 1 if a run failed."""
    recipes = find_recipes(args.recipes)
    override = find_recipe(str(args.override)) if args.override else None
    for path in (*recipes, *filter(None, [override])) if args.no_plugins else ():
        refuse_code(load_recipe(path), f"{path}: ")
    flags = flags_to_settings(args.recipe_flags)
    if args.no_plugins:
        refuse_code({key: " ".join(values) for key, values in flags.items()}, "option ")
    import yaml

    from ..experiments.sweep_plot import plot
    from ..experiments.sweep_results import RESULT, SETTINGS, is_done, markdown, read_results
    from ..training.checkpoints import write_atomically

    if "output_dir" in flags:
        raise ValueError("--output_dir is the sweep's own: each run has a folder in it")
    plans = {recipe.stem: merge(recipe, override, flags) for recipe in recipes}
    done = {name: is_done(args.output_dir / name, settings) for name, (_, settings) in plans.items()}
    for name, (_, settings) in plans.items():
        if not done[name]:
            check_models({f"{name}: {key}": settings.get(key) for key in MODELS})
    failed = []
    for name, (merged, settings) in plans.items():
        folder = args.output_dir / name
        if done[name]:
            print(f"{name}: done already", flush=True)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / SETTINGS, json.dumps(settings, indent=1))
        print(f"{name}: runs, log in {folder / 'log.txt'}", flush=True)
        write_atomically(folder / RECIPE, yaml.safe_dump(merged, sort_keys=False, allow_unicode=True))
        command = [sys.executable, "-m", "lupi_trainer.cli", "kd", "--config", str(folder / RECIPE)]
        command += [FLAG] if args.no_plugins else []
        command += [part for key, values in flags.items() for part in (f"--{key}", *values)]
        command += ["--output_dir", str(folder), "--resume_from_checkpoint", "true"]
        with open(folder / "log.txt", "a", encoding="utf-8") as log:
            status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
        if status or not (folder / RESULT).is_file():
            failed.append(name)
            print(f"{name}: failed with status {status}; its log is {folder / 'log.txt'}", file=sys.stderr, flush=True)
    results = read_results(args.output_dir, list(plans))
    if results:
        table = markdown(results)
        print(table, end="")
        write_atomically(args.output_dir / "table.md", table)
        write_atomically(args.output_dir / "plot.svg", plot(results))
    return 1 if failed else 0

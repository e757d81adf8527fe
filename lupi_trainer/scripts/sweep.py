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

import yaml

from ..training.checkpoints import write_atomically
from .kd_flags import FLAGS
from .kd_lora import RESULT, make_parser
from .recipe_files import find_recipe, list_recipes, recipes_dir
from .recipe_parser import RecipeParser
from .sweep_plot import parse_expected, plot


SETTINGS = "sweep_settings.json"
RECIPE = "sweep_recipe.yaml"
COLUMNS = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "lora_r": "r",
    "lora_alpha": "lora alpha",
    "kd_alpha": "kd alpha",
    "kd_temperature": "T",
    "steps": "steps",
    "perplexity_before": "PPL before",
    "perplexity": "PPL",
    "expected_perplexity": "expected at full size",
}


def find_recipes(name: str) -> list[Path]:
    """The recipes of a set: a folder of the user's own or a shipped one, in the order of their names.

    Raises:
        FileNotFoundError: no recipe there.
    """
    folder = Path(name)
    if not folder.is_dir():
        key = name.removeprefix("recipes/").strip("/") + "/"
        found = [recipes_dir() / recipe for recipe in list_recipes() if recipe.startswith(key)]
    else:
        found = sorted(folder.glob("*.yaml"))
    if not found:
        raise FileNotFoundError(f"no recipe in {name!r}; `lupi recipes ls` lists the shipped ones")
    return found


def flags_to_settings(flags: list[str]) -> dict[str, list[str]]:
    """`["--lr", "1e-3"]` to `{"learning_rate": ["1e-3"]}`; a key without a value is `true`.

    Raises:
        ValueError: a value before any key, or a token.
    """
    settings: dict[str, list[str]] = {}
    for flag in flags:
        if flag.startswith("--"):
            name, equals, value = flag.removeprefix("--").partition("=")
            values = settings[FLAGS.get(name, name)] = [value] if equals else []
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
    parser = make_parser()
    merged = parser.read_recipe(recipe) | (parser.read_recipe(override) if override is not None else {})
    settings = {key: as_text(value) for key, value in merged.items()}
    settings |= {key: " ".join(values) for key, values in flags.items()}
    if settings.get("eval_strategy", "no") in ("no", "false"):
        raise ValueError(f"{recipe}: a sweep compares perplexities, and without `eval_strategy` there is none")
    try:
        parse_expected(None if merged.get("expected_perplexity") is None else settings["expected_perplexity"])
    except ValueError as error:
        raise ValueError(f"{recipe}: {error}") from error
    return merged, settings


def is_done(folder: Path, settings: dict[str, str]) -> bool:
    """Whether a run has its result already.

    Raises:
        ValueError: there is a run of that name with other settings; nothing is changed.
    """
    path = folder / SETTINGS
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        keys = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
        if keys:
            key = keys[0]
            raise ValueError(
                f"{folder} holds a run with other settings ({key}: {before.get(key)}, now {settings.get(key)}); "
                "choose another --output_dir, or remove it"
            )
    return path.is_file() and (folder / RESULT).is_file()


def read_results(output_dir: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Results by run, those that are there."""
    paths = {name: output_dir / name / RESULT for name in names}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


def show(value: Any) -> str:
    """A table's cell."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """The table of a sweep."""
    lines = ["| run | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, result in results.items():
        lines.append(f"| {name} | " + " | ".join(show(result.get(key)) for key in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def main(args: argparse.Namespace) -> int:
    """Run what is not done yet, then write `table.md` and `plot.svg`; 1 if a run failed."""
    recipes = find_recipes(args.recipes)
    flags = flags_to_settings(args.flags)
    if "output_dir" in flags:
        raise ValueError("--output_dir is the sweep's own: each run has a folder in it")
    override = find_recipe(str(args.override)) if args.override else None
    plans = {recipe.stem: merge(recipe, override, flags) for recipe in recipes}
    done = {name: is_done(args.output_dir / name, settings) for name, (_, settings) in plans.items()}
    failed = []
    for name, (merged, settings) in plans.items():
        folder = args.output_dir / name
        if done[name]:
            print(f"{name}: done already", flush=True)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / SETTINGS, json.dumps(settings, indent=1))
        print(f"{name}: runs, log in {folder / 'log.txt'}", flush=True)
        (folder / RECIPE).write_text(yaml.safe_dump(merged, sort_keys=False, allow_unicode=True), encoding="utf-8")
        command = [sys.executable, "-m", "lupi_trainer.cli", "kd", "--config", str(folder / RECIPE)]
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
        (args.output_dir / "table.md").write_text(table, encoding="utf-8")
        (args.output_dir / "plot.svg").write_text(plot(results), encoding="utf-8")
    return 1 if failed else 0

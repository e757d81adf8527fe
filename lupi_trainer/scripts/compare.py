"""`lupi compare`: ways of teaching the same facts, side by side at equal optimizer steps.

Every arm and seed is a run whose result is a JSON file; a run that has one is not run again, and a result that was
made with other settings is never taken for one of these.
"""

import argparse
import gc
import json
from pathlib import Path

from ..data.answers import MAX_ANSWER_TOKENS
from . import run
from .no_plugins import FLAG
from .no_plugins import HELP as NO_PLUGINS
from .recipe_files import find_recipe


HELP = "ways of teaching the same facts, side by side: table, plot and JSON; --KEY VALUE as in `skd`"
LAB = {"config": ["lab/lupi_skd/config_full.yaml"], "unseen": "lab:probes-unseen", "general": "lab:probes-common"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", nargs="+", action="extend", help="LUPI-SKD recipes (default: the lab's, with its questions)")
    add("--arms", nargs="+", action="extend", help="which of them (default: all; a wrong name lists them)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--output_dir", type=Path, default=Path("runs/compare"), help="a JSON file a finished run")
    add("--probes", help="questions about the new facts (default: those of the recipe)")
    add("--unseen", help="the same in phrasings that are not trained")
    add("--general", help="questions about what was known before")
    add("--completion_column", default="answer", help="column of the gold answers, for the arm sft")
    add("--every", type=int, default=20, help="optimizer steps between two measures")
    add("--max_new_tokens", type=int, default=MAX_ANSWER_TOKENS, help="longest answer to a question")
    add(FLAG, action="store_true", help=NO_PLUGINS)
    parser.set_defaults(recipe_flags=[])  # --KEY VALUE


def main(args: argparse.Namespace) -> int:
    """Compare; what the user can mend is said in one line."""
    return run(lambda: compare(args))


def look_first(args: argparse.Namespace, recipes: list[Path], flags: list[str]) -> None:
    """Refuse, before anything heavy is imported, models and questions that files alone show to be none.

    Raises:
        ValueError: the first of them, with its key or flag.
    """
    from .dry_run.look import faulty_probes, missing_probes, models
    from .dry_run.settings import read_settings, variables

    for recipe in recipes:
        settings = read_settings("skd", ["--config", str(recipe), *flags])
        with variables(settings.env):
            found = list(models(settings))
        asked = {"--probes": args.probes, "--unseen": args.unseen, "--general": args.general}
        asked |= {} if args.probes else {"probes": settings.get("probes")}
        for key, name in asked.items():
            if name is not None:
                found += [*missing_probes(key, name), *faulty_probes(name)]
        if found:
            raise ValueError(found[0])


def compare(args: argparse.Namespace) -> None:
    """Run what has no result yet, then write `table.md`, `results.json` and `curves.svg` over all that have one.

    Raises:
        ValueError: an arm that does not exist, no questions, what an arm needs is missing, or a result in the folder
            with other settings.
    """
    if args.config is None:
        for key, value in LAB.items():
            setattr(args, key, getattr(args, key) or value)
    flags = [*args.recipe_flags, *([FLAG] if args.no_plugins else [])]
    recipes, runs = [find_recipe(name) for name in args.config], []
    look_first(args, recipes, flags)
    from ..experiments import read_result, write_comparison
    from ..training.checkpoints import write_atomically
    from . import arms

    args.arms = args.arms or list(arms.ARMS)
    if unknown := set(args.arms) - set(arms.ARMS):
        raise ValueError(f"no arm {', '.join(sorted(unknown))}; there are {', '.join(arms.ARMS)}")
    students = args.output_dir / "students"
    for recipe in recipes:
        first = arms.parse(recipe, args.arms[0], args.seeds[0], students, flags)
        arms.check(args.arms, first, args.completion_column)
    for recipe in recipes:
        settings = {
            "recipe": recipe.read_text(encoding="utf-8"),
            "flags": args.recipe_flags,
            "every": args.every,
            "probes": [args.probes, args.unseen, args.general],
            "max_new_tokens": args.max_new_tokens,
            "completion_column": args.completion_column,
        }
        for arm in args.arms:
            label = arm if len(args.config) == 1 else f"{arm} ({recipe.stem})"
            for seed in args.seeds if arm != "untrained" else args.seeds[:1]:
                path = args.output_dir / f"{recipe.stem}-{arm}-seed{seed}.json"
                done = read_result(path, settings)
                if done is None:
                    print(f"{label}, seed {seed}: runs", flush=True)
                    arguments = arms.parse(recipe, arm, seed, students, flags)
                    done = {"recipe": recipe.stem, "arm": arm, "seed": seed, "settings": settings}
                    done |= arms.run(arm, arguments, args)
                    args.output_dir.mkdir(parents=True, exist_ok=True)
                    write_atomically(path, json.dumps(done, indent=1))
                    gc.collect()
                runs.append(done | {"arm": label})
    print(write_comparison(runs, args.output_dir), end="")

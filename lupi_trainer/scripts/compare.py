"""`lupi compare`: ways of teaching the same facts, side by side at equal optimizer steps.

Every arm and seed is a run whose result is a JSON file; a run that has one is not run again, and a result that was
made with other settings is never taken for one of these.
"""

import argparse
import gc
import json
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..data.records import load_probes, load_sft_data
from ..evaluation import closed_book
from ..experiments import Track, plot_curves, shuffled_knowledge, summarize, to_markdown, without_knowledge
from ..training.checkpoints import write_atomically
from . import lupi_skd, sdft, sft
from .recipe_files import find_recipe


# arm -> what it changes in the recipe
ROLLOUTS = {"teacher-samples": "teacher", "on-policy": "student"}
CONTROLS = {"skd-no-knowledge": without_knowledge, "skd-shuffled": shuffled_knowledge}
ARMS = ("untrained", "sft", "teacher-samples", "on-policy", "skd", *CONTROLS, "sdft")
QUIET = ("--eval_strategy no --save_strategy no --logging_strategy no --report_to none --disable_tqdm true").split()
# what trainers of other methods take over from a LUPI-SKD recipe
SHARED = (
    "output_dir learning_rate lr_scheduler_type warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon optim "
    "max_grad_norm max_steps num_train_epochs per_device_train_batch_size gradient_accumulation_steps bf16 use_cpu "
    "gradient_checkpointing seed eval_strategy save_strategy logging_strategy report_to disable_tqdm"
).split()
LAB = {"config": ["lab/lupi_skd/config_full.yaml"], "unseen": "lab:probes-unseen", "general": "lab:probes-common"}


def parse(recipe: Path, arm: str, seed: int, folder: Path, flags: list[str]) -> tuple[Any, Any, Any]:
    """Data, training and model arguments of a run."""
    own = ["--rollout_policy", ROLLOUTS[arm]] if arm in ROLLOUTS else []
    arguments = ["--config", str(recipe), *flags, *QUIET, *own, "--seed", str(seed), "--output_dir", str(folder)]
    return lupi_skd.make_parser().parse_args_and_config(arguments)


def build(arm: str, arguments: tuple[Any, Any, Any], completion_column: str):
    """The trainer of an arm."""
    data_args, training_args, model_args = arguments
    data_args.eval_dataset_name = None
    if arm not in ("sft", "sdft"):
        return lupi_skd.build_trainer(*arguments, change=CONTROLS.get(arm))
    shared = {key: getattr(training_args, key) for key in SHARED}
    if arm == "sdft":
        return sdft.build_trainer(*arguments, shared)
    from trl import SFTConfig

    named = {f.name: getattr(data_args, f.name) for f in fields(data_args)}
    config = SFTConfig(**shared, max_length=None)
    sft_args = sft.SFTDataArguments(**named, completion_column=completion_column)
    return sft.build_trainer(sft_args, config, model_args, training_args.chat_template_kwargs)


def check(arms: list[str], arguments: tuple[Any, Any, Any], completion_column: str) -> None:
    """Refuse, before the first run, an arm that could not be built later.

    Raises:
        ValueError: no gold answer to a record (named), or no such file; a quantized student for SDFT.
    """
    data_args, _, model_args = arguments
    if "sft" in arms:
        for name in filter(None, (data_args.dataset_name, data_args.base_dataset_name)):
            try:
                load_sft_data(name, completion_column)
            except (ValueError, OSError) as error:
                raise ValueError(f"the arm sft needs gold answers: {error}; --completion_column, or --arms") from error
    if "sdft" in arms and (model_args.load_in_4bit or model_args.load_in_8bit):
        raise ValueError("the arm sdft takes no quantized student: leave it out of --arms, or the quantization")


def difference(key: str, old: Any, new: Any) -> str:
    """What of a setting is another one now; of a recipe, its first line that is."""
    if key == "recipe" and isinstance(old, str):
        old, new = next((a, b) for a, b in zip_longest(old.splitlines(True), new.splitlines(True)) if a != b)
    return f"{key}: {old!r}, now {new!r}"


def probe_sets(args: argparse.Namespace, data_args) -> dict[str, list[dict[str, Any]]]:
    """Questions by score.

    Raises:
        ValueError: no questions about the new facts.
    """
    names = {"new": args.probes or data_args.probes, "unseen": args.unseen, "general": args.general}
    if names["new"] is None:
        raise ValueError("name the questions about the new facts: --probes, or `probes` in the recipe")
    return {score: load_probes(name) for score, name in names.items() if name is not None}


def run(arm: str, arguments: tuple[Any, Any, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One arm with one seed: its curve, and for the untrained student the teacher's open-book score."""
    probes, result = probe_sets(args, arguments[0]), {}
    ways = {"max_new_tokens": args.max_new_tokens, "chat_template_kwargs": arguments[1].chat_template_kwargs}
    trainer = build(arm, arguments, args.completion_column)

    def measure(model) -> dict[str, float]:
        marks = {score: closed_book(model, trainer.processing_class, asked, **ways) for score, asked in probes.items()}
        return {score: mark.lenient for score, mark in marks.items()} | {"new_strict": marks["new"].strict}

    if arm == "untrained":
        result["curve"] = [{"step": 0, "tokens": 0, "seconds": 0.0} | measure(trainer.model)]
        if all(probe.get("knowledge") for probe in probes["new"]):
            open_book = closed_book(
                trainer.teacher_model if trainer.args.teacher_model_name_or_path else trainer.model,
                trainer.processing_class, probes["new"], teacher_prompt=trainer.teacher_prompt,
                **ways,
            )  # fmt: skip
            result["teacher_open_book"] = open_book.lenient
    else:
        track = Track(trainer, measure, args.every)
        trainer.train()
        result["curve"] = track.curve
    return result


def main(args: argparse.Namespace) -> int:
    """Run what has no result yet, then write `table.md`, `results.json` and `curves.svg` over all that have one.

    Raises:
        ValueError: an arm that does not exist, no questions, what an arm needs is missing, or a result in the folder
            with other settings.
    """
    if args.config is None:
        for key, value in LAB.items():
            setattr(args, key, getattr(args, key) or value)
    args.arms = args.arms or list(ARMS)
    if unknown := set(args.arms) - set(ARMS):
        raise ValueError(f"no arm {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    recipes, runs = [find_recipe(name) for name in args.config], []
    for recipe in recipes:
        first = parse(recipe, args.arms[0], args.seeds[0], args.output_dir / "students", args.flags)
        check(args.arms, first, args.completion_column)
    for recipe in recipes:
        for arm in args.arms:
            label = arm if len(args.config) == 1 else f"{arm} ({recipe.stem})"
            for seed in args.seeds if arm != "untrained" else args.seeds[:1]:
                settings = {
                    "recipe": recipe.read_text(encoding="utf-8"), "flags": args.flags, "every": args.every,
                    "probes": [args.probes, args.unseen, args.general], "max_new_tokens": args.max_new_tokens,
                    "completion_column": args.completion_column,
                }  # fmt: skip
                path = args.output_dir / f"{recipe.stem}-{arm}-seed{seed}.json"
                done = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
                if done is None:
                    print(f"{label}, seed {seed}: runs", flush=True)
                    arguments = parse(recipe, arm, seed, args.output_dir / "students", args.flags)
                    done = {"recipe": recipe.stem, "arm": arm, "seed": seed, "settings": settings}
                    done |= run(arm, arguments, args)
                    args.output_dir.mkdir(parents=True, exist_ok=True)
                    write_atomically(path, json.dumps(done, indent=1))
                    gc.collect()
                elif changed := [key for key, value in settings.items() if done["settings"].get(key) != value]:
                    changes = difference(changed[0], done["settings"].get(changed[0]), settings[changed[0]])
                    raise ValueError(f"{path} was made with other settings ({changes}); choose another --output_dir")
                runs.append(done | {"arm": label})
    rows = summarize(runs)
    table = to_markdown(rows)
    for arm, ceiling in {run["arm"]: run["teacher_open_book"] for run in runs if "teacher_open_book" in run}.items():
        table += f"\nThe teacher, reading the knowledge ({arm}): {ceiling:.1%}\n"
    print(table, end="")
    (args.output_dir / "table.md").write_text(table, encoding="utf-8")
    (args.output_dir / "results.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    plot_curves(runs, args.output_dir / "curves.svg")
    return 0

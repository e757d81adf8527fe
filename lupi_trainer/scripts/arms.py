"""The arms of `lupi compare`: what each changes in a recipe, and the trainers that they are run with."""

import argparse
import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..data.records import load_sft_data
from ..experiments import load_probe_sets, measure_training, measure_untrained, shuffled_knowledge, without_knowledge
from ..experiments.summary import SCORES
from . import lupi_skd, sdft, sft
from .teach_run import write_store_of


# arm -> what it changes in the recipe
GOLD_ALPHA = 0.5  # of the arm gold-mixed
STORE_SAMPLES, STORE_SEED = 4, 0  # of the arm store: one store, whatever seeds its students have
CHANGES = {
    "teacher-samples": ("--rollout_policy", "teacher"),
    "on-policy": ("--rollout_policy", "student"),
    "skd-anchored": ("--base_teacher", "student"),  # base records are taught by the student as it was
    "gold": ("--rollout_policy", "gold"),
    "gold-mixed": ("--gold_alpha", str(GOLD_ALPHA)),
    "store": ("--rollout_policy", "teacher"),
    "skd-weighted": ("--loss_weighting", "knowledge"),
    "skd-weighted-shuffled": ("--loss_weighting", "shuffled"),
    "skd-knowledge-rule": ("--acceptance_rule", "knowledge"),
}
CONTROLS = {"skd-no-knowledge": without_knowledge, "skd-shuffled": shuffled_knowledge}
ARMS = tuple(dict.fromkeys(("untrained", "sft", "teacher-samples", "on-policy", "skd", *CONTROLS, "sdft", *CHANGES)))
QUIET = ("--eval_strategy no --save_strategy no --logging_strategy no --report_to none --disable_tqdm true").split()
# what trainers of other methods take over from a LUPI-SKD recipe
SHARED = (
    "output_dir learning_rate lr_scheduler_type warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon optim "
    "max_grad_norm max_steps num_train_epochs per_device_train_batch_size gradient_accumulation_steps bf16 use_cpu "
    "gradient_checkpointing seed eval_strategy save_strategy logging_strategy report_to disable_tqdm"
).split()


def parse(recipe: Path, arm: str, seed: int, folder: Path, flags: list[str]) -> tuple[Any, Any, Any]:
    """Data, training and model arguments of a run."""
    own = [*CHANGES.get(arm, ()), "--seed", str(seed), "--output_dir", str(folder)]
    own += ["--teacher_store", str(folder.parent / f"{recipe.stem}-store")] if arm == "store" else []
    arguments = ["--config", str(recipe), *flags, *QUIET, *own]
    return lupi_skd.make_parser().parse_args_and_config(arguments)


def build(arm: str, arguments: tuple[Any, Any, Any], completion_column: str):
    """The trainer of an arm."""
    data_args, training_args, model_args = arguments
    data_args.eval_dataset_name = None
    if arm == "store":
        written = copy.copy(training_args)
        written.seed = STORE_SEED
        write_store_of(data_args, written, model_args, Path(training_args.teacher_store), samples=STORE_SAMPLES)
    if arm not in ("sft", "sdft"):
        return lupi_skd.build_trainer(*arguments, change=CONTROLS.get(arm))
    shared: dict[str, Any] = {key: getattr(training_args, key) for key in SHARED}
    if arm == "sdft":
        return sdft.build_trainer(*arguments, shared)
    from trl import SFTConfig

    named = {f.name: getattr(data_args, f.name) for f in fields(data_args)}
    config = SFTConfig(**shared, max_length=None)
    sft_args = sft.SFTDataArguments(
        **named,
        completion_column=completion_column,
        chat_template_kwargs=training_args.chat_template_kwargs,
        allow_special_tokens=training_args.allow_special_tokens,
    )
    return sft.build_trainer(sft_args, config, model_args)


def check(arms: list[str], arguments: tuple[Any, Any, Any], completion_column: str) -> None:
    """Refuse, before the first run, an arm that could not be built later.

    Raises:
        ValueError: no gold answer to a record (named), or no such file; a quantized student for SDFT.
    """
    data_args, _, model_args = arguments
    for arm in (arm for arm in ("sft", "gold", "gold-mixed") if arm in arms):
        if arm != "gold-mixed" and data_args.train_turns != "last":
            raise ValueError(
                f"the arm {arm} learns answers to last messages alone: leave out train_turns, or the arm (--arms)"
            )
        column, flag = (completion_column, "--completion_column, or ") if arm == "sft" else ("answer", "")
        for name in filter(None, (data_args.dataset_name, data_args.base_dataset_name)):
            try:
                load_sft_data(name, column)
            except (ValueError, OSError) as error:
                raise ValueError(f"the arm {arm} needs gold answers: {error}; {flag}--arms") from error
    if "sdft" in arms and (model_args.load_in_4bit or model_args.load_in_8bit):
        raise ValueError("the arm sdft takes no quantized student: leave it out of --arms, or the quantization")


def say(point: dict[str, float]) -> None:
    """A line a measure."""
    marks = ", ".join(f"{name} {point[name]:.1%}" for name in SCORES if name in point)
    print(f"  step {point['step']}: {marks}; {point['seconds']:.0f} s of training", flush=True)


def run(arm: str, arguments: tuple[Any, Any, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One arm with one seed: its curve, and for the untrained student the teacher's open-book score."""
    data_args, training_args, _ = arguments
    probe_sets = load_probe_sets(args.probes or data_args.probes, args.unseen, args.general)
    asking = {
        "max_new_tokens": args.max_new_tokens,
        "chat_template_kwargs": training_args.chat_template_kwargs,
        "allow_special_tokens": training_args.allow_special_tokens,
    }
    trainer = build(arm, arguments, args.completion_column)
    if arm == "untrained":
        return measure_untrained(trainer, probe_sets, **asking)
    return measure_training(trainer, probe_sets, args.every, say, **asking)

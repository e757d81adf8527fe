"""Weighted multi-token prediction, from a recipe: `--algo mtp-baseline`, `critic-wmtp` or `rho1-wmtp`.

accelerate launch --config_file recipes/accelerate_configs/multi_gpu.yaml \
    -m lupi_trainer.scripts.wmtp --algo rho1-wmtp --config recipes/lab/wmtp/config_joint.yaml

`--tiny` is short for a recipe that runs everything in a minute on a CPU.
"""

import sys
from dataclasses import dataclass, field

from datasets import Dataset

from ..data.records import LAB_PREFIX, load_lab_records, load_sft_data, read_records, record_name
from ..wmtp import BaseWMTPTrainer, CriticWMTPTrainer, MTPBaselineTrainer, Rho1WMTPTrainer, WMTPConfig
from . import setting_up
from .common import TextArguments, special_tokens, student_arguments, train_and_save
from .recipe_files import expand_tiny
from .recipe_parser import RecipeParser


ALGORITHMS = {"mtp-baseline": MTPBaselineTrainer, "critic-wmtp": CriticWMTPTrainer, "rho1-wmtp": Rho1WMTPTrainer}


@dataclass
class WMTPArguments(TextArguments):
    """Which algorithm, and which data ([`TextArguments`] beside these).

    Args:
        algo: `mtp-baseline`, `critic-wmtp` or `rho1-wmtp`.
        dataset_name: training records: a JSON or JSONL file, or `lab:NAME`. Records have `text`, or `prompt` (or
            `query`) and the completion column; `reward` (a number) is read by `critic-wmtp`.
        eval_dataset_name: records for the heads' figures, named in the same way.
    """

    algo: str | None = field(default=None, metadata={"help": "The algorithm.", "choices": list(ALGORITHMS)})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Training records: a JSON or JSONL file, or lab:NAME."}
    )
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Records for the heads' figures."})

    def __post_init__(self):
        super().__post_init__()
        if self.algo not in ALGORITHMS:
            raise ValueError(f"`algo` must be one of {', '.join(ALGORITHMS)}, got {self.algo!r}")
        if self.dataset_name is None:
            raise ValueError("`dataset_name` is required: a JSON or JSONL file, or lab:NAME")


def load_texts(source: str, completion_column: str) -> Dataset:
    """Records as TRL's `text`, or `prompt` and `completion`; with `reward`, where any record has one.

    Raises:
        FileNotFoundError: a data file that does not exist.
        ValueError: no record, or one without the text to learn (named).
    """
    records = load_lab_records(source) if source.startswith(LAB_PREFIX) else read_records(source)
    if records and all(isinstance(record.get("text"), str) and record["text"].strip() for record in records):
        data = Dataset.from_list([{"text": record["text"]} for record in records])
    else:
        data = load_sft_data(source, completion_column)
    if any("reward" in record for record in records):
        for number, record in enumerate(records):
            reward = record.get("reward")
            if isinstance(reward, bool) or not isinstance(reward, int | float):
                raise ValueError(f"{record_name(record, number)}: `reward` must be a number, got {reward!r}")
        data = data.add_column("reward", [float(record["reward"]) for record in records])
    return data


def make_parser(prog: str | None = None) -> RecipeParser:
    """The parser of this script's recipes and command line."""
    from trl import ModelConfig

    return RecipeParser((WMTPArguments, WMTPConfig, ModelConfig), prog=prog)


@setting_up()
def build_trainer(data_args: WMTPArguments, training_args: WMTPConfig, model_args) -> BaseWMTPTrainer:
    """The trainer that a recipe describes.

    Raises:
        ValueError: no model is named, or anything that [`BaseWMTPTrainer`] and its algorithms refuse.
    """
    special = special_tokens(model_args, training_args, data_args.allow_special_tokens)
    train_dataset, eval_dataset = (
        data_args.prepare(load_texts(name, data_args.completion_column), special) if name else None
        for name in (data_args.dataset_name, data_args.eval_dataset_name)
    )
    assert data_args.algo is not None  # or `WMTPArguments` had raised
    return ALGORITHMS[data_args.algo](
        **student_arguments(training_args, model_args), train_dataset=train_dataset, eval_dataset=eval_dataset
    )


def main(args: list[str] | None = None) -> None:
    """Train as a recipe says, save the model with its heads, and push them if the recipe asks for that."""
    args = expand_tiny(list(sys.argv[1:] if args is None else args))
    data_args, training_args, model_args = make_parser().parse_args_and_config(args)
    train_and_save(build_trainer(data_args, training_args, model_args), data_args, model_args)


if __name__ == "__main__":
    from . import leave

    leave(main)

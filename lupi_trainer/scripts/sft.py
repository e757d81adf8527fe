"""Supervised fine-tuning on gold answers, the baseline of every comparison, from a recipe.

accelerate launch --config_file recipes/accelerate_configs/single_gpu.yaml \
    -m lupi_trainer.scripts.sft --config recipes/lab/sft/config_full.yaml
"""

import sys
from dataclasses import dataclass
from typing import Any

from ..data.records import load_probes, load_sft_data
from ..models.chat_template import adopt_chat_template
from ..models.loading import repository_options
from ..publishing.trainer import Published
from ..training.checkpoints import SealedCheckpoints
from ..training.evaluated_tokens import EvaluatedTokens
from ..training.finite_steps import FiniteSteps
from ..training.given_data import GivenTexts
from ..training.log_sums import LogSums
from ..training.probing import Probed
from . import setting_up
from .common import (
    MixedDataArguments,
    TextArguments,
    mix_in_base,
    special_tokens,
    student_arguments,
    train_and_save,
)
from .recipe_parser import RecipeParser


@dataclass
class SFTDataArguments(TextArguments, MixedDataArguments):
    """[`MixedDataArguments`] and [`TextArguments`]."""

    def __post_init__(self):
        MixedDataArguments.__post_init__(self)
        if self.train_turns != "last":
            raise ValueError("train_turns: gold answers are to a record's last message; all turns are for `lupi skd`")
        TextArguments.__post_init__(self)


def make_parser(prog: str | None = None) -> RecipeParser:
    """The parser of this script's recipes and command line."""
    from trl import ModelConfig, SFTConfig

    return RecipeParser((SFTDataArguments, SFTConfig, ModelConfig), prog=prog)


@setting_up()
def build_trainer(data_args: SFTDataArguments, training_args, model_args):
    """TRL's `SFTTrainer` on the project's records, saved as all students here: the loss is on the answers only.

    Args:
        data_args, training_args, model_args: the recipe.

    Raises:
        ValueError: no student is named, or a record without an answer or with a special token in its text (named).
    """
    from transformers import AutoTokenizer
    from trl import SFTTrainer

    class SealedSFTTrainer(
        Published, SealedCheckpoints, LogSums, FiniteSteps, Probed, EvaluatedTokens, GivenTexts, SFTTrainer
    ):
        method_name = "SFT"
        model_tags = ["trl", "sft"]

    special = special_tokens(model_args, training_args, data_args.allow_special_tokens)

    def load(name: str, **kwargs):
        return data_args.prepare(load_sft_data(name, data_args.completion_column), special)

    assert data_args.dataset_name is not None  # or `DataArguments` had raised
    probes = load_probes(data_args.probes) if data_args.probes else None
    special.check_probes(probes or [])
    arguments = student_arguments(training_args, model_args)
    if training_args.chat_template_path is not None:
        arguments["processing_class"] = AutoTokenizer.from_pretrained(
            arguments["model"], **repository_options(training_args)
        )
        adopt_chat_template(training_args, arguments["model"], arguments["processing_class"])
    trainer = SealedSFTTrainer(
        **arguments,
        train_dataset=mix_in_base(load(data_args.dataset_name), load, data_args, training_args),
        eval_dataset=load(data_args.eval_dataset_name) if data_args.eval_dataset_name else None,
    )
    trainer.limit_tokens(trainer.model.config.get_text_config().vocab_size)
    template_kwargs: Any = data_args.chat_template_kwargs  # parsed by now
    trainer.probes, trainer.chat_template_kwargs = probes, template_kwargs or {}
    return trainer


def main(args: list[str] | None = None) -> None:
    """Train as a recipe says, save the student, and push it if the recipe asks for that."""
    data_args, training_args, model_args = make_parser().parse_args_and_config(sys.argv[1:] if args is None else args)
    train_and_save(build_trainer(data_args, training_args, model_args), data_args, model_args)


if __name__ == "__main__":
    from . import leave

    leave(main)

"""Speculative knowledge distillation with privileged information, from a recipe.

accelerate launch --config_file recipes/accelerate_configs/single_gpu.yaml \
    -m lupi_trainer.scripts.lupi_skd --config recipes/lab/lupi_skd/config_full.yaml
"""

import sys
from collections.abc import Callable

from datasets import Dataset

from ..data.records import load_base_data, load_probes, load_training_data
from ..lupi_skd import LUPISKDConfig, LUPISKDTrainer
from ..lupi_skd.probes import with_knowledge
from . import setting_up
from .common import MixedDataArguments, mix_in_base, student_arguments, train_and_save
from .recipe_parser import RecipeParser


def make_parser(prog: str | None = None) -> RecipeParser:
    """The parser of this script's recipes and command line."""
    from trl import ModelConfig

    return RecipeParser((MixedDataArguments, LUPISKDConfig, ModelConfig), prog=prog)


@setting_up()
def build_trainer(
    data_args: MixedDataArguments,
    training_args: LUPISKDConfig,
    model_args,
    change: Callable[[Dataset], Dataset] | None = None,
) -> LUPISKDTrainer:
    """The trainer that a recipe describes.

    Args:
        data_args, training_args, model_args: the recipe.
        change: what to do to the records with knowledge, before base records are mixed in.

    Raises:
        ValueError: no student is named, or anything that [`LUPISKDTrainer`] refuses.
    """
    assert data_args.dataset_name is not None  # or `DataArguments` had raised
    train_dataset = load_training_data(
        data_args.dataset_name, config=data_args.dataset_config, split=data_args.dataset_train_split
    )
    if change is not None:
        train_dataset = change(train_dataset)
    probes = load_probes(data_args.probes) if data_args.probes else None
    trainer = LUPISKDTrainer(
        **student_arguments(training_args, model_args),
        train_dataset=mix_in_base(train_dataset, load_base_data, data_args, training_args),
        eval_dataset=load_training_data(data_args.eval_dataset_name) if data_args.eval_dataset_name else None,
        probes=probes,
    )
    if training_args.teacher_store is None:  # else there is nobody to ask
        trainer.open_book_probes = with_knowledge(probes or [], train_dataset)
    return trainer


def main(args: list[str] | None = None) -> None:
    """Train as a recipe says, save the student, and push it if the recipe asks for that."""
    data_args, training_args, model_args = make_parser().parse_args_and_config(sys.argv[1:] if args is None else args)
    train_and_save(build_trainer(data_args, training_args, model_args), data_args, model_args)


if __name__ == "__main__":
    from . import leave

    leave(main)

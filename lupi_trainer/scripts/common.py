"""What the training scripts share: which data, which student, and what happens once it is trained."""

import os
from dataclasses import dataclass, field
from typing import Any

from ..checkpoints import find_checkpoint
from ..lab import resolve_model


@dataclass
class DataArguments:
    """Which data a run trains on and is asked about.

    Args:
        dataset_name: training records: a JSON or JSONL file, `lab:NAME`, or a dataset name.
        dataset_config: configuration of a dataset from the Hub.
        dataset_train_split: split of a dataset from the Hub.
        eval_dataset_name: records for the validation loss, named in the same way.
        probes: closed-book questions asked at every evaluation: a JSON or JSONL file, or `lab:NAME`.
    """

    dataset_name: str | None = field(
        default=None, metadata={"help": "Training records: a JSON or JSONL file, lab:NAME, or a dataset name."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset from the Hub."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split of a dataset from the Hub."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Records for the validation loss."})
    probes: str | None = field(default=None, metadata={"help": "Closed-book questions: a JSON file or lab:NAME."})

    def __post_init__(self):
        if self.dataset_name is None:
            raise ValueError("`dataset_name` is required: a JSON or JSONL file, lab:NAME, or a dataset name")


def student_arguments(training_args, model_args) -> dict[str, Any]:
    """Keyword arguments of a trainer for the student that a recipe names: weights, quantisation, adapter.

    Raises:
        ValueError: no student is named.
    """
    from trl import get_peft_config, get_quantization_config

    if model_args.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is required: the student's name or path")
    init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    }
    training_args.model_init_kwargs = init_kwargs | (training_args.model_init_kwargs or {})
    return {
        "model": resolve_model(model_args.model_name_or_path),
        "args": training_args,
        "quantization_config": get_quantization_config(model_args),
        "peft_config": get_peft_config(model_args),
    }


def train_and_save(trainer, data_args: Any) -> dict[str, float]:
    """Train, evaluate at the end if the recipe evaluates at all, save, and push if it asks for that.

    The run goes on from a checkpoint that `RESUME_CHECKPOINT` in the environment, or else `resume_from_checkpoint` in
    the recipe names: its path, or `true` for the last whole one in `output_dir`. Returns the last evaluation.
    """
    args = trainer.args
    resume = os.environ.get("RESUME_CHECKPOINT") or args.resume_from_checkpoint
    trainer.dataset_name = data_args.dataset_name  # for the card
    trainer.train(resume_from_checkpoint=find_checkpoint(resume, args.output_dir))
    metrics = trainer.evaluate() if args.eval_strategy != "no" else {}
    trainer.save_model(args.output_dir, _internal_call=True)  # which does not push: that comes last
    trainer.accelerator.print(f"Student saved to {args.output_dir}.")
    if args.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.wait_for_everyone()
    return metrics

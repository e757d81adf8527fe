"""KD-LoRA: distillation into a LoRA adapter on question answering, from a recipe or by flags.

accelerate launch --config_file recipes/accelerate_configs/multi_gpu.yaml \
    -m lupi_trainer.scripts.kd_lora --config recipes/kd_lora/exp5_optimal.yaml
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..data.squad import QA_TEMPLATE, TokenizedQA, load_qa_records, tokenize_qa
from ..experiments.sweep_results import RESULT
from ..kd_lora import KDLoRAConfig, KDLoRATrainer
from ..pruning.stages import Stage, check_trained, load_stage, restrict_adapter
from ..training.checkpoints import write_atomically
from ..training.field_types import check_types
from . import setting_up
from .common import ShownArguments, student_arguments, train_and_save
from .kd_flags import FLAGS, evaluation_source
from .recipe_parser import RecipeParser


@dataclass
class QAArguments(ShownArguments):
    """Which questions a run learns from and is evaluated on, and which stage of a pruned model it trains.

    Args:
        dataset_name: questions in SQuAD's form: a JSON or JSONL file, `lab:NAME`, or a dataset name (`squad`).
        dataset_train_split: split of a dataset from the Hub.
        eval_dataset_name: questions for the perplexity, named in the same way; for a dataset from the Hub the same
            one's `dataset_eval_split` by default.
        dataset_eval_split: split of a dataset from the Hub.
        max_samples: train on so many records, drawn with `seed`.
        max_eval_samples: evaluate on so many, drawn with a seed of their own, so that all runs have the same. The
            perplexity before and after the training is measured wherever there are such questions; `eval_strategy`
            says how often on the way.
        qa_template: the prompt, with {context} and {question}; the answer follows after a space.
        allow_special_tokens: let records spell out special tokens, which become control tokens.
        bundles_dir: folder of the dropped layers, for the stages from 2.
        stage: train the layers of this stage alone (see `lupi_trainer.pruning.stages`); without it, every layer.
        expected_perplexity: what the run is expected to reach, as `< 19.0` or `15-16`: only shown by `lupi sweep`.
    """

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Questions in SQuAD's form: a JSON or JSONL file, lab:NAME, or a dataset name."},
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split of a dataset from the Hub."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Questions for the perplexity."})
    dataset_eval_split: str = field(default="validation", metadata={"help": "Split of a dataset from the Hub."})
    max_samples: int | None = field(default=None, metadata={"help": "Train on so many records."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many records."})
    qa_template: str = field(default=QA_TEMPLATE, metadata={"help": "The prompt, with {context} and {question}."})
    allow_special_tokens: bool = field(
        default=False, metadata={"help": "Let records spell out special tokens, which become control tokens."}
    )
    bundles_dir: str | None = field(default=None, metadata={"help": "Folder of the dropped layers, from stage 2."})
    stage: int | None = field(default=None, metadata={"help": "Train the layers of this stage alone."})
    expected_perplexity: str | None = field(default=None, metadata={"help": "Only shown by `lupi sweep`."})

    def __post_init__(self):
        check_types(self)
        if self.dataset_name is None:
            raise ValueError("`dataset_name` is required: a JSON or JSONL file, lab:NAME, or a dataset name")


class KDParser(RecipeParser):
    """[`RecipeParser`] whose command line knows the short names in `FLAGS`, too."""

    def parse_args_and_config(self, args, **kwargs) -> tuple:
        def long(argument: str) -> str:
            name, equals, value = argument.partition("=")
            key = FLAGS.get(name.removeprefix("--")) if name.startswith("--") else None
            return f"--{key}{equals}{value}" if key else argument

        return super().parse_args_and_config([long(argument) for argument in args], **kwargs)


def make_parser(prog: str | None = None) -> KDParser:
    """The parser of this script's recipes and command line; an adapter of rank 8 is the default."""
    from trl import ModelConfig

    parser = KDParser((QAArguments, KDLoRAConfig, ModelConfig), prog=prog)
    parser.set_defaults(use_peft=True, lora_r=8, lora_alpha=16)
    return parser


def load_questions(qa: QAArguments, training_args: KDLoRAConfig, tokenizer) -> tuple[TokenizedQA, TokenizedQA | None]:
    """Training and evaluation questions as token ids.

    Raises:
        ValueError: anything that [`load_qa_records`] or [`tokenize_qa`] refuses, or `eval_strategy` or
            `max_eval_samples` without questions for an evaluation.
    """
    seq_len = training_args.max_length
    if seq_len is None:
        raise ValueError("`max_length` (--seq_len) is required: the longest record in tokens")
    assert qa.dataset_name is not None  # or `QAArguments` had raised
    options: Any = {"template": qa.qa_template, "allow_special_tokens": qa.allow_special_tokens}
    records = load_qa_records(
        qa.dataset_name, split=qa.dataset_train_split, max_samples=qa.max_samples, seed=training_args.seed
    )
    train = tokenize_qa(records, tokenizer, seq_len=seq_len, **options)
    name = evaluation_source(qa.dataset_name, qa.eval_dataset_name)
    if name is None:
        for key, given in (
            ("eval_strategy", training_args.eval_strategy != "no"),
            ("max_eval_samples", qa.max_eval_samples),
        ):
            if given:
                raise ValueError(f"`{key}` needs questions to evaluate on: set `eval_dataset_name`, or leave it out")
        return train, None
    records = load_qa_records(name, split=qa.dataset_eval_split, max_samples=qa.max_eval_samples)
    return train, tokenize_qa(records, tokenizer, seq_len=seq_len, **options)


@setting_up()
def build_trainer(qa: QAArguments, training_args: KDLoRAConfig, model_args) -> KDLoRATrainer:
    """The trainer that a recipe describes, with what was dropped of its questions in `trainer.questions`.

    Raises:
        ValueError: no student is named, or anything that the data, the stage or [`KDLoRATrainer`] refuses.
        FileNotFoundError: a stage without its bundle.
    """
    arguments: dict[str, Any] = student_arguments(training_args, model_args)
    tokenizer: Any = AutoTokenizer.from_pretrained(
        arguments["model"], revision=model_args.model_revision, trust_remote_code=training_args.trust_remote_code
    )
    if tokenizer.pad_token is None:  # Llama-2 has none; padding is never read
        tokenizer.pad_token = tokenizer.eos_token
    train, evaluation = load_questions(qa, training_args, tokenizer)
    stage = load_for_stage(qa, arguments, training_args)
    if stage is not None:
        arguments |= {"model": stage.model, "peft_config": restrict_adapter(arguments["peft_config"], stage)}
    trainer = KDLoRATrainer(
        **arguments,
        processing_class=tokenizer,
        train_dataset=train.dataset,
        eval_dataset=None if evaluation is None else evaluation.dataset,
    )
    if stage is not None:
        check_trained(trainer.model, stage)
    trainer.questions = {"train": train, **({} if evaluation is None else {"eval": evaluation})}
    return trainer


def load_for_stage(qa: QAArguments, arguments: dict[str, Any], training_args: KDLoRAConfig) -> Stage | None:
    """The model of a stage, whose adapter touches the stage's own layers; `None` where the recipe names no stage."""
    if qa.stage is None:
        return None
    if arguments["peft_config"] is None:
        raise ValueError("a stage trains an adapter: leave `use_peft` on")
    if arguments["quantization_config"] is not None:
        raise ValueError("a stage is merged into its layers, so its student cannot be quantized")
    kwargs: Any = training_args.model_init_kwargs
    training_args.model_init_kwargs = None
    return load_stage(
        arguments["model"], qa.bundles_dir, qa.stage, **{k: v for k, v in kwargs.items() if v is not None}
    )


def write_result(trainer: KDLoRATrainer, qa: QAArguments, before: dict[str, float], after: dict[str, float]) -> None:
    """Write `kd_result.json`: perplexity before and after, what was trained on, what was dropped."""
    args = trainer.args
    peft_config = (
        trainer.model.peft_config[trainer.model.active_adapter] if hasattr(trainer.model, "peft_config") else None
    )
    questions = trainer.questions
    result = {
        "perplexity_before": before["eval_perplexity"],
        "perplexity": after["eval_perplexity"],
        "loss/ce": after["eval_loss/ce"],
        "loss/kd": after.get("eval_loss/kd"),
        "expected_perplexity": qa.expected_perplexity,
        "learning_rate": args.learning_rate,
        "num_train_epochs": args.num_train_epochs,
        "lora_r": getattr(peft_config, "r", None),
        "lora_alpha": getattr(peft_config, "lora_alpha", None),
        "kd_alpha": args.kd_alpha if args.use_kd else 0.0,
        "kd_temperature": args.kd_temperature,
        "steps": trainer.state.global_step,
        "seed": args.seed,
        **{f"{name}_records": len(part.dataset) for name, part in questions.items()},
        **{f"{name}_dropped": len(part.dropped) for name, part in questions.items()},
    }
    if args.should_save:
        assert args.output_dir is not None  # transformers names one
        write_atomically(Path(args.output_dir) / RESULT, json.dumps(result, indent=1))


def main(args: list[str] | None = None) -> None:
    """Train as a recipe says, save the adapter, and write what came of it."""
    qa, training_args, model_args = make_parser().parse_args_and_config(sys.argv[1:] if args is None else args)
    evaluates = evaluation_source(qa.dataset_name, qa.eval_dataset_name) is not None
    # inside the training, whose log begins with it
    training_args.eval_on_start = evaluates
    trainer = build_trainer(qa, training_args, model_args)
    after = train_and_save(trainer, qa, model_args, evaluates)
    if not evaluates:
        return
    before = next(log for log in trainer.state.log_history if "eval_perplexity" in log)
    write_result(trainer, qa, before, after)


if __name__ == "__main__":
    from . import leave

    leave(main)

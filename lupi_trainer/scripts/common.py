"""What the training scripts share: which data, which student, and what happens once it is trained."""

import json
import os
import time
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..data.mixing import mix, mixture_length, parse_mixing
from ..data.special_tokens import SpecialTokens
from ..data.templates import check_template_kwargs
from ..data.turns import TURNS, expand_turns
from ..lab import resolve_model
from ..models.adapters import refuse_adapter
from ..models.hub_code import refuse_hub_code
from ..models.vocabulary import tokenizer_beside
from ..training import reporters
from ..training.checkpoints import only_run, room_for, write_atomically
from ..training.field_types import check_types
from ..training.run_log import speaking
from ..training.stopping import saving_on_sigterm
from .flags import json_object
from .next_steps import summary
from .run_notes import write_notes


@dataclass
class ShownArguments:
    """What a run prints, and whether it may write over another.

    Args:
        verbose: every log with all of its figures, beside the line that tells the most important ones.
        overwrite_output_dir: let `lupi` start a run in the folder of a finished one, whose files are replaced.
        save_on_sigterm: on SIGTERM, which schedulers send some time before they kill, save a checkpoint after the
            step that is being taken, and end there; without it, end at once.
    """

    verbose: bool = field(
        default=False, kw_only=True, metadata={"help": "Print every log with all of its figures, too."}
    )
    overwrite_output_dir: bool = field(
        default=False, kw_only=True, metadata={"help": "Write over the finished run in output_dir."}
    )
    save_on_sigterm: bool = field(
        default=True, kw_only=True, metadata={"help": "On SIGTERM, save a checkpoint after this step, then end."}
    )


@dataclass
class DataArguments(ShownArguments):
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
        check_types(self)
        if self.dataset_name is None:
            raise ValueError("`dataset_name` is required: a JSON or JSONL file, lab:NAME, or a dataset name")


@dataclass
class MixedDataArguments(DataArguments):
    """[`DataArguments`], and base records beside the others: what the student should not forget.

    Args:
        base_dataset_name: base records, which have no knowledge: named as `dataset_name` is.
        base_dataset_config: configuration of a dataset from the Hub.
        base_dataset_split: split of a dataset from the Hub.
        mixing: share of the records with knowledge (0.5), or stages of the run, each with its share and its end as a
            part of the run: `[{share: 0.7, until: 0.6667}, {share: 0.3}]`. An epoch is one of the records with
            knowledge.
        train_turns: which turns of the assistant are written and trained on: `last`, the answer to a record's last
            message, or `all`, a row for each turn of a dialogue, whose earlier turns both models read as they are.
    """

    base_dataset_name: str | None = field(default=None, metadata={"help": "Records without knowledge, mixed in."})
    base_dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset of the Hub."})
    base_dataset_split: str = field(default="train", metadata={"help": "Split of a dataset from the Hub."})
    mixing: list[Any] | str | None = field(
        default=None, metadata={"help": "Share of the records with knowledge, or stages of {share, until}."}
    )
    train_turns: str = field(
        default="last",
        metadata={"help": "Turns of the assistant that are trained on: last or all.", "choices": list(TURNS)},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.train_turns not in TURNS:
            raise ValueError(f"train_turns must be one of {list(TURNS)}, got {self.train_turns!r}")
        if (self.mixing is None) != (self.base_dataset_name is None):
            raise ValueError("`mixing` and `base_dataset_name` belong together: set both, or neither")
        if self.mixing is not None:
            parse_mixing(self.mixing)


def mix_in_base(
    records: Dataset, load_base: Callable[..., Dataset], data_args: MixedDataArguments, training_args
) -> Dataset:
    """The training set of the full run: a row for each turn if the recipe wants it, and base records mixed in.

    Sets `max_steps` to the steps that the mixture is long, and switches the shuffling off: the order is the mixture's.

    Args:
        records: with knowledge.
        load_base: loads base records by name, with `config` and `split`.
    """
    expand = expand_turns if data_args.train_turns == "all" else lambda rows: rows
    records = expand(records)
    if data_args.base_dataset_name is None:
        return records
    args = training_args
    batch = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    if args.max_steps <= 0:
        stages = parse_mixing(data_args.mixing)
        args.max_steps = mixture_length(len(records), stages, epochs=args.num_train_epochs, batch=batch) // batch
    args.shuffle_dataset, args.train_sampling_strategy = False, "sequential"
    base = load_base(
        data_args.base_dataset_name, config=data_args.base_dataset_config, split=data_args.base_dataset_split
    )
    return mix(records, expand(base), data_args.mixing, total=args.max_steps * batch, batch=batch, seed=args.seed)


def student_arguments(training_args, model_args) -> dict[str, Any]:
    """Keyword arguments of a trainer for the student that a recipe names: weights, quantization, adapter.

    Raises:
        ValueError: no student is named, or an adapter.
    """
    from trl import get_peft_config, get_quantization_config

    if model_args.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is required: the student's name or path")
    init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        "use_safetensors": True,
    }
    reporters.prepare(training_args.report_to, training_args.output_dir)
    training_args.model_init_kwargs = init_kwargs | (training_args.model_init_kwargs or {})
    path = resolve_model(model_args.model_name_or_path)
    refuse_adapter(path, "student", model_args.model_revision)
    refuse_hub_code(path, model_args.model_revision)
    return {
        "model": path,
        "args": training_args,
        "quantization_config": get_quantization_config(model_args),
        "peft_config": get_peft_config(model_args),
    }


@dataclass
class TextArguments(ShownArguments):
    """How the texts of records that TRL tokenizes become tokens.

    Args:
        completion_column: column of the answers (`knowledge` trains on the knowledge itself).
        chat_template_kwargs: for the chat template of every record, as JSON: `{"enable_thinking": false}`.
        allow_special_tokens: let records spell out special tokens, which become control tokens.

    Raises:
        ValueError: `chat_template_kwargs` that are no JSON object of a template's variables.
    """

    completion_column: str = field(default="answer", metadata={"help": "Column that holds the text to learn."})
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "For the chat template, as JSON: '{\"enable_thinking\": false}'."}
    )
    allow_special_tokens: bool = field(
        default=False, metadata={"help": "Let records spell out special tokens, which become control tokens."}
    )

    def __post_init__(self):
        check_types(self)
        if isinstance(self.chat_template_kwargs, str):
            try:
                self.chat_template_kwargs = json_object(self.chat_template_kwargs)
            except ArgumentTypeError as error:
                raise ValueError(f"chat_template_kwargs: {error}") from error
        check_template_kwargs(self.chat_template_kwargs or {})

    def prepare(self, rows: Dataset, special: SpecialTokens) -> Dataset:
        """Rows with the column that TRL reads the keyword arguments from.

        Raises:
            ValueError: a row spells out a special token (named by its place).
        """
        special.check_completions(rows)
        if not self.chat_template_kwargs or "prompt" not in rows.column_names:
            return rows
        return rows.add_column("chat_template_kwargs", [self.chat_template_kwargs] * len(rows))


def special_tokens(model_args, training_args, allowed: bool) -> SpecialTokens:
    """Those of the tokenizer beside the student that a recipe names, to be refused in its records."""
    if allowed or model_args.model_name_or_path is None:
        return SpecialTokens(None)
    tokenizer = tokenizer_beside(
        resolve_model(model_args.model_name_or_path), model_args.model_revision, training_args.trust_remote_code
    )
    return SpecialTokens(tokenizer)


def last_evaluation(trainer) -> dict[str, float]:
    """Figures of the student as it is, where the training has ended with an evaluation; else nothing."""
    if trainer.args.load_best_model_at_end:
        return {}
    logs = [log for log in trainer.state.log_history if log["step"] == trainer.state.global_step]
    return {name: value for log in logs for name, value in log.items() if name.startswith("eval_")}


def train_and_save(trainer, data_args: Any, model_args: Any, evaluates: bool | None = None) -> dict[str, float]:
    """Train, evaluate at the end (`None`: if the recipe evaluates on the way), save, and push if it asks for that.

    What happens is printed, a line a log and a summary; probes are asked before and after, whenever there are some.
    The last figures are written to `metrics.json` in `output_dir` (an empty object where there were none).

    The run goes on from a checkpoint that `RESUME_CHECKPOINT` in the environment, or else `resume_from_checkpoint` in
    the recipe names: its path, or `true` for the last complete one in `output_dir`. Returns the last figures.

    Raises:
        Stopped: Ctrl-C or another signal.
        RunTaken: another run trains into `output_dir`.
        DiskFull: there is no room left; the message says what is whole.
    """
    args = trainer.args
    resume = os.environ.get("RESUME_CHECKPOINT") or args.resume_from_checkpoint
    reporters.place_dvclive(trainer.callback_handler.callbacks, args.output_dir)
    evaluates = args.eval_strategy != "no" if evaluates is None else evaluates
    trainer.dataset_name = data_args.dataset_name  # for the card
    with (
        only_run(trainer),
        speaking(trainer, verbose=data_args.verbose, asks=True) as log,
        room_for(trainer),
        saving_on_sigterm(trainer, data_args.save_on_sigterm),
    ):
        start = time.perf_counter()
        write_notes(trainer, log.warned, model_args, data_args)
        try:
            trainer.train(resume_from_checkpoint=resume)
        finally:
            write_notes(trainer, log.warned, model_args, data_args)  # with what was warned of on the way
        seconds = time.perf_counter() - start
        if evaluates:
            metrics = last_evaluation(trainer) or trainer.evaluate()
        else:
            metrics = log.ask_probes()
        trainer.save_without_push(args.output_dir)  # which does not push: that comes last
        if trainer.is_world_process_zero():
            write_atomically(Path(args.output_dir) / "metrics.json", json.dumps(metrics, indent=1))
        trainer.save_state()  # the run's complete log, which `lupi inspect` and `lupi plot` read
        log.close()
        for line in summary(trainer, data_args, model_args.model_name_or_path, log.first_step, seconds, metrics):
            log.say(line)
    if args.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.wait_for_everyone()
    return metrics

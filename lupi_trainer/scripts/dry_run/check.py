"""`--check`: everything short of a step, as a short table; nothing is written in the run's folder."""

import copy
import importlib
import logging
import math
import tempfile
from pathlib import Path
from typing import Any

from trl import get_peft_config

from ...data.mixing import mixture_length, parse_mixing
from ...data.wording import counted
from ...training import reporters
from .. import setting_up
from ..recipe_words import one_line
from .machine import check_credentials, check_devices, check_disk, weights_of
from .records import check_questions, check_skd, check_texts
from .report import Report, duration
from .timing import seconds_a_batch


def _steps(data_args: Any, args: Any, records: int, processes: int) -> int:
    """Optimizer steps of the run."""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    if args.max_steps > 0:
        return args.max_steps
    if getattr(data_args, "base_dataset_name", None) is not None:
        stages = parse_mixing(data_args.mixing)
        return mixture_length(records, stages, epochs=args.num_train_epochs, batch=batch) // batch
    return math.ceil(records / batch * args.num_train_epochs)


def _check_batch(args: Any, records: int, processes: int, report: Report) -> None:
    """For a run that leaves incomplete batches out."""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    if records < batch:
        report.refuse(
            f"the training set has {counted(records, 'record')}, fewer than one batch of {batch} "
            f"(per_device_train_batch_size={args.per_device_train_batch_size} x {processes} processes x "
            f"gradient_accumulation_steps={args.gradient_accumulation_steps}): nothing would be trained"
        )


@setting_up()
def _records(command: str, arguments: tuple[Any, Any, Any], peft_config: Any, report: Report) -> int:
    data_args, args, model_args = arguments
    if command == "skd":
        return check_skd(data_args, args, model_args, peft_config, report)
    if command == "kd":
        return check_questions(data_args, args, model_args, report)
    return check_texts(data_args, args, model_args, report)


@setting_up()
def _time(script: Any, arguments: tuple[Any, Any, Any], steps: int, report: Report) -> None:
    data_args, args, model_args = (copy.deepcopy(part) for part in arguments)
    accumulation, args.gradient_accumulation_steps = args.gradient_accumulation_steps, 1
    args.push_to_hub, args.report_to, args.disable_tqdm = False, [], True
    if args.max_steps <= 0:
        args.max_steps = steps
    trainer = script.build_trainer(data_args, args, model_args)
    seconds, how = seconds_a_batch(trainer)
    seconds *= accumulation
    if accumulation > 1:
        how += f", {accumulation} times over"
    report.add(
        "time",
        f"about {duration(seconds)} a step and {duration(seconds * steps)} for {counted(steps, 'step')}, evaluations "
        f"apart (an estimate, from {how})",
    )


def check(
    command: str, module: str, argv: list[str], output_dir: str, report_to: Any, processes: int, found: list[str]
) -> int:
    """Look at everything of a run but its steps, and print what was found.

    Args:
        command: which training command, and `module`, its script.
        argv: its command line.
        output_dir, report_to: where the run would write and report.
        processes: of the run; the check has one.
        found: faults that are known already, none of which keeps the records from being read.

    Returns:
        0, or 1 where something would stop the run.
    """
    report = Report(faults=list(found))
    script: Any = importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="lupi-check-") as folder:
        # what the folder and the reporters need is known; neither is touched here
        here = [*argv, "--output_dir", str(Path(folder) / "run"), "--report_to", "none"]
        try:
            arguments = script.make_parser().parse_args_and_config(here)
            data_args, args, model_args = arguments
            peft_config = get_peft_config(model_args)
            check_devices(args, processes, report)
            args.hub_model_id = args.hub_model_id or Path(output_dir).absolute().name
            check_credentials(args, report)
            report.add("reports", reporters.summary(report_to))
            records = _records(command, arguments, peft_config, report)
            if command == "skd" and data_args.base_dataset_name is None:
                _check_batch(args, records, processes, report)
            if records:
                steps = _steps(data_args, args, records, processes)
                sizes = weights_of(model_args, args, peft_config)
                check_disk(output_dir, args, sizes, peft_config is not None, steps, report)
                if report.faults:
                    report.add("time", "not measured: the models are loaded where there are no faults")
                else:
                    logging.disable(logging.WARNING)  # which the run itself says
                    _time(script, arguments, steps, report)
        except (ValueError, TypeError, ArithmeticError, OSError, RuntimeError) as error:
            report.refuse(one_line(error))
        finally:
            logging.disable(logging.NOTSET)
    return report.show()

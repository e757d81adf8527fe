"""The end of a training in words: what came of it, and the commands that come next, with the run's own paths."""

import json
import shlex
from typing import Any

from accelerate.utils import is_peft_model

from ..data.probe_knowledge import knowledge_in
from ..data.wording import counted
from ..training.run_log import MARKS, duration
from .kd_flags import evaluation_source


def command(*words: Any) -> str:
    """A line for a shell."""
    return shlex.join(["lupi", *map(str, words)])


def results(trainer: Any, metrics: dict[str, Any]) -> list[str]:
    """Marks and perplexity before and after, of those that were measured.

    Args:
        trainer: after its training.
        metrics: measured after it.
    """
    lines = []
    if MARKS[0] in metrics:
        before = next((log for log in trainer.state.log_history if MARKS[0] in log and not log["step"]), None)
        strict, lenient = (
            f"{'not asked' if before is None else f'{before[name]:.1%}'} before, {metrics[name]:.1%} after"
            for name in MARKS
        )
        lines.append(f"closed-book: {lenient} (strictly marked: {strict})")
    if (after := metrics.get("eval_perplexity")) is not None:
        before = next(log["eval_perplexity"] for log in trainer.state.log_history if "eval_perplexity" in log)
        questions = counted(len(trainer.eval_dataset), "question")
        lines.append(f"Perplexity on {questions}: {before:.4g} before, {after:.4g} after.")
    return lines


def _open_book(trainer: Any, data_args: Any, student: str) -> list[str]:
    """Flags that have a run's teacher asked as it was before the first step; none where it was not, or is served."""
    args = trainer.args
    if not getattr(trainer, "open_book_probes", None) or args.teacher_model_server_url is not None:
        return []
    if getattr(args, "teachers", None):  # of several, whose record a question is about is not known there
        return []
    words = ["--teacher", args.teacher_model_name_or_path or student]
    if args.teacher_system_prompt is not None:
        words += ["--teacher_system_prompt", args.teacher_system_prompt]
    if (examples := args.few_shot_examples) is not None:
        words += ["--few_shot_examples", examples if isinstance(examples, str) else json.dumps(examples)]
    if (kwargs := args.teacher_chat_template_kwargs) is not None:
        words += ["--teacher_chat_template_kwargs", json.dumps(kwargs)]
    if any(knowledge_in(probe) is None for probe in trainer.probes):
        words += ["--records", data_args.dataset_name]
    return words


def _evaluation(trainer: Any, data_args: Any, student: str) -> str | None:
    """The command that marks a run's student on the run's own questions; `None` where it has none."""
    if (probes := getattr(data_args, "probes", None)) is not None:
        words = ["--probes", probes, "--before", student, *_open_book(trainer, data_args, student)]
        kwargs = trainer.chat_template_kwargs
        words += ["--chat_template_kwargs", json.dumps(kwargs)] if kwargs else []
    elif (template := getattr(data_args, "qa_template", None)) is not None:
        name = evaluation_source(data_args.dataset_name, data_args.eval_dataset_name)
        if name is None:
            return None
        words = ["--perplexity", name, "--seq_len", trainer.args.max_length]
        given = {"--split": data_args.dataset_eval_split, "--max_samples": data_args.max_eval_samples}
        given["--qa_template"] = template if template != type(data_args).qa_template else None
        words += [word for flag, value in given.items() if value is not None for word in (flag, value)]
    else:
        return None
    return command("evaluate", "--model", trainer.args.output_dir, *words)


def next_commands(trainer: Any, data_args: Any, student: str) -> list[str]:
    """What to do with a run.

    Args:
        trainer: after its training.
        data_args: the recipe's.
        student: the name of the model that was trained.
    """
    run, stage = trainer.args.output_dir, getattr(data_args, "stage", None)
    lines = [command("inspect", run)]
    if stage is not None and stage > 1:  # a bundle is no model that could be asked
        bundles = ("--stage", stage, "--bundles_dir", data_args.bundles_dir)
        return [*lines, command("merge", run, "--base_dir", student, *bundles)]
    if evaluation := _evaluation(trainer, data_args, student):
        lines.append(evaluation)
    if hasattr(data_args, "algo"):
        lines.append(command("generate", "--target", run, "--draft", "mtp-heads", "--prompts", "A QUESTION"))
    elif evaluation is None and getattr(trainer.processing_class, "chat_template", None) is not None:
        lines.append(command("ask", run, "A QUESTION"))
    if is_peft_model(trainer.accelerator.unwrap_model(trainer.model)):
        base = () if stage is None else ("--base_dir", student)
        lines.append(command("merge", run, *base, "--out", f"{str(run).rstrip('/')}-merged"))
    return lines


def summary(
    trainer: Any, data_args: Any, student: str, first_step: int, seconds: float, metrics: dict[str, Any]
) -> list[str]:
    """The last lines of a training.

    Args:
        trainer: after its training.
        data_args: the recipe's.
        student: the name of the model that was trained.
        first_step: that this process began with, above 0 where it has resumed a run.
        seconds: that it has trained.
        metrics: measured after it.
    """
    history = trainer.state.log_history
    losses = [float(log["loss"]) for log in history if log.get("loss") is not None]
    if losses:
        loss = f"loss {losses[-1]:.3f}" + (f" at the end ({losses[0]:.3f} at the beginning)" if losses[1:] else "")
    else:
        loss = f"mean loss {next(log['train_loss'] for log in reversed(history) if 'train_loss' in log):.3f}"
    steps = trainer.state.global_step
    taken = f", the last {steps - first_step} of them" if first_step else ""
    taken = f"{taken} in {duration(seconds)}" if steps > first_step else ", all of them taken before"
    return [
        f"{counted(steps, 'step')}{taken}, {loss}",
        *results(trainer, metrics),
        f"Student saved to {trainer.args.output_dir}. Next:",
        *(f"  {line}" for line in next_commands(trainer, data_args, student)),
    ]

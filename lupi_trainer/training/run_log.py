"""A training in words: a line a log, where it goes on, what it warns of; raw logs only where they are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from ..data.wording import counted
from .advice import Advice, open_book_advice
from .progress import Bar, WorkBar, quiet_bars
from .reporting import open_trackio
from .stopping import Stopped, how_to_go_on


MARKS = ("eval_closed_book_strict", "eval_closed_book_lenient")
# of an evaluation: name in the log -> word, format
EVALUATED = {
    "eval_loss": ("loss", ".3f"),
    "eval_perplexity": ("perplexity", ".4g"),
    "eval_acc_rate/mean": ("accepted", ".1%"),
    "eval_accept_length": ("accepted tokens a round", ".2f"),
    "eval_closed_book_lenient": ("closed-book", ".1%"),
    "eval_closed_book_strict": ("strictly marked", ".1%"),
}


def duration(seconds: float) -> str:
    """Seconds as people say them: "12 s", "3 min 5 s", "2 h 10 min"."""
    seconds = max(round(seconds), 0)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def step_line(step: int, steps: int, logs: Mapping[str, Any], speed: float | None, left: float | None) -> str:
    """The line of a log.

    Args:
        step, steps: done, and of the run.
        logs: a log of training; of rollouts the accepted share and the mean length are told, too.
        speed: tokens a second; `None` where it is not known.
        left: seconds; `None` at the end.
    """
    parts = [f"step {step:{len(str(steps))}d} of {steps}", f"loss {float(logs['loss']):.3f}"]
    if (rate := logs.get("acc_rate/mean")) is not None:
        parts.append(f"accepted {float(rate):6.1%}")
    if (length := logs.get("completions/mean_length")) is not None:
        parts.append(f"length {float(length):5.1f}")
    if speed is not None:
        parts.append(f"{speed:,.0f} tokens/s")
    if left is not None:
        parts.append(f"{duration(left)} left")
    return "   ".join(parts)


def evaluation_line(step: int, logs: Mapping[str, Any]) -> str | None:
    """The line of an evaluation's log, `None` where it has nothing that a line tells."""
    told = [f"{word} {float(logs[k]):{form}}" for k, (word, form) in EVALUATED.items() if logs.get(k) is not None]
    return f"evaluated at step {step}: {', '.join(told)}" if told else None


def resumed_line(step: int, steps: int, folder: str | None) -> str:
    """Where a run goes on: after `step` of `steps`, from a checkpoint's folder."""
    if step > steps:
        return f"Resumed from {folder}, at step {step}: this run ends at step {steps}, and nothing is left to train"
    return f"Resumed at step {step} of {steps} from {folder}" + (": nothing is left to train" if step == steps else "")


class RunLog(TrainerCallback):
    """Prints what a training does, on its main process, in place of transformers' bars and dictionaries.

    Args:
        trainer: it is added to.
        verbose: print every log as it is, too.
        asks: ask the probes before the first step, and the teacher some of them open-book.
        say: prints a line.
    """

    def __init__(self, trainer: Any, verbose: bool = False, asks: bool = False, say: Callable = print):
        self.warned: list[str] = []
        self.trainer, self.verbose, self.asks, self.advice = trainer, verbose, asks, Advice(trainer.args)
        self.main = trainer.is_world_process_zero()
        self.say = lambda line: say(line, flush=True) if self.main else None
        self.bar = Bar("step", 0, enabled=self.main and not trainer.args.disable_tqdm)
        self.began = self.step_began = time.perf_counter()
        self.first_step = 0  # of this process: later ones if it was resumed
        self.tokens: int | None = None  # read by the run until the last log
        self.seconds = 0.0  # spent in steps since then
        self.evaluating: WorkBar | None = None
        for shown in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(shown)
        trainer.add_callback(self)
        trainer.step_bar, trainer.say = self.bar, self.say

    def ask(self) -> None:
        """Ask what is to be known before the first step; every process takes part."""
        trainer = self.trainer
        if not trainer.args.eval_on_start:
            self.ask_probes()
        if probes := getattr(trainer, "open_book_probes", None):
            self.say(f"asking the teacher {counted(len(probes), 'probe')} open-book")
            warning = open_book_advice(*trainer.ask_teacher(), trainer.args)
            self.warn([] if warning is None else [warning])

    def ask_probes(self) -> dict[str, float]:
        """Ask the probes, where there are some, and log their marks at the step that the run is at; returns them."""
        trainer, state = self.trainer, self.trainer.state
        if getattr(trainer, "probes", None) is None:
            return {}
        open_trackio(trainer)
        marks = trainer.ask_probes()
        # the trainer's own `log` would take what a log of training takes
        state.log_history.append({**marks, "step": state.global_step})
        trainer.callback_handler.on_log(trainer.args, state, trainer.control, marks)
        return marks

    def warn(self, warnings: list[str]) -> None:
        self.warned += warnings
        for warning in warnings:
            self.say(f"warning: {warning}")

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar.total, self.bar.done = state.max_steps, state.global_step
        self.bar.__enter__()
        self.first_step = state.global_step
        if state.global_step:
            folder = getattr(self.trainer, "resumed_from", None)
            self.say(resumed_line(state.global_step, state.max_steps, folder))
        else:
            self.tokens = 0
            if self.asks:
                self.ask()
        self.advice.last_step = state.global_step
        self.began = time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs):
        self.step_began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        seconds = time.perf_counter() - self.step_began
        self.seconds += seconds
        self.bar.step(state.global_step)
        left = state.max_steps - state.global_step
        if state.global_step == self.first_step + 1 and left > 1 and not control.should_log:
            self.say(f"the first step took {seconds:.1f} s: the other {left} take about {duration(seconds * left)}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = logs or {}
        if self.verbose:
            self.say(str({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in logs.items()}))
        if "loss" in logs:
            self.say(step_line(state.global_step, state.max_steps, logs, self._speed(logs), self._left(state)))
            self.warn(self.advice.look(state, logs))
        elif line := evaluation_line(state.global_step, logs):
            self.say(line)

    def _speed(self, logs: Mapping[str, Any]) -> float | None:
        """Tokens a second: written, in rollouts; else read in the steps since the last log."""
        before, seconds = self.tokens, self.seconds
        read = logs.get("num_tokens")
        self.tokens, self.seconds = (None if read is None else int(read)), 0.0
        if (written := logs.get("rollout/tokens_per_second")) is not None:
            return float(written)
        return None if before is None or read is None or not seconds else (int(read) - before) / seconds

    def _left(self, state) -> float | None:
        done, left = state.global_step - self.first_step, state.max_steps - state.global_step
        return (time.perf_counter() - self.began) / done * left if done and left else None

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if not self.main or not hasattr(eval_dataloader, "__len__"):
            return
        if self.evaluating is None:
            self.evaluating, self.batches = WorkBar("evaluation: batch", len(eval_dataloader), within=self.bar), 0
            self.evaluating.__enter__()
        self.batches += 1
        self.evaluating.update(self.batches)

    def _evaluated(self) -> None:
        if self.evaluating is not None:
            self.evaluating.__exit__()
        self.evaluating = None

    def on_evaluate(self, args, state, control, **kwargs):
        self._evaluated()

    def on_predict(self, args, state, control, metrics, **kwargs):
        self._evaluated()

    def close(self) -> None:
        """Take the bar away; whatever comes is printed as it is."""
        self.bar.__exit__()
        self.trainer.step_bar = self.trainer.say = None


@contextmanager
def speaking(trainer: Any, verbose: bool = False, asks: bool = False) -> Generator[RunLog]:
    """Inside, a training prints what it does ([`RunLog`]), and Ctrl-C or a signal ends it with how it goes on.

    Raises:
        Stopped: Ctrl-C or a signal; its text is for the main process, and empty on others.
    """
    log = RunLog(trainer, verbose, asks)
    try:
        with quiet_bars(everywhere=True):
            yield log
    except KeyboardInterrupt as stop:
        log.close()
        resumed_from = getattr(trainer, "resumed_from", None)
        raise Stopped(how_to_go_on(trainer.args, trainer.state, resumed_from) if log.main else "", stop) from None
    finally:
        log.close()

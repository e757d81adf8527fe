"""Closed-book questions that a trainer asks at every evaluation."""

from collections.abc import Callable
from typing import Any

from accelerate.utils import gather_object

from ..data.wording import counted
from ..evaluation import closed_book
from .given_data import GivenData
from .private import unwrap_model_for_generation
from .progress import Bar, WorkBar
from .reporting import open_trackio


class Probed(GivenData):
    """Mix-in for a [`~transformers.Trainer`]: an evaluation asks the probes, too.

    Attributes:
        probes: `question` and `answers` each; `None` asks nothing.
        chat_template_kwargs: how they are put.
        step_bar: what is shown already while they are asked, if anything is.
        say: prints a line on the main process, where a run speaks.
    """

    args: Any
    processing_class: Any
    probes: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any]
    step_bar: Bar | None = None
    say: Callable[[str], None] | None = None

    def _bar(self, what: str, total: int) -> WorkBar:
        shown = self.accelerator.is_main_process and not self.args.disable_tqdm
        return WorkBar(what, total, enabled=shown, within=self.step_bar)

    def evaluate(self, eval_dataset=None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"):
        open_trackio(self)
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        # a dictionary of datasets comes back here once for each of them, under a longer prefix
        if self.probes is not None and metric_key_prefix == "eval":
            marks = self.ask_probes()
            self.log(marks)
            metrics.update(marks)
        return metrics

    def ask_probes(self) -> dict[str, float]:
        """Ask the student every probe closed-book, divided among the processes.

        Returns:
            `eval_closed_book_strict` and `eval_closed_book_lenient`, fractions of 1.
        """
        assert self.probes is not None
        if self.say is not None:
            self.say(f"asking {counted(len(self.probes), 'probe')} closed-book")
        processes = self.accelerator.num_processes
        mine = self.probes[self.accelerator.process_index :: processes]
        # as many on every process: sharded weights are gathered by all
        asked = mine + self.probes[:1] * (-(-len(self.probes) // processes) - len(mine))
        with (
            unwrap_model_for_generation(self.model_wrapped, self.accelerator) as student,
            self._bar("closed-book", len(asked)) as bar,
        ):
            answers = closed_book(
                student,
                self.processing_class,
                asked,
                chat_template_kwargs=self.chat_template_kwargs,
                allow_special_tokens=True,  # or they have been refused by now
                on_batch=bar.update,
            ).answers
        answers = gather_object(answers[: len(mine)])
        return {
            f"eval_closed_book_{mark}": sum(a[mark] for a in answers) / len(answers) for mark in ("strict", "lenient")
        }

"""Closed-book questions, asked at every evaluation beside the validation loss."""

from typing import Any

from accelerate.utils import gather_object

from ..data.prompts import TeacherPrompt
from ..evaluation import closed_book
from ..training.given_data import GivenData
from ..training.private import unwrap_model_for_generation
from ..training.progress import WorkBar
from ..training.reporting import open_trackio
from .checks import ready_records
from .config import LUPISKDConfig


class ProbedEvaluation(GivenData):
    """For [`LUPISKDTrainer`]: an evaluation asks the probes, too."""

    args: LUPISKDConfig
    processing_class: Any
    teacher_prompt: TeacherPrompt
    context_lengths: tuple[int | None, int | None]
    shared_vocab_size: int
    probes: list[dict[str, Any]] | None
    chat_template_kwargs: dict[str, Any]
    max_completion_length: int

    def _bar(self, what: str, total: int) -> WorkBar:
        return WorkBar(what, total, enabled=self.accelerator.is_main_process and not self.args.disable_tqdm)

    def ready(self, dataset: Any) -> Any:
        limits = self.context_lengths, self.shared_vocab_size
        return ready_records(dataset, self.processing_class, self.teacher_prompt, self.args, *limits)

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
                allow_special_tokens=True,  # or the constructor has refused them
                on_batch=bar.update,
            ).answers
        answers = gather_object(answers[: len(mine)])
        return {
            f"eval_closed_book_{mark}": sum(a[mark] for a in answers) / len(answers) for mark in ("strict", "lenient")
        }

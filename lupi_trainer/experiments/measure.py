"""One run, measured: what its student answers before, along and after its training."""

from collections.abc import Callable
from typing import Any

from transformers import Trainer

from ..data.records import load_probes
from ..evaluation import closed_book
from .track import Track


ROLLOUTS = ("acc_rate/", "gamma/", "tokens/", "rollout/", "completions/")


def load_probe_sets(new: str | None, unseen: str | None, general: str | None) -> dict[str, list[dict[str, Any]]]:
    """Questions by score.

    Args:
        new: questions about the new facts: a file, or `lab:NAME`.
        unseen: the same in phrasings that are not trained.
        general: about what was known before.

    Raises:
        ValueError: no questions about the new facts.
    """
    if new is None:
        raise ValueError("name the questions about the new facts: --probes, or `probes` in the recipe")
    names = {"new": new, "unseen": unseen, "general": general}
    return {score: load_probes(name) for score, name in names.items() if name is not None}


class Marks:
    """Asks every set of questions, and keeps what was answered the last time.

    Args:
        probe_sets: of [`load_probe_sets`].
        settings: for [`closed_book`].

    Attributes:
        answers: score -> every answer with its marks, of the last call.
    """

    def __init__(self, tokenizer, probe_sets: dict[str, list], **settings):
        self.tokenizer, self.probe_sets, self.settings = tokenizer, probe_sets, settings
        self.answers: dict[str, list[dict[str, Any]]] = {}

    def __call__(self, model) -> dict[str, float]:
        """The lenient mark of every set of questions, and `new_strict`, as fractions of 1."""
        asked = self.probe_sets.items()
        marks = {score: closed_book(model, self.tokenizer, probes, **self.settings) for score, probes in asked}
        self.answers = {score: mark.answers for score, mark in marks.items()}
        return {score: mark.lenient for score, mark in marks.items()} | {"new_strict": marks["new"].strict}


def measure_untrained(trainer, probe_sets: dict[str, list], **settings) -> dict[str, Any]:
    """The one point of a student that is not trained, and its teacher's open-book score where probes have knowledge.

    Args:
        trainer: a `LUPISKDTrainer`, whose student is asked.
        probe_sets, settings: as for [`Marks`].

    Returns:
        `curve`, `answers`, and `teacher_open_book` as a fraction of 1.
    """
    tokenizer = trainer.processing_class
    marks = Marks(tokenizer, probe_sets, **settings)
    point = {"step": 0, "tokens": 0, "seconds": 0.0} | marks(trainer.model)
    result: dict[str, Any] = {"curve": [point], "answers": marks.answers}
    if all(probe.get("knowledge") for probe in probe_sets["new"]):
        own = trainer.args.teacher_model_name_or_path or trainer.args.teachers
        teacher = trainer.teacher_model if own else trainer.model
        open_book = closed_book(
            teacher, tokenizer, probe_sets["new"], teacher_prompt=trainer.teacher_prompt, **settings
        )
        result["teacher_open_book"] = open_book.lenient
    return result


def measure_training(
    trainer: Trainer,
    probe_sets: dict[str, list],
    every: int,
    say: Callable[[dict[str, float]], None] | None = None,
    **settings,
) -> dict[str, Any]:
    """Train, and measure along the way.

    Args:
        trainer: any trainer that [`Track`] can follow.
        probe_sets, settings: as for [`Marks`].
        every: optimizer steps between two measures.
        say: is told every point of the curve.

    Returns:
        `curve`, the `answers` at its end, and `rollouts`: of a trainer that writes its texts, what it logs of them
        (`acc_rate/mean`, `completions/mean_length`, ...) as means over the run.
    """
    marks = Marks(trainer.processing_class, probe_sets, **settings)
    track = Track(trainer, marks, every, say)
    trainer.train()
    figures = trainer.state.log_history[-1] if trainer.state.log_history else {}
    rollouts = {key: value for key, value in figures.items() if key.startswith(ROLLOUTS)}
    return {"curve": track.curve, "answers": marks.answers, "rollouts": rollouts}

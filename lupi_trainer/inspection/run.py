"""Reads a run's folder: its log, its recorded rollouts, its figures."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .plain import read_plain
from .rollouts import Rollouts


NOTES = "run_notes.json"  # which a run's script writes: settings and warnings
LARGEST = 1e300  # of what a curve shows: a distance between two of them is a number, too
NOT_SHOWN = f"NaN, infinite or above {LARGEST:g}"


@dataclass(frozen=True)
class Curve:
    """One picture: a title, and the logged metrics that are lines in it (name in the log -> label)."""

    name: str
    title: str
    lines: dict[str, str]


CURVES = (
    Curve("loss", "Loss", {"loss": "training", "eval_loss": "validation"}),
    Curve(
        "acceptance",
        "Drafted tokens accepted",
        {"acc_rate/mean": "all", "acc_rate/first_token": "first of a block", "acc_rate/full_match": "full blocks"}
        | {"acc_rate/mean_knowledge": "with knowledge", "acc_rate/mean_base": "base records"},
    ),
    Curve(
        "gamma",
        "Draft length (tokens)",
        {"gamma/mean": "mean", "gamma/max": "longest", "gamma/min": "shortest"}
        | {"gamma/mean_knowledge": "with knowledge", "gamma/mean_base": "base records"},
    ),
    Curve(
        "closed_book",
        "Closed-book accuracy",
        {"eval_closed_book_strict": "strict", "eval_closed_book_lenient": "lenient"},
    ),
    Curve("speed", "Rollout speed (tokens a second)", {"rollout/tokens_per_second": "rollout"}),
    Curve("teacher_share", "Tokens that the teacher wrote", {"tokens/teacher_share": "share"}),
)
OF_TEACHERS = {"acceptance": "acc_rate/mean_of_", "gamma": "gamma/mean_of_"}  # curve -> metrics of rows of a teacher


def curves_of(history: list[dict[str, Any]]) -> list[Curve]:
    """The curves of a run, with lines for each of its teachers where it has several."""
    names, curves = list(dict.fromkeys(name for entry in history for name in entry)), []
    for curve in CURVES:
        start = OF_TEACHERS.get(curve.name)
        own = [name for name in names if start is not None and name.startswith(start)]
        lines = {name: f"taught by {name.split('_of_', 1)[1]}" for name in own}
        curves.append(Curve(curve.name, curve.title, curve.lines | lines))
    return curves


@dataclass
class Run:
    """A run as it is on disk."""

    name: str
    path: Path
    history: list[dict[str, Any]]  # what was logged, each entry with its `step`
    rollouts: Rollouts  # of rollouts.jsonl, each read when it is asked for
    metrics: dict[str, Any] = field(default_factory=dict)  # of metrics.json, where the run has one
    notes: list[str] = field(default_factory=list)  # what could not be read, in words
    settings: list[tuple[str, Any, str]] = field(default_factory=list)  # (key, value, what it does), where written
    warnings: list[str] = field(default_factory=list)  # what the run warned of

    def values(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of a logged metric; of values logged twice at one step, the later one."""
        points = {e["step"]: e[metric] for e in self.history if type(e.get(metric)) in (int, float)}
        return sorted(points.items())

    def points(self, metric: str) -> list[tuple[int, float]]:
        """[`values`] without those that no curve can show: see [`NOT_SHOWN`]."""
        return [(step, value) for step, value in self.values(metric) if abs(value) <= LARGEST]


def _read_state(path: Path) -> tuple[int, list[dict[str, Any]]]:
    """(optimizer steps done, everything logged) in a `trainer_state.json`."""
    state = read_plain(path)
    step, log = (state.get("global_step"), state.get("log_history")) if isinstance(state, dict) else (None, None)
    if not (
        type(step) is int
        and isinstance(log, list)
        and all(isinstance(entry, dict) and type(entry.get("step")) is int for entry in log)
    ):
        raise ValueError(f"{path} is not a trainer's state: an object with global_step and log_history")
    return step, log


def _history(folder: Path) -> tuple[list[dict[str, Any]] | None, list[str]]:
    """The longest log in the folder, the run's own or that of its last checkpoint; and what could not be read."""
    states = [folder / "trainer_state.json"]
    states += [p for p in folder.glob("checkpoint-*/trainer_state.json") if re.fullmatch(r"\d+", p.parent.name[11:])]
    logs, faults = [], []
    for path in filter(Path.is_file, states):
        try:
            logs.append(_read_state(path))
        except ValueError as error:  # a run that was killed leaves half a file
            faults.append(str(error))
    return max(logs, key=lambda log: log[0])[1] if logs else None, faults


def _notes(path: Path) -> tuple[list[tuple[str, Any, str]], list[str]]:
    """(settings, warnings) of a `run_notes.json`; none where there is none.

    Raises:
        ValueError: it is not of that form.
    """
    notes = read_plain(path) if path.is_file() else {}
    try:
        settings = [(str(key["name"]), key["value"], str(key["help"])) for key in notes.get("settings", ())]
        return settings, list(map(str, notes.get("warnings", ())))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold settings and warnings ({error!r})") from error


def read_run(folder: str | Path) -> Run:
    """Read what a run left: `trainer_state.json` (its own or its last checkpoint's), `rollouts.jsonl`, `metrics.json`,
    `run_notes.json`.

    Raises:
        FileNotFoundError: there is no such folder, or nothing of a run in it.
        ValueError: a `metrics.json` that is no JSON object, a line of `rollouts.jsonl` that is none, or no readable
            state where there are only broken ones.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such run: {folder} is not a folder")
    history, faults = _history(folder)
    rollouts = Rollouts(folder / "rollouts.jsonl")
    if history is None and faults and not rollouts:
        raise ValueError(faults[0])
    if history is None and not rollouts:
        raise FileNotFoundError(
            f"{folder} holds no run: no trainer_state.json, no checkpoint, no rollouts.jsonl. `lupi` writes them when "
            "training ends or a checkpoint is saved; `record_rollouts` asks for the rollouts."
        )
    metrics = read_plain(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    if not isinstance(metrics, dict):
        raise ValueError(f"{folder / 'metrics.json'} must be an object of figures, found {type(metrics).__name__}")
    try:
        settings, warned = _notes(folder / NOTES)
    except ValueError as error:  # the page shows the rest
        settings, warned, faults = [], [], [*faults, str(error)]
    name = folder.resolve().name.encode("utf-8", "replace").decode()
    return Run(name, folder, history or [], rollouts, metrics, faults, settings, warned)

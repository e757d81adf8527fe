"""Reads a run's folder: its log, its recorded rollouts, its figures."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
        {"acc_rate/mean": "all", "acc_rate/first_token": "first of a block", "acc_rate/full_match": "whole blocks"},
    ),
    Curve("gamma", "Draft length (tokens)", {"gamma/mean": "mean", "gamma/max": "longest", "gamma/min": "shortest"}),
    Curve(
        "closed_book",
        "Closed-book accuracy",
        {"eval_closed_book_strict": "strict", "eval_closed_book_lenient": "lenient"},
    ),
    Curve("speed", "Rollout speed (tokens a second)", {"rollout/tokens_per_second": "rollout"}),
    Curve("teacher_share", "Tokens that the teacher wrote", {"tokens/teacher_share": "share"}),
)


@dataclass
class Run:
    """A run as it is on disk."""

    name: str
    path: Path
    history: list[dict[str, Any]]  # what was logged, each entry with its `step`
    metrics: dict[str, Any] = field(default_factory=dict)  # of metrics.json, where the run has one
    rollouts: list[dict[str, Any]] = field(default_factory=list)  # lines of rollouts.jsonl
    broken_lines: int = 0  # of rollouts.jsonl: cut off while they were written

    def points(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of a logged metric; of values logged twice at one step, the later one."""
        points = {e["step"]: e[metric] for e in self.history if isinstance(e.get(metric), int | float)}
        return sorted(points.items())


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _history(folder: Path) -> list[dict[str, Any]] | None:
    """The longest log in the folder: the run's own, or that of its last checkpoint."""
    states = [folder / "trainer_state.json"]
    states += [p for p in folder.glob("checkpoint-*/trainer_state.json") if re.fullmatch(r"\d+", p.parent.name[11:])]
    logs = [(state.get("global_step", 0), state) for state in map(_read_json, filter(Path.is_file, states))]
    if not logs:
        return None
    return max(logs, key=lambda log: log[0])[1].get("log_history", [])


def _rollouts(path: Path) -> tuple[list[dict[str, Any]], int]:
    rollouts, broken = [], 0
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rollouts.append(json.loads(line))
        except json.JSONDecodeError:
            broken += 1
    return rollouts, broken


def read_run(folder: str | Path) -> Run:
    """Read what a run left: `trainer_state.json` (its own or its last checkpoint's), `rollouts.jsonl`, `metrics.json`.

    Raises:
        FileNotFoundError: there is no such folder, or nothing of a run in it.
        ValueError: a file that is not JSON (named).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such run: {folder} is not a folder")
    history = _history(folder)
    rollouts, broken = _rollouts(folder / "rollouts.jsonl")
    if history is None and not rollouts:
        raise FileNotFoundError(
            f"{folder} holds no run: no trainer_state.json, no checkpoint, no rollouts.jsonl. `lupi` writes them when "
            "training ends or a checkpoint is saved; `record_rollouts` asks for the rollouts."
        )
    metrics = _read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    return Run(folder.resolve().name, folder, history or [], metrics, rollouts, broken)

"""Finished runs on disk: one that was made with other settings is never taken for one of these."""

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..data.files import write_atomically
from .plot import plot_curves
from .summary import summarize, to_markdown


def difference(key: str, old: Any, new: Any) -> str:
    """What of a setting is another one now; of a recipe, its first line that is."""
    if key == "recipe" and isinstance(old, str):
        old, new = next((a, b) for a, b in zip_longest(old.splitlines(True), new.splitlines(True)) if a != b)
    return f"{key}: {old!r}, now {new!r}"


def read_result(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """A run of a comparison that has its result already, or `None`.

    Raises:
        ValueError: it was made with other settings.
    """
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    before = result["settings"]
    for key, value in settings.items():
        if before.get(key) != value:
            change = difference(key, before.get(key), value)
            raise ValueError(f"{path} was made with other settings ({change}); choose another --output_dir")
    return result


def write_comparison(runs: Sequence[dict[str, Any]], folder: Path) -> str:
    """Write `table.md`, `results.json` and `curves.svg`, and return the table.

    Args:
        runs: as for [`summarize`]; those of untrained students may have `teacher_open_book`.
    """
    rows = summarize(runs)
    table = to_markdown(rows)
    for arm, ceiling in {run["arm"]: run["teacher_open_book"] for run in runs if "teacher_open_book" in run}.items():
        table += f"\nThe teacher, reading the knowledge ({arm}): {ceiling:.1%}\n"
    write_atomically(folder / "table.md", table)
    write_atomically(folder / "results.json", json.dumps(rows, indent=1))
    plot_curves(runs, folder / "curves.svg")
    return table

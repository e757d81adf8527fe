"""One HTML page of a run: curves, figures, a reader of its rollouts. Everything is inside it; it asks no network."""

from __future__ import annotations

import html
import json
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..data.files import write_atomically
from ..data.wording import counted
from .run import CURVES, Run
from .tables import marks, settings, warnings
from .words import CURVES as ABOUT
from .words import METRICS, is_share


MOST_TOKENS = 100_000  # in all rollouts of a page; more would make a browser wait


def _tokens(rollouts: list[dict[str, Any]]) -> int:
    return sum(len(rollout.get("completion", ())) for rollout in rollouts)


def _thin(rollouts: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """At most `limit` of the rollouts, evenly; the first and the last stay."""
    if len(rollouts) <= limit:
        return rollouts
    if limit == 1:
        return rollouts[-1:]
    return [rollouts[round(i * (len(rollouts) - 1) / (limit - 1))] for i in range(limit)]


def page_data(run: Run, max_rollouts: int = 1000) -> dict[str, Any]:
    """What the page shows, as its script reads it.

    Returns:
        `name`; `curves` (title and lines with [step, value] points, what title and labels mean, and whether values are
        fractions of 1; those without a point are left out); `metrics` (figures of `metrics.json`), and which of them
        are `shares`; `rollouts` (at most `max_rollouts`, and so many that they have no more than
        [`MOST_TOKENS`] tokens, spread over the run); `notes` (what is missing, in words).
    """
    curves = []
    for curve in CURVES:
        lines = {label: run.points(metric) for metric, label in curve.lines.items()}
        lines = {label: points for label, points in lines.items() if points}
        if lines:
            words = {label: METRICS[metric] for metric, label in curve.lines.items()}
            about = {"about": ABOUT[curve.name], "words": words, "share": all(map(is_share, curve.lines))}
            curves.append({"name": curve.name, "title": curve.title, "lines": lines, **about})
    notes = list(run.notes)
    for metric in {metric: None for curve in CURVES for metric in curve.lines}:
        if left_out := len(run.values(metric)) - len(run.points(metric)):
            notes.append(f"{counted(left_out, 'value')} of {metric} left out of its curve: NaN or infinite.")
    rollouts = _thin(run.rollouts, max_rollouts)
    while len(rollouts) > 1 and (tokens := _tokens(rollouts)) > MOST_TOKENS:
        rollouts = _thin(run.rollouts, max(1, min(len(rollouts) - 1, len(rollouts) * MOST_TOKENS // tokens)))
    if not run.rollouts:
        notes.append("No rollouts were recorded: train with record_rollouts set to how many.")
    if len(run.rollouts) > len(rollouts):
        long = f": a page holds up to {MOST_TOKENS:,} tokens" if len(rollouts) < max_rollouts else ""
        notes.append(f"{len(rollouts)} of {len(run.rollouts)} recorded rollouts are shown{long}.")
    if run.broken_lines:
        notes.append(f"{counted(run.broken_lines, 'line')} of rollouts.jsonl left out: cut off in writing.")
    return {
        "name": run.name,
        "curves": curves,
        "metrics": {
            k: str(v) if isinstance(v, float) and not math.isfinite(v) else v  # which JSON cannot say
            for k, v in run.metrics.items()
            if isinstance(v, int | float | str)
        },
        "shares": [name for name in run.metrics if is_share(name)],
        "rollouts": rollouts,
        "notes": notes,
    }


def write_page(run: Run, output: str | Path, max_rollouts: int = 1000) -> Path:
    """Write the page of a run.

    Args:
        run: as [`read_run`] returns it.
        output: the HTML file.
        max_rollouts: the most rollouts to put into it.

    Raises:
        ValueError: `max_rollouts` is not at least 1.
    """
    if max_rollouts < 1:
        raise ValueError(f"max_rollouts must be at least 1, got {max_rollouts}")
    assets = files("lupi_trainer.inspection") / "assets"
    page, style, script = (
        (assets / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    )
    data = json.dumps(page_data(run, max_rollouts), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    parts = {"title": html.escape(run.name), "style": style, "data": data.replace("<", "\\u003c"), "script": script}
    parts |= {"marks": marks(run), "warnings": warnings(run), "settings": settings(run)}
    page = re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], page)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, page)
    return output

"""What a page says of a run in tables: marks, warnings, settings. Plain HTML, every text of the run escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from .run import Run
from .words import MARKS, METRICS, is_share


def _abbr(text: str, about: str) -> str:
    """A word that explains itself where the pointer rests on it."""
    if not about:
        return html.escape(text)
    return f'<abbr title="{html.escape(about)}" tabindex="0">{html.escape(text)}</abbr>'


def _table(name: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table of cells that are HTML already."""
    cells = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table id="{name}"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>'


def _figure(metric: str, value: float) -> str:
    return f"{value:.1%}" if is_share(metric) else f"{value:.4g}"


def _change(metric: str, change: float) -> str:
    return f"{100 * change:+.1f} points" if is_share(metric) else f"{change:+.4g}"


def marks(run: Run) -> str:
    """The first and the last of what was measured, and the step of each; empty where nothing was."""
    rows = []
    for metric, name in MARKS.items():
        points = run.points(metric)
        if points:
            before, after = points[0][1], points[-1][1]
            change = _change(metric, after - before) if len(points) > 1 else ""
            cells = (f"{_figure(metric, value)} <small>step {step}</small>" for step, value in (points[0], points[-1]))
            rows.append((_abbr(name, METRICS[metric]), *cells, change))
    if not rows:
        return ""
    return "<h2>Marks</h2>" + _table("marks", ("", "first", "last", "change"), rows)


def warnings(run: Run) -> str:
    """What the run warned of; empty where it did not."""
    if not run.warnings:
        return ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in run.warnings)
    about = "What the run said of itself at level WARNING, each once, in order."
    return f'<h2>{_abbr("Warnings", about)}</h2><ul id="warnings">{items}</ul>'


def _value(value: Any) -> str:
    return html.escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def settings(run: Run) -> str:
    """The keys of the recipe that were set, each with what it does; empty where they were not written down."""
    rows = [(_abbr(name, about), _value(value)) for name, value, about in run.settings]
    if not rows:
        return ""
    head = f"<summary>Settings: {len(rows)} that are not left at their defaults</summary>"
    return f"<details>{head}{_table('settings', ('key', 'value'), rows)}</details>"

"""One HTML page of a run: curves, figures, a reader of its rollouts. Everything is inside it; it asks no network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..data.files import write_atomically
from ..data.wording import counted
from .rollouts import CutOff, Rollouts
from .run import NOT_SHOWN, Run, curves_of
from .tables import marks, settings, warnings
from .words import CURVES as ABOUT
from .words import explained, is_share


# in all rollouts of a page, and points of a line: more would make a browser wait
MOST_TOKENS, MOST_LETTERS, MOST_POINTS = 100_000, 10_000_000, 2000


def _thin(places: list[int], limit: int) -> list[int]:
    """At most `limit` of the places, evenly; the first and the last stay."""
    if len(places) <= limit:
        return places
    if limit == 1:
        return places[-1:]
    return [places[round(i * (len(places) - 1) / (limit - 1))] for i in range(limit)]


def _thin_line(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most [`MOST_POINTS`] of a line's points, with its ends, and the highest and the lowest of each stretch."""
    if len(points) <= MOST_POINTS:
        return points
    stretches, inner = (MOST_POINTS - 2) // 2, points[1:-1]
    bounds = [len(inner) * i // stretches for i in range(stretches + 1)]
    kept = {points[0], points[-1]}
    for first, end in zip(bounds, bounds[1:]):
        kept |= {f(inner[first:end], key=lambda point: point[1]) for f in (min, max)}
    return sorted(kept)


def _letters(rollout: dict[str, Any]) -> int:
    """How many letters the texts of a rollout have."""
    texts = [*rollout["completion"], *rollout["draft"], rollout["privileged_context"]]
    return sum(len(text or "") for text in [*texts, *(message["content"] for message in rollout["prompt"])])


def _choose(rollouts: Rollouts, places: list[int], limit: int) -> tuple[list[dict[str, Any]], int]:
    """(rollouts in some of the places, which are no more than a page holds, how many lines were cut off).

    They are read one at a time, and no more of them than are shown.
    """
    while True:
        chosen, tokens, letters, cut_off = [], 0, 0, 0
        for seen, place in enumerate(_thin(places, limit), 1):
            try:
                chosen.append(rollouts[place])
            except CutOff:
                cut_off += 1
                continue
            tokens += len(chosen[-1]["completion"])
            letters += _letters(chosen[-1])
            filled = max(tokens / MOST_TOKENS, letters / MOST_LETTERS)
            if filled > 1 and limit > 1:
                limit = max(1, min(min(limit, len(places)) - 1, int(seen / filled)))
                break
        else:
            return chosen, cut_off


def page_data(
    run: Run, max_rollouts: int = 1000, first_step: int | None = None, last_step: int | None = None
) -> dict[str, Any]:
    """What the page shows, as its script reads it.

    Args:
        run: as [`read_run`] returns it.
        max_rollouts: the most rollouts to show.
        first_step, last_step: show rollouts of these steps, and of those between, alone.

    Returns:
        `name`; `curves` (title and lines with [step, value] points, what title and labels mean, and whether values are
        fractions of 1; those without a point are left out); `metrics` (figures of `metrics.json`), and which of them
        are `shares`; `rollouts` (at most `max_rollouts`, and so many that they have no more than
        [`MOST_TOKENS`] tokens and [`MOST_LETTERS`] letters, spread over the run); `notes` (what is missing, in words).
    """
    curves, notes = [], list(run.notes)
    shown = curves_of(run.history)
    for curve in shown:
        lines = {label: run.points(metric) for metric, label in curve.lines.items()}
        lines = {label: points for label, points in lines.items() if points}
        if lines:
            notes += [
                f"{len(_thin_line(points)):,} of the {len(points):,} points of {metric} are shown, with its ends, the "
                "highest and the lowest."
                for metric in curve.lines
                if len(points := run.points(metric)) > MOST_POINTS
            ]
            lines = {label: _thin_line(points) for label, points in lines.items()}
            words = {label: explained(metric) for metric, label in curve.lines.items() if label in lines}
            about = {"about": ABOUT[curve.name], "words": words, "share": all(map(is_share, curve.lines))}
            curves.append({"name": curve.name, "title": curve.title, "lines": lines, **about})
    for metric in {metric: None for curve in shown for metric in curve.lines}:
        if left_out := len(run.values(metric)) - len(run.points(metric)):
            notes.append(f"{counted(left_out, 'value')} of {metric} left out of its curve: {NOT_SHOWN}.")
    places = run.rollouts.within(first_step, last_step)
    rollouts, cut_off = _choose(run.rollouts, places, max_rollouts)
    cut_off += run.rollouts.broken
    if not run.rollouts:
        notes.append("No rollouts were recorded: train with record_rollouts set to how many.")
    if len(run.rollouts) > len(rollouts):
        most = f": a page holds up to {MOST_TOKENS:,} tokens and {MOST_LETTERS:,} letters"
        long = most if len(rollouts) < min(max_rollouts, len(places)) else ""
        notes.append(f"{len(rollouts)} of {len(run.rollouts)} recorded rollouts are shown{long}.")
    if cut_off:
        notes.append(f"{counted(cut_off, 'line')} of rollouts.jsonl left out: cut off in writing.")
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


def policy(*parts: tuple[str, str]) -> str:
    """A Content-Security-Policy that allows the given parts of a page and nothing else, from wherever it is.

    Args:
        parts: (kind, text) of what is in the page: `script` or `style`.
    """
    hashes = [(kind, base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()) for kind, text in parts]
    allowed = "".join(f"; {kind}-src 'sha256-{digest}'" for kind, digest in hashes)
    return f"default-src 'none'{allowed}; base-uri 'none'; form-action 'none'"


def write_page(
    run: Run,
    output: str | Path,
    max_rollouts: int = 1000,
    first_step: int | None = None,
    last_step: int | None = None,
) -> Path:
    """Write the page of a run.

    Args:
        run: as [`read_run`] returns it.
        output: the HTML file.
        max_rollouts: the most rollouts to put into it.
        first_step, last_step: as for [`page_data`].

    Raises:
        ValueError: `max_rollouts` is not at least 1, or what was recorded is odd; the message names file and line.
    """
    if max_rollouts < 1:
        raise ValueError(f"max_rollouts must be at least 1, got {max_rollouts}")
    assets = files("lupi_trainer.inspection") / "assets"
    page, style, script = (
        (assets / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    )
    style, script = f"\n{style}\n", f"\n{script}\n"
    shown = page_data(run, max_rollouts, first_step, last_step)
    data = json.dumps(shown, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    parts = {"title": html.escape(run.name), "style": style, "data": data.replace("<", "\\u003c"), "script": script}
    parts |= {"policy": policy(("script", script), ("style", style))}
    parts |= {"marks": marks(run), "warnings": warnings(run), "settings": settings(run)}
    page = re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], page)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, page)
    return output

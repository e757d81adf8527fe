"""Finished runs to one line an arm: mean and spread over seeds."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any


SCORES = ("new", "new_strict", "unseen", "general")
PASS = 0.9
ACCEPTED = "acc_rate/mean"


def spread(values: list[float]) -> tuple[float, float]:
    """(mean, sample standard deviation; 0 for a single value)."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def first_pass(curve: list[dict[str, float]], score: str = "new", level: float = PASS) -> dict[str, float] | None:
    """The first point of a run at which `score` has reached `level`, or `None`."""
    return next((point for point in curve if point[score] >= level), None)


def summarize(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row an arm, in the order in which the arms come.

    Args:
        runs: finished runs: `arm`, `seed` and `curve`, as [`Track`] makes it.

    Returns:
        Rows with `arm`, `seeds`, `steps`, every score at the end, `tokens`, `seconds` and, of arms that draft,
        `accepted` (the share of drafted tokens) as (mean, standard deviation), and `passed`: of how many seeds at
        least 90% of the new facts were known at some point, and the means of `step`, `tokens`, `seconds`, `unseen`
        and `general` there, over those seeds.
    """
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in runs):
        curves = [run["curve"] for run in runs if run["arm"] == arm]
        ends = [curve[-1] for curve in curves]
        row = {"arm": arm, "seeds": len(curves), "steps": ends[0]["step"]}
        for key in (*SCORES, "tokens", "seconds"):
            if all(key in end for end in ends):
                row[key] = spread([end[key] for end in ends])
        rollouts = [run.get("rollouts", {}) for run in runs if run["arm"] == arm]
        if all(ACCEPTED in figures for figures in rollouts):
            row["accepted"] = spread([figures[ACCEPTED] for figures in rollouts])
        passes = [point for point in map(first_pass, curves) if point is not None]
        passed: dict[str, float] = {"seeds": len(passes)}
        for key in ("step", "tokens", "seconds", "unseen", "general"):
            if passes and key in passes[0]:
                passed[key] = mean(point[key] for point in passes)
        rows.append({**row, "passed": passed})
    return rows


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table; scores in per cent, plus or minus the standard deviation over seeds."""
    titles = {
        "new": "new facts",
        "new_strict": "strict",
        "unseen": "unseen phrasings",
        "general": "general",
    }
    scores = [key for key in SCORES if any(key in row for row in rows)]
    accepted = any("accepted" in row for row in rows)
    heads = ["arm", "seeds", "steps", *(titles[key] for key in scores), *["accepted"] * accepted, "tokens", "seconds"]
    heads += ["90% at step", "tokens", "seconds", "unseen then", "general then"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["arm"], str(row["seeds"]), str(row["steps"])]
        cells += ["{:.1%} ± {:.1%}".format(*row[key]) if key in row else "" for key in scores]
        if accepted:
            cells.append("{:.1%}".format(row["accepted"][0]) if "accepted" in row else "")
        cells += [f"{row['tokens'][0]:,.0f}", f"{row['seconds'][0]:.0f}"]
        passed = row["passed"]
        if passed["seeds"]:
            of = f" ({passed['seeds']} of {row['seeds']})" if passed["seeds"] < row["seeds"] else ""
            cells += [f"{passed['step']:.0f}{of}", f"{passed['tokens']:,.0f}", f"{passed['seconds']:.0f}"]
            cells += [f"{passed[key]:.1%}" if key in passed else "" for key in ("unseen", "general")]
        else:
            cells += ["never", "", "", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"

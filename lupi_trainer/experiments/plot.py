"""The picture of a comparison: accuracy against supervised tokens, one line an arm."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_curves(runs: Sequence[dict[str, Any]], path: Path, score: str = "new") -> None:
    """Draw the mean of every arm over its seeds, and the range between the worst and the best seed.

    Args:
        runs: as for [`summarize`].
        path: of the picture; its ending says which kind (`.svg`, `.png`).
        score: what is drawn upwards, of the figures in the curves.

    Raises:
        ValueError: matplotlib is not installed (`pip install lupi-trainer[plots]`).
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter
    except ImportError as error:
        raise ValueError("the picture needs matplotlib: pip install lupi-trainer[plots]") from error
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot(
        xlabel="supervised tokens", ylabel="new facts answered, closed-book" if score == "new" else score
    )
    for number, arm in enumerate(dict.fromkeys(run["arm"] for run in runs)):
        curves = [run["curve"] for run in runs if run["arm"] == arm]
        points = list(zip(*curves))  # one a measured step
        if len(points) < 2:
            continue  # nothing was trained
        tokens = [sum(p["tokens"] for p in at) / len(at) for at in points]
        values = [[p[score] for p in at] for at in points]
        means = [sum(v) / len(v) for v in values]
        [line] = axes.plot(tokens, means, label=arm, linestyle=("-", "--", "-.")[number // 10 % 3])
        axes.fill_between(tokens, list(map(min, values)), list(map(max, values)), color=line.get_color(), alpha=0.15)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)

"""Curves of one or several runs, for papers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .run import CURVES, Run


def plot_runs(runs: Sequence[Run], output_dir: str | Path, names: Sequence[str] | None = None) -> list[Path]:
    """Draw curves with several runs on one axis, each as PNG (200 dots an inch) and SVG.

    A single run shows all lines of a curve; several show the first line that any of them has, one line a run.

    Args:
        runs: as [`read_run`] returns them.
        output_dir: folder of the pictures, `NAME.png` and `NAME.svg`.
        names: of `CURVES`; by default all that some run has.

    Returns:
        The files written.

    Raises:
        ValueError: no such curve, a curve that no run has, no curve at all, or no matplotlib.
    """
    known = {curve.name: curve for curve in CURVES}
    for name in names or ():
        if name not in known:
            raise ValueError(f"no curve {name!r}; there are {', '.join(known)}")
    drawings = {}
    for curve in [known[name] for name in names] if names else CURVES:
        metrics = [m for m in curve.lines if any(run.points(m) for run in runs)]
        if metrics:
            drawings[curve.name] = metrics if len(runs) == 1 else metrics[:1]
        elif names:
            raise ValueError(f"no {curve.name!r} to plot: none of the runs logged {' or '.join(curve.lines)}")
    if not drawings:
        raise ValueError("none of the runs logged anything that could be plotted")

    try:
        import matplotlib
    except ImportError as error:
        raise ValueError("plots need matplotlib: pip install 'lupi-trainer[plots]'") from error

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = [run.name for run in runs]
    if len(set(labels)) < len(labels):
        labels = [str(run.path) for run in runs]
    output_dir, written = Path(output_dir), []
    output_dir.mkdir(parents=True, exist_ok=True)
    settings: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "lupi",
    }
    for name, metrics in drawings.items():
        curve = known[name]
        with matplotlib.rc_context(settings):
            figure, axes = pyplot.subplots(figsize=(4.2, 2.8), layout="constrained")
            for run, label in zip(runs, labels):
                for metric in metrics:
                    points = run.points(metric)
                    if points:
                        marker = "o" if len(points) <= 30 else None
                        line = curve.lines[metric] if len(runs) == 1 else label
                        axes.plot(*zip(*points), marker=marker, markersize=3, label=line)
            alone = len(metrics) == 1 < len(curve.lines)
            axes.set(xlabel="step", ylabel=curve.title + (f": {curve.lines[metrics[0]]}" if alone else ""))
            axes.grid(alpha=0.25)
            axes.legend(frameon=False, fontsize="small")
            for kind in ("png", "svg"):
                path = output_dir / f"{name}.{kind}"
                figure.savefig(path, dpi=200, metadata={"Date": None} if kind == "svg" else None)
                written.append(path)
            pyplot.close(figure)
    return written

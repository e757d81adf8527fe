"""What a run left on disk, to look at: one page for a browser, and plots for papers. Needs no model and no torch."""

from .page import write_page
from .plots import plot_runs
from .run import CURVES, Curve, Run, read_run


__all__ = ["CURVES", "Curve", "Run", "plot_runs", "read_run", "write_page"]

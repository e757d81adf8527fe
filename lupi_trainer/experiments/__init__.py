"""Ways of teaching the same facts, side by side at equal optimizer steps: what each learns, forgets and costs."""

from .controls import shuffled_knowledge, without_knowledge
from .measure import load_probe_sets, measure_training, measure_untrained
from .plot import plot_curves
from .results import read_result, write_comparison
from .summary import summarize, to_markdown
from .track import Track


__all__ = [
    "Track",
    "load_probe_sets",
    "measure_training",
    "measure_untrained",
    "plot_curves",
    "read_result",
    "shuffled_knowledge",
    "summarize",
    "to_markdown",
    "without_knowledge",
    "write_comparison",
]

"""Ways of teaching the same facts, side by side at equal optimizer steps: what each learns, forgets and costs."""

from .controls import shuffled_knowledge, without_knowledge
from .plot import plot_curves
from .summary import summarize, to_markdown
from .track import Track


__all__ = ["Track", "plot_curves", "shuffled_knowledge", "summarize", "to_markdown", "without_knowledge"]

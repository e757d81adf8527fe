"""Does the student know it without being told? Closed-book questions, and what they are compared with."""

from .closed_book import ClosedBookResult, ask, closed_book, generate_answers, score_answer
from .perplexity import PerplexityResult, perplexity


__all__ = [
    "ClosedBookResult",
    "PerplexityResult",
    "ask",
    "closed_book",
    "generate_answers",
    "perplexity",
    "score_answer",
]

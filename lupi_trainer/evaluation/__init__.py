"""Does the student know it without reading it? Closed-book questions, and what they are compared with."""

from ..data.answers import score_answer
from .acceptance import AcceptanceCounts, acceptance
from .closed_book import ClosedBookResult, Kept, ask, closed_book, generate_answers, kept
from .leakage import mentions_context
from .perplexity import PerplexityResult, perplexity
from .privilege import PrivilegeGap, privilege_gap, without_knowledge


__all__ = [
    "AcceptanceCounts",
    "ClosedBookResult",
    "Kept",
    "PerplexityResult",
    "PrivilegeGap",
    "acceptance",
    "ask",
    "closed_book",
    "generate_answers",
    "kept",
    "mentions_context",
    "perplexity",
    "privilege_gap",
    "score_answer",
    "without_knowledge",
]

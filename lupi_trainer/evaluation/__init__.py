"""Does the student know it without being told? Closed-book questions, and what they are compared with."""

from .closed_book import ClosedBookResult, ask, closed_book, generate_answers, score_answer


__all__ = ["ClosedBookResult", "ask", "closed_book", "generate_answers", "score_answer"]

"""What of each document and chunk can be taught, and what not, and why."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from .make import Made
from .read import Document, LeftOut
from .verdicts import REASONS


def chunk_rows(documents: list[Document | LeftOut], made: list[Made]) -> list[dict[str, Any]]:
    """A row for every chunk, with its text and its facts, and one for every file that was left out."""
    of: dict[str, list[Made]] = {}
    for one in made:
        of.setdefault(one.chunk.file, []).append(one)
    rows: list[dict[str, Any]] = []
    for document in documents:
        if isinstance(document, LeftOut):
            rows.append({"file": document.name, "fault": document.why})
        for one in of.get(document.name, []):
            chunk = one.chunk
            place = chunk.source | {"tokens": chunk.tokens, "text": chunk.text}
            rows.append(place | {"fault": chunk.fault or one.fault, "facts": [_fact(v) for v in one.verdicts]})
    return rows


def _fact(verdict) -> dict[str, Any]:
    fact = verdict.fact
    written = {"question": fact.question, "phrasings": list(fact.phrasings), "answer": fact.answer}
    return written | {
        "asked": list(verdict.questions) if verdict.reason == "kept" else [],
        "reason": verdict.reason,
        "detail": verdict.detail,
        "known": verdict.known,
    }


def count(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Of rows of chunks: `chunks`, `empty` (nothing of them is kept), `faults`, `facts`, `questions`, reasons, and how
    many phrasings of kept facts are left out."""
    rows = [row for row in rows if "facts" in row]
    facts = [fact for row in rows for fact in row["facts"]]
    reasons = Counter(fact["reason"] for fact in facts)
    return {
        "chunks": len(rows),
        "empty": sum(not any(fact["reason"] == "kept" for fact in row["facts"]) for row in rows),
        "faults": sum(bool(row["fault"]) for row in rows),
        "facts": len(facts),
        "questions": sum(len(fact["asked"]) for fact in facts),
        **{reason: reasons[reason] for reason in REASONS},
        "phrasings_left_out": sum(len(f["phrasings"]) + 1 - len(f["asked"]) for f in facts if f["reason"] == "kept"),
    }


def by_document(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Document to its counts, in order."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "facts" in row:
            groups.setdefault(row["file"], []).append(row)
    return {name: count(group) for name, group in groups.items()}

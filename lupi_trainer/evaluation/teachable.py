"""What can be taught: questions that the teacher answers from the knowledge, and the student not without it."""

from collections import Counter
from typing import Any

from ..data.answers import score_answer


REASONS = {
    "kept": "the teacher reads it, and the student does not know it",
    "unread": "the teacher, with the knowledge before it, does not answer it right",
    "known": "the student answers it right without the knowledge",
}


def reason(probe: dict[str, Any], opened: dict[str, Any], closed: dict[str, Any] | None, mark: str = "strict") -> str:
    """The key of [`REASONS`] for one question.

    Args:
        probe: with its accepted `answers`.
        opened: the teacher's reply, `{answer, finished}`, with the knowledge before it.
        closed: the student's reply without it; `None`: not asked, since the teacher's is wrong.
        mark: how the teacher's reply must be right, `"strict"` or `"lenient"`. A student knows it with either mark.
    """
    strict, lenient = score_answer(opened["answer"], probe["answers"], finished=opened["finished"])
    if not (strict if mark == "strict" else lenient):
        return "unread"
    assert closed is not None  # whatever the teacher reads is put to the student
    return "known" if score_answer(closed["answer"], probe["answers"], finished=closed["finished"])[1] else "kept"


def count(reasons: list[str], groups: list[str | None]) -> dict[str, Any]:
    """How many questions there are for every reason, of all and of each group that has a name."""

    def of(chosen: list[str]) -> dict[str, int]:
        found = Counter(chosen)
        return {"asked": len(chosen), **{name: found[name] for name in REASONS}}

    named = sorted({group for group in groups if group is not None})
    counts: dict[str, Any] = of(reasons)
    if named:
        counts["categories"] = {name: of([r for r, g in zip(reasons, groups) if g == name]) for name in named}
    return counts


def training_records(probes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Questions to training records: the question itself, and the paragraph that holds its answer.

    A record's `id` is that of the paragraph and the question's place among those about it.
    """
    places: Counter[str] = Counter()
    records = []
    for probe in probes:
        name = str(probe["record_id"])
        places[name] += 1
        category = {"category": probe["category"]} if probe.get("category") else {}
        text = {"query": probe["question"], "knowledge": probe["knowledge"]}
        records.append({"id": f"{name}_q{places[name]}", **category, **text})
    return records

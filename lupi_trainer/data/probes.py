"""Closed-book questions: which can be asked and marked, and how messages name them and records.

Nothing heavy is imported here.
"""

import difflib
from collections.abc import Iterable
from typing import Any


ALIASES = {"query": "prompt", "knowledge": "privileged_context"}


class RecordError(ValueError):
    """One record that cannot be used.

    Attributes:
        fault: what is wrong, in the same words for every record of which it is true.
        found: what this record has instead, the end of the message.
    """

    def __init__(self, where: str, fault: str, found: str = ""):
        super().__init__(f"{where}: {fault}{found}")
        self.fault, self.found = fault, found


def record_name(record: dict[str, Any], number: int | None = None) -> str:
    """How every message names a record: by `id` (a probe by `record_id`), and by its place.

    Args:
        record: a record or probe, of whatever columns.
        number: its place among those that were given; without it, a record without a name is named by `row_id`.
    """
    name = next((n for n in (record.get("id"), record.get("record_id")) if n not in (None, "")), None)
    if name is None:
        return f"record number {record.get('row_id', '?') if number is None else number}"
    return f"record {name!r}" if number is None else f"record {name!r} (number {number})"


def misspelled(record: dict[str, Any], fields: Iterable[str]) -> dict[str, str]:
    """Keys of a record that are nearly a field that it lacks -> that field."""
    absent = [field for field in fields if field not in record]
    near = {str(key): difflib.get_close_matches(str(key).lower(), absent, 1, 0.75) for key in record}
    return {key: found[0] for key, found in near.items() if found}


def meant(record: dict[str, Any], *fields: str) -> str:
    """The end of a message about a missing field: which key of the record may have been meant to be it."""
    return "".join(f"; did you mean `{field}` by `{key}`?" for key, field in misspelled(record, fields).items())


def check_probes(probes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return `probes` unchanged if every one of them can be asked and marked."""
    if not probes:
        raise ValueError("there are no probe questions")
    for number, probe in enumerate(probes):
        check_probe(probe, number)
    return probes


def check_probe(probe: dict[str, Any], number: int) -> None:
    """Raises RecordError for a probe that cannot be asked and marked."""
    where = f"probe of {record_name(probe, number)}"
    if "question" not in probe:
        raise RecordError(where, "no `question`", f"; found {sorted(probe)}{meant(probe, 'question')}")
    if not isinstance(probe["question"], str) or not probe["question"].strip():
        raise RecordError(where, "the question is empty", f", got {probe['question']!r}")
    answers = probe.get("answers")
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        got = f", got {answers!r}" if "answers" in probe else f"; found {sorted(probe)}{meant(probe, 'answers')}"
        raise RecordError(where, "`answers` must be a list of accepted strings", got)
    if not isinstance(probe.get("knowledge") or "", str):
        raise RecordError(where, "`knowledge` must be text or null", f", got {type(probe['knowledge']).__name__}")

"""What is wrong with a file of records, and with its probes, before anything is trained on them.

A *problem* is what training or an evaluation would refuse. A *doubt* is what they accept, though it is hardly meant:
empty knowledge, a misspelled field, a question that says its own answer, or one whose answer is not in the knowledge
that it is asked about.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .answers import contains, normalize
from .near import Watch, unwatched
from .probe_knowledge import NAMES, KnowledgeOf, knowledge_in
from .probes import RecordError, check_probe, misspelled, record_name
from .records import normalize_record, to_columns


@dataclass(frozen=True)
class Problem:
    """One fault.

    Attributes:
        kind: a word for it.
        record: what has it (by `id`, else by its place).
        message: what is wrong, in the same words wherever it is.
        found: the end of the message, which is this record's own.
        doubt: whether training accepts it.
    """

    kind: str
    record: str
    message: str
    found: str = ""
    doubt: bool = False


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_text_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_text, value))


def asked(probe: dict[str, Any]) -> str:
    """A probe's question, empty where it has none."""
    return probe["question"] if is_text(probe.get("question")) else ""


def accepted(probe: dict[str, Any]) -> list[str]:
    """A probe's answers, none where they cannot be marked."""
    return probe["answers"] if is_text_list(probe.get("answers")) else []


def check_records(records: list[dict[str, Any]], *, watch: Watch = unwatched) -> list[Problem]:
    """Every fault of a list of records, in their order.

    Args:
        records: as read from a file.
        watch: shows how far it is.

    Returns:
        Problems of the kinds `field` (missing, or of a wrong type) and, of all records together, `type` (a column
        that holds values of several); doubts of the kind `empty` (knowledge, or an answer, that is text without a
        word).
    """
    found: list[Problem] = []
    for number, record in enumerate(watch(records, "records")):
        name = record_name(record, number)
        try:
            normalize_record(record, number)
        except RecordError as error:
            found.append(Problem("field", name, error.fault, error.found))
        else:
            blank = "so the teacher sees only what the student sees; null says that it is meant"
            found += [Problem("empty", name, f"its `{key}` is empty, {blank}", doubt=True) for key in empty(record)]
            if isinstance(answer := record.get("answer"), str) and not answer.strip():
                found.append(Problem("empty", name, "its `answer` is empty, so it has no gold answer", doubt=True))
    if all(problem.doubt for problem in found):
        try:
            to_columns(records)
        except ValueError as error:
            found.append(Problem("type", "all records", str(error)))
    return found


def empty(record: dict[str, Any]) -> list[str]:
    """The names under which a record or a probe has knowledge that is text without a word."""
    return [name for name in NAMES if isinstance(record.get(name), str) and not record[name].strip()]


def check_probes(
    probes: list[dict[str, Any]],
    records: Iterable[dict[str, Any]] | None = None,
    *,
    watch: Watch = unwatched,
) -> list[Problem]:
    """Every fault of closed-book questions.

    Args:
        probes: as read from a file.
        records: those that the questions are about; `None` for general questions, which need none.
        watch: shows how far it is.

    Returns:
        Problems of the kind `field`, in the order of the probes, and doubts of the kinds `empty` (knowledge that is
        text without a word), `field` (a misspelled one, which is not read), `record` (no knowledge is found for it),
        `answer` (the first accepted answer does not occur in the knowledge), `leak` (an accepted answer occurs in the
        question) and `duplicate` (a question asked twice).
    """
    known = None if records is None else KnowledgeOf(records)
    found: list[Problem] = []
    first: dict[str, int] = {}
    for number, probe in enumerate(watch(probes, "probes")):
        name = f"probe of {record_name(probe, number)}"

        def doubt(kind: str, message: str, found_here: str = "", name: str = name) -> None:
            found.append(Problem(kind, name, message, found_here, doubt=True))

        try:
            check_probe(probe, number)
        except RecordError as error:
            found.append(Problem("field", name, error.fault, error.found))
        for key in empty(probe):
            doubt("empty", f"its `{key}` is empty")
        if knowledge_in(probe) is None:
            for key, field in misspelled(probe, (*NAMES, "record_id")).items():
                doubt("field", f"`{key}` is not read; did you mean `{field}`?")
        question, answers = asked(probe), accepted(probe)
        earlier = first.setdefault(normalize(question), number) if question else number
        if earlier != number:
            doubt("duplicate", "its question is asked before", f", as number {earlier}: {question!r}")
        said = next((answer for answer in answers if contains(question, answer)), None)
        if said is not None:
            doubt("leak", "an accepted answer is in the question", f": {said!r} in {question!r}")
        if known is None:
            continue
        knowledge, reason = known.look_up(probe)
        if knowledge is None:
            doubt("record", reason)
        elif answers and not contains(knowledge, answers[0]):
            doubt("answer", "the first accepted answer is not in the knowledge", f": {answers[0]!r}")
    return found

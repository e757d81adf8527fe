"""What is wrong with a file of records, and with its probes, before anything is trained on them.

A record has `id`, `category`, `query`, `knowledge`, `sources`, `word_count` and `weakness_addressed`; a probe has
`record_id`, `question` and `answers`, of which the first occurs in the knowledge of its record.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .answers import contains, normalize
from .records import PROBE_COLUMNS, record_name


TEXTS, LISTS = ("id", "category", "query", "knowledge"), ("sources", "weakness_addressed")
SAME_QUERY, SAME_KNOWLEDGE = 0.8, 0.5  # share of common words, and of common runs of three words
SAME_QUESTION = 0.25  # share of common runs of three letters, of two questions with a common answer


@dataclass(frozen=True)
class Problem:
    """One fault: its kind, the record that has it (by `id`, else by its place), and what is wrong in words."""

    kind: str
    record: str
    message: str


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_text_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_text, value))


def word_runs(text: str, length: int) -> set[str]:
    """Every run of `length` words of a text, normalized; all of the text where it has fewer."""
    words = normalize(text).split()
    return {" ".join(words[i : i + length]) for i in range(max(len(words) - length + 1, 1))} - {""}


def letter_runs(text: str) -> set[str]:
    """Every run of three letters of a normalized text, spaces left out."""
    letters = text.replace(" ", "")
    return {letters[i : i + 3] for i in range(len(letters) - 2)}


def near_pairs(sets: list[set[str]], share: float) -> Iterator[tuple[int, int, float]]:
    """Pairs (i, j, Jaccard similarity), i < j, of sets that are at least `share` alike: all of them, and no other.

    Two such sets have a common element among the rarest `len - ceil(share * len) + 1` of each (prefix filtering;
    Bayardo et al., Scaling Up All Pairs Similarity Search, WWW 2007), so only these are looked up.
    """
    count = Counter(element for one in sets for element in one)
    places: dict[str, list[int]] = {}
    for j, one in enumerate(sets):
        rarest = sorted(one, key=lambda element: (count[element], element))
        prefix = rarest[: len(one) - math.ceil(share * len(one)) + 1] if one else []
        for i in sorted({i for element in prefix for i in places.get(element, ())}):
            similarity = len(one & sets[i]) / len(one | sets[i])
            if similarity >= share:
                yield i, j, similarity
        for element in prefix:
            places.setdefault(element, []).append(j)


def check_fields(record: dict[str, Any], min_words: int, max_words: int) -> Iterator[tuple[str, str]]:
    """(kind, message) of every fault of one record by itself."""
    for field in (*TEXTS, *LISTS, "word_count"):
        if field not in record:
            yield "field", f"no `{field}`"
    for field in TEXTS:
        if field in record and not is_text(record[field]):
            yield "field", f"`{field}` must be a text that is not empty, got {record[field]!r}"
    for field in LISTS:
        if field in record and not is_text_list(record[field]):
            yield "field", f"`{field}` must be a list of texts, none empty, got {record[field]!r}"
    if not is_text(record.get("knowledge")):
        return
    words = len(record["knowledge"].split())
    if not min_words <= words <= max_words:
        yield "length", f"its knowledge has {words} words, not {min_words} to {max_words}"
    if "word_count" in record and record["word_count"] != words:
        yield "word_count", f"`word_count` is {record['word_count']!r}, its knowledge has {words} words"


def check_records(records: list[dict[str, Any]], *, min_words: int = 80, max_words: int = 160) -> list[Problem]:
    """Every fault of a list of records.

    Args:
        records: as read from a file.
        min_words, max_words: the bounds of the knowledge, in words between white space (both languages).

    Returns:
        Problems of the kinds `field`, `length`, `word_count`, `id` (used twice) and `duplicate` (queries or knowledge
        that are nearly the same), in the order of the records.
    """
    names = [record_name(record, number) for number, record in enumerate(records)]
    found: list[list[Problem]] = [[] for _ in records]
    first: dict[str, int] = {}
    for number, record in enumerate(records):
        for kind, message in check_fields(record, min_words, max_words):
            found[number].append(Problem(kind, names[number], message))
        if is_text(record.get("id")) and first.setdefault(record["id"], number) != number:
            found[number].append(
                Problem("id", names[number], f"its id is that of record number {first[record['id']]}")
            )
    for field, length, share in (("query", 1, SAME_QUERY), ("knowledge", 3, SAME_KNOWLEDGE)):
        texts = [record[field] if is_text(record.get(field)) else "" for record in records]
        for i, j, similarity in near_pairs([word_runs(text, length) for text in texts], share):
            message = f"its {field} is {similarity:.0%} that of {names[i]}"
            found[j].append(Problem("duplicate", names[j], message))
    return [problem for problems in found for problem in problems]


def check_probes(probes: list[dict[str, Any]], records: list[dict[str, Any]] | None = None) -> list[Problem]:
    """Every fault of closed-book questions.

    Args:
        probes: as read from a file.
        records: those that the questions are about; `None` for general questions, which need none.

    Returns:
        Problems of the kinds `field`, `record` (there is no such record), `answer` (the first accepted answer does not
        occur in the knowledge), `leak` (an accepted answer occurs in the question) and `duplicate` (a question asked
        twice, or two that have an answer in common and are nearly the same), in the order of the probes.
    """
    rows = records or []
    knowledge = {r["id"]: r["knowledge"] for r in rows if is_text(r.get("id")) and is_text(r.get("knowledge"))}
    names = ["probe of " + record_name(probe, number) for number, probe in enumerate(probes)]
    found: list[list[Problem]] = [[] for _ in probes]
    questions = [normalize(probe["question"]) if is_text(probe.get("question")) else "" for probe in probes]
    accepted = [probe["answers"] if is_text_list(probe.get("answers")) else [] for probe in probes]
    asked: dict[str, int] = {}
    for number, probe in enumerate(probes):

        def report(kind: str, message: str, number: int = number) -> None:
            found[number].append(Problem(kind, names[number], message))

        for field in PROBE_COLUMNS:
            good = is_text_list if field == "answers" else is_text
            if not good(probe.get(field)):
                what = "a list of texts, none empty" if field == "answers" else "a text that is not empty"
                report("field", f"`{field}` must be {what}, got {probe.get(field)!r}")
        question, answers = questions[number], accepted[number]
        if question and asked.setdefault(question, number) != number:
            report("duplicate", f"its question is that of probe number {asked[question]}: {probe['question']!r}")
        for answer in answers:
            if contains(probe["question"] if question else "", answer):
                report("leak", f"the answer {answer!r} is in the question {probe['question']!r}")
                break
        if records is None or not is_text(probe.get("record_id")):
            continue
        if probe["record_id"] not in knowledge:
            report("record", "there is no such record with knowledge")
        elif answers and not contains(knowledge[probe["record_id"]], answers[0]):
            report("answer", f"the answer {answers[0]!r} is not in the knowledge of its record")
    for i, j, _ in near_pairs([letter_runs(question) for question in questions], SAME_QUESTION):
        common = {normalize(a) for a in accepted[i]} & {normalize(a) for a in accepted[j]}
        if common and questions[i] != questions[j]:
            message = f"its question is nearly that of probe number {i}, with the answer {min(common)!r}: "
            found[j].append(Problem("duplicate", names[j], f"{message}{probes[i]['question']!r}"))
    return [problem for problems in found for problem in problems]

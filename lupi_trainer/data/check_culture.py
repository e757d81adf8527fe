"""The rules of the shipped data set, beyond those of training: `lupi data check --schema culture`.

A record has `id`, `category`, `query`, `knowledge`, `sources`, `word_count` and `weakness_addressed`; a probe has the
`record_id` of one, `question` and `answers`, of which the first occurs in the knowledge of its record.
"""

import re
from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from . import check
from .answers import normalize
from .check import Problem, accepted, asked, is_text, is_text_list
from .near import Watch, near_rows, unwatched
from .records import record_name


TEXTS, LISTS = ("id", "category", "query", "knowledge"), ("sources", "weakness_addressed")
SAME_QUERY, SAME_KNOWLEDGE = 0.8, 0.5  # share of common words, and of common runs of three words
SAME_QUESTION = 0.25  # share of common runs of three letters, of two questions with a common answer

_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")  # kana and Chinese letters
_UNSPACED_WORDS = re.compile(
    rf"(?=({_UNSPACED.pattern}{{2}}))."  # at the first letter of a pair
    rf"|((?:(?!{_UNSPACED.pattern})\S)+|(?<!{_UNSPACED.pattern})\S)"
)


def word_runs(text: str, length: int) -> set[str]:
    """Every run of `length` words of a text, normalized; all of the text where it has fewer. Where there are no spaces
    between words, each two letters that are side by side are a word."""
    text = normalize(text)
    words = [pair or word for pair, word in _UNSPACED_WORDS.findall(text)] if _UNSPACED.search(text) else text.split()
    return {" ".join(words[i : i + length]) for i in range(max(len(words) - length + 1, 1))} - {""}


def letter_runs(text: str) -> set[str]:
    """Every run of three letters of a normalized text, spaces left out."""
    letters = text.replace(" ", "")
    return {letters[i : i + 3] for i in range(len(letters) - 2)}


def check_fields(record: dict[str, Any], min_words: int, max_words: int) -> Iterator[tuple[str, str, str]]:
    """(kind, message, what was found) of every fault of one record by itself."""
    for field in (*TEXTS, *LISTS, "word_count"):
        if field not in record:
            yield "field", f"no `{field}`", ""
    for field in TEXTS:
        if field in record and not is_text(record[field]):
            yield "field", f"`{field}` must be a text that is not empty", f", got {record[field]!r}"
    for field in LISTS:
        if field in record and not is_text_list(record[field]):
            yield "field", f"`{field}` must be a list of texts, none empty", f", got {record[field]!r}"
    if not is_text(record.get("knowledge")):
        return
    words = len(record["knowledge"].split())
    if not min_words <= words <= max_words:
        yield "length", f"its knowledge must have {min_words} to {max_words} words", f", has {words}"
    if "word_count" in record and record["word_count"] != words:
        yield "word_count", "`word_count` is not that of its knowledge", f": {record['word_count']!r}, {words} words"


def check_records(
    records: list[dict[str, Any]], *, min_words: int = 80, max_words: int = 160, watch: Watch = unwatched
) -> list[Problem]:
    """Every fault of a list of records.

    Args:
        records: as read from a file.
        min_words, max_words: the bounds of the knowledge, in words between white space (both languages).
        watch: shows how far it is.

    Returns:
        Problems of the kinds `field`, `length`, `word_count`, `id` (used twice) and `duplicate` (its query or its
        knowledge is nearly that of an earlier record, of which the first is named), in the order of the records.
    """
    names = [record_name(record, number) for number, record in enumerate(records)]
    found: list[list[Problem]] = [[] for _ in records]
    first: dict[str, int] = {}
    for number, record in enumerate(records):
        for kind, message, what in check_fields(record, min_words, max_words):
            found[number].append(Problem(kind, names[number], message, what))
        if is_text(record.get("id")) and first.setdefault(record["id"], number) != number:
            where = f": number {first[record['id']]}"
            found[number].append(Problem("id", names[number], "its id is that of another record", where))
    for field, length, share in (("query", 1, SAME_QUERY), ("knowledge", 3, SAME_KNOWLEDGE)):
        texts = [record[field] if is_text(record.get(field)) else "" for record in records]
        runs = (word_runs(text, length) for text in watch(texts, f"{field}: read"))
        for j, near, similarity in near_rows(runs, share, watch, f"{field}: compared"):
            message = f"its {field} is nearly that of another record"
            what = f": {similarity[0]:.0%} that of {names[near[0]]}"
            found[j].append(Problem("duplicate", names[j], message, what))
    return [problem for problems in found for problem in problems]


def check_probes(
    probes: list[dict[str, Any]], records: list[dict[str, Any]] | None = None, *, watch: Watch = unwatched
) -> list[Problem]:
    """Every fault of closed-book questions, as [`check.check_probes`], whose doubts are problems here; also of the
    kinds `field` (no `record_id`) and `duplicate` (nearly an earlier question, of which the first is named, with an
    answer in common)."""
    found = [replace(problem, doubt=False) for problem in check.check_probes(probes, records, watch=watch)]
    names = ["probe of " + record_name(probe, number) for number, probe in enumerate(probes)]
    for number, probe in enumerate(probes):
        if not is_text(probe.get("record_id")):
            what = f", got {probe.get('record_id')!r}"
            found.append(Problem("field", names[number], "`record_id` must be a text that is not empty", what))
    questions = [normalize(asked(probe)) for probe in probes]
    _, same = np.unique(np.array(questions, object), return_inverse=True)
    answers = [{normalize(answer) for answer in accepted(probe)} for probe in probes]
    with_answer = {answer: array("q") for each in answers for answer in each}
    for number, each in enumerate(answers):
        for answer in each:
            with_answer[answer].append(number)
    runs = (letter_runs(question) for question in watch(questions, "questions: read"))
    for j, near, _ in near_rows(runs, SAME_QUESTION, watch, "questions: compared"):
        others = near[same[near] != same[j]]
        others = others[np.isin(others, np.concatenate([[], *(np.array(with_answer[a]) for a in answers[j])]))]
        if len(others):
            i = int(others[0])
            message = "its question is nearly another one, with the same answer"
            what = f": number {i}, {min(answers[i] & answers[j])!r}: {probes[i]['question']!r}"
            found.append(Problem("duplicate", names[j], message, what))
    return found

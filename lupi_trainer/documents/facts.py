"""What the teacher writes about a chunk: facts, each with a question, other phrasings of it, and a short answer."""

import json
import re
from dataclasses import dataclass
from typing import Any


MOST_LETTERS = 100  # of an answer
_FENCED = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n```\Z", re.DOTALL)


class Broken(ValueError):
    """A reply that is not of the form that was asked for."""


@dataclass(frozen=True)
class Fact:
    """One fact as the teacher wrote it.

    Attributes:
        question, phrasings, answer: texts.
        fault: what is wrong with its form, else empty.
    """

    question: str
    phrasings: tuple[str, ...]
    answer: str
    fault: str = ""


def parse(reply: str, finished: bool, count: int) -> tuple[list[Fact], list[str]]:
    """The facts of a reply, and its questions that the chunk does not answer.

    Args:
        reply: JSON, and nothing beside it but a fence.
        finished: whether the teacher ended it.
        count: facts that were asked for; what comes after them is not read.

    Raises:
        Broken: it is cut off, no JSON, or not of the form.
    """
    if not finished:
        raise Broken("it was cut off")
    text = reply.strip()
    fenced = _FENCED.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError) as error:
        raise Broken(f"it is no JSON ({error})") from error
    if not isinstance(value, dict) or not isinstance(value.get("facts"), list):
        raise Broken('it is no object with a list of "facts"')
    unanswered = value.get("unanswered", [])
    if not isinstance(unanswered, list) or not all(isinstance(text, str) for text in unanswered):
        raise Broken('"unanswered" is no list of texts')
    return [_fact(entry) for entry in value["facts"][:count]], [_line(text) for text in unanswered[:1] if text.strip()]


def _fact(entry: Any) -> Fact:
    entry = entry if isinstance(entry, dict) else {"question": str(entry)}
    phrasings = entry.get("phrasings")
    phrasings = [text for text in phrasings if isinstance(text, str)] if isinstance(phrasings, list) else []
    question, answer = (entry[key] if isinstance(entry.get(key), str) else "" for key in ("question", "answer"))
    fact = Fact(_line(question), tuple(map(_line, phrasings)), _line(answer))
    return Fact(fact.question, fact.phrasings, fact.answer, _fault(fact))


def _fault(fact: Fact) -> str:
    if not fact.question or not fact.answer:
        return f"it has no {'answer' if fact.question else 'question'}"
    if len(fact.phrasings) != 2 or not all(fact.phrasings):
        return "it has not two other phrasings"
    if len(fact.answer) > MOST_LETTERS:
        return f"its answer has {len(fact.answer)} letters, more than {MOST_LETTERS}"
    if any("\ufffd" in text for text in (fact.question, fact.answer, *fact.phrasings)):
        return "it holds half a character"
    return ""


def _line(text: str) -> str:
    """On one line; what is half a character becomes U+FFFD."""
    return " ".join(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").split())

"""Questions that ask for the same fact, and questions that are the same and have several answers."""

import re
from collections.abc import Iterator

from ..data.answers import contains, normalize
from ..data.near import near_pairs


ALIKE = 0.5  # share of common words, by their beginnings, of two questions with the same answer
SMALL = set(
    "a an the what which who whom whose when where why how is are was were do does did has have had can could will "
    "would should may might must in on at of to for from by with about and or s it its you your me i my tell name "
    "give say know called be been there that this".split()
)
_ASKS = re.compile(r"(?:무엇|무슨|뭐|언제|어디|누구|누가|어느|어떤|어떻게|왜|몇|얼마|있|이름|알려|말해)")


def same_answer(a: str, b: str) -> bool:
    return contains(a, b) or contains(b, a)


def content(question: str) -> list[str]:
    """The words of a question that say what it is about; names and numbers keep their capital."""
    words = re.findall(r"[^\W_]+(?:-[^\W_]+)*", re.sub(r"['\u2019]s\b", "", question))
    return [word for word in words if word.casefold() not in SMALL and not _ASKS.match(word)]


def _stem(word: str) -> str:
    low = word.casefold()
    return low[:2] if "\uac00" <= low[0] <= "\ud7a3" else low[:4]


def _alike(a: str, b: str) -> bool:
    """Whether two words may be forms of one: numbers and names are the same or they are not."""
    low, other = sorted((a.casefold(), b.casefold()), key=len)
    if low == other:
        return True
    if any(word[0].isupper() or word[0].isdigit() for word in (a, b)):
        return False
    common = next((n for n, (x, y) in enumerate(zip(low, other)) if x != y), len(low))
    hangul = "\uac00" <= low[0] <= "\ud7a3"
    return common >= (2 if hangul else 4) and common >= 0.6 * (len(low) if hangul else len(other))


def same_subject(a: str, b: str) -> bool:
    """Whether one of two questions speaks of nothing that the other does not speak of."""
    one, two = content(a), content(b)
    lacks = [all(any(_alike(word, w) for w in other) for word in words) for words, other in ((one, two), (two, one))]
    return any(lacks)


def repeated(questions: list[tuple[str, ...]], answers: list[str]) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i < j, of facts that are the same: a phrasing of each is nearly one of the other, with one answer.

    Args:
        questions: the phrasings of each fact.
        answers: the answer to each.
    """
    rows = [(number, text) for number, texts in enumerate(questions) for text in texts]
    found = set()
    words = [{_stem(word) for word in content(text)} or {normalize(text)} for _, text in rows]
    for a, b, _ in near_pairs(words, ALIKE):
        (i, one), (j, two) = rows[a], rows[b]
        if i != j and (i, j) not in found and same_answer(answers[i], answers[j]) and same_subject(one, two):
            found.add((i, j))
            yield i, j


def contradicted(questions: list[tuple[str, ...]], answers: list[str]) -> dict[int, int]:
    """Fact to another one that has a question in common with it, and another answer."""
    places: dict[str, list[int]] = {}
    found: dict[int, int] = {}
    for number, texts in enumerate(questions):
        for text in dict.fromkeys(map(normalize, texts)):
            for other in places.get(text, []):
                if other != number and not same_answer(answers[number], answers[other]):
                    found.setdefault(number, other)
                    found.setdefault(other, number)
            places.setdefault(text, []).append(number)
    return found

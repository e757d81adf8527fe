"""Whether a text gives an accepted answer.

Two marks. *Lenient*: an accepted answer occurs anywhere in what the model wrote. *Strict*: it occurs in the first
sentence, and the model ended its answer by itself.
"""

import re
import unicodedata


MAX_ANSWER_TOKENS = 256  # wherever questions are asked and nothing else is said
# Scripts in which a particle follows a word without a space: their letters may follow an accepted answer.
_HANGUL, _UNSPACED = r"\u1100-\u11ff\uac00-\ud7af", r"\u3040-\u30ff\u3400-\u9fff"
_JOINED = _HANGUL + _UNSPACED
_LETTER = re.compile(rf"[^\W_{_JOINED}]|,")  # a comma that [`_spell`] has left is one of thousands
_SENTENCE_END = re.compile(r"(?<=[.!?\u3002])\s|\n")
_IN_WORD = r"(?<=[^\W_])[-'](?=[^\W_])"
_THOUSANDS = r"(?<=\d),(?=\d{3}(?!\d))"


def normalize(text: str) -> str:
    """Unicode NFKC, lower case, punctuation to spaces, single spaces."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in text).split())


def _spell(text: str) -> str:
    """[`normalize`], but hyphens and apostrophes inside words and the commas of thousands stay."""
    text = unicodedata.normalize("NFKC", text).casefold().translate({0x2010: "-", 0x2019: "'"})
    return " ".join(re.sub(rf"({_IN_WORD}|{_THOUSANDS})|[\W_]", lambda found: found[1] or " ", text).split())


def _spellings(text: str, apostrophes: str) -> set[str]:
    """A text with its words split at hyphens, and with them written as one (but not number and number).

    Args:
        text: from [`_spell`].
        apostrophes: what may stand for one: a space, nothing, or either.
    """
    joined = re.sub(r"(?<!\d)-|-(?!\d)", "", text)
    return {way.replace("-", " ").replace("'", other) for way in (text, joined) for other in apostrophes.split("|")}


def _contains_words(text: str, answer: str) -> bool:
    """Whether the answer occurs with no letter or digit beside it."""
    start = text.find(answer)
    while start >= 0:
        end = start + len(answer)
        if not _LETTER.match(text[max(start - 1, 0) : start]) and not _LETTER.match(text[end : end + 1]):
            return True
        start = text.find(answer, start + 1)
    return False


def _contains_joined(text: str, answer: str) -> bool:
    """The answer has letters of [`_JOINED`]: spaces are a matter of taste, and a particle follows."""
    letters = re.sub("[ ,'-]", "", answer)
    if letters not in re.sub("[ ,'-]", "", text):
        return False
    gaps = ("[ ,]?" if (a + b).isdigit() else "[ '-]?" for a, b in zip(letters, letters[1:]))
    body = letters[0] + "".join(gap + letter for gap, letter in zip(gaps, letters[1:]))
    before = "" if re.match(f"[{_UNSPACED}]", letters) else r"(?<![\d,])" if letters[0].isdigit() else r"(?<![^\W_])"
    return re.search(before + body + (r"(?![\d,])" if letters[-1].isdigit() else ""), text) is not None


def contains(text: str, answer: str) -> bool:
    """Whether the words of `answer` occur in `text`, in order and side by side, and not as a part of other words.

    Letters of Hangul, kana and Chinese may follow at once (they are particles). In an answer that has such letters
    itself, spaces do not count. A hyphen or an apostrophe inside a word may as well be missing, in text and answer.
    """
    text, answer = _spell(text), _spell(answer)
    if not answer:
        return False
    if re.search(f"[{_JOINED}]", answer):
        return _contains_joined(text, answer)
    answers = _spellings(answer, "") | _spellings(answer.replace(",", ""), "")
    return any(_contains_words(way, wanted) for way in _spellings(text, " |") for wanted in answers)


def score_answer(text: str, answers: list[str], *, finished: bool = True) -> tuple[bool, bool]:
    """Mark one answer.

    Args:
        text: what the model wrote.
        answers: the accepted strings; any one of them will do.
        finished: whether the model ended its answer by itself.

    Returns:
        (strict, lenient).
    """
    lenient = any(contains(text, answer) for answer in answers)
    first_sentence = _SENTENCE_END.split(text.strip(), maxsplit=1)[0]
    return finished and any(contains(first_sentence, answer) for answer in answers), lenient

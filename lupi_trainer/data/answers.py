"""Whether a text gives an accepted answer.

Two marks. *Lenient*: an accepted answer occurs anywhere in what the model wrote. *Strict*: it occurs in the first
sentence, and the model ended its answer by itself.
"""

import re
import unicodedata
from functools import lru_cache

from .numbers import CLOSE, OPEN, UNIT, mark_numbers
from .sentences import first_sentence


MAX_ANSWER_TOKENS = 256  # wherever questions are asked and nothing else is said
# Scripts in which a particle follows a word without a space: their letters may follow an accepted answer.
_HANGUL, _UNSPACED = r"\u1100-\u11ff\uac00-\ud7af", r"\u3040-\u30ff\u3400-\u9fff"
_JOINED = _HANGUL + _UNSPACED
_WORDS = re.compile(r"[^\W_]+")
_LETTER = re.compile(rf"[^\W_{_JOINED}]|[+#]|(?<={CLOSE})년대")  # a decade is no year
_IN_WORD = r"(?<=[^\W_])[-'](?=[^\W_])"
_CURRENCIES = "$€£¥₩"
_SIGNS = rf"(?<=[^\W_])[+#]+|[{_CURRENCIES}]"  # C++, C#
# of a unit that is by another one: 3 km/h are no 3 km
_RATIO = re.compile(
    rf"(?<={CLOSE})( ?[a-zµμ]{{1,3}})(?: ?/ ?| per )"
    r"(?=(?:h|hr|hour|m|min|minute|s|sec|second|d|day|wk|week|month|yr|year|l|dl|ml|mol|g|kg|km|cm|mm|ha)(?![a-z]))"
)
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\u2796"), "-") | {0x2019: "'", 0x2044: "/"}
# A counted number: a number or numeral and its counter. What may follow that is a particle and no longer counter.
_NUMERAL = "한 두 세 네 섯 곱 덟 홉 열 물 른 흔 쉰 순 일 이 삼 사 오 육 칠 팔 구 십 백 천 만".replace(" ", "|")
_COUNTED = re.compile(rf"{CLOSE}[ {_HANGUL}]{{1,5}}\Z|(?:{_NUMERAL}) [{_HANGUL}]\Z")
_PARTICLES = (
    "은 는 이 가 을 를 의 에 와 과 도 로 으로 만 씩 나 쯤 경 간 동안 까지 부터 마다 정도 가량 짜리 뿐 밖에 보다 처럼 "
    "라 고 며 다 네 군 거 랍 래 지만 지요 죠 요 예요 였 인 입 임 여서 여요 랑 하고 든 조차 마저 께 들 초 말 중 전 "
    "후 뒤 때 내 당 무렵 미만 남짓 안팎 꼴 생 작 산"
).replace(" ", "|")


def normalize(text: str) -> str:
    """Unicode NFKC, lower case, punctuation to spaces, single spaces."""
    return " ".join(_WORDS.findall(unicodedata.normalize("NFKC", text).casefold()))


@lru_cache(4096)
def _spell(text: str) -> str:
    """[`normalize`], but numbers are units, and hyphens and apostrophes inside words and the signs of C++ stay."""
    text = re.sub(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])", " ", text)  # NFKC makes 31/2 of a mixed number
    text = re.sub(r"(?<=\d)(?=[\u207a\u207b]?[\u00b2\u00b3\u00b9\u2070-\u2079])", "^", text)  # and 102 of a power
    text = re.sub(r"(?<!\d )[\u2212\u2796] +(?=[$€£¥₩]?\.?\d)", "-", text)  # no dash of a pause, as a hyphen may be
    text = mark_numbers(unicodedata.normalize("NFKC", text).casefold().translate(_DASHES))
    text = _RATIO.sub(r"\1#", text)
    return " ".join(re.sub(rf"({_IN_WORD}|{_SIGNS})|[\W_]", lambda found: found[1] or " ", text).split())


def _spellings(text: str, apostrophes: str) -> set[str]:
    """A text with its words split at hyphens, and with them written as one.

    Args:
        text: from [`_spell`].
        apostrophes: what may stand for one: a space, nothing, or either.
    """
    return {
        way.replace("-", " ").replace("'", other)
        for way in (text, text.replace("-", ""))
        for other in apostrophes.split("|")
    }


def _contains_words(text: str, answer: str) -> bool:
    """Whether the answer occurs with no letter or digit beside it."""
    start = text.find(answer)
    while start >= 0:
        end = start + len(answer)
        free = answer[0] in _CURRENCIES or not _LETTER.match(text[max(start - 1, 0) : start])
        if free and not _LETTER.match(text, end):
            return True
        start = text.find(answer, start + 1)
    return False


def _contains_joined(text: str, answer: str) -> bool:
    """The answer has letters of [`_JOINED`]: spaces are a matter of taste, and a particle follows."""
    letters = re.findall(f"{UNIT}|[^ '-]", answer)
    if "".join(letters) not in re.sub("[ '-]", "", text):
        return False
    body = "[ '-]?".join(map(re.escape, letters))
    before = "" if re.match(f"[{_UNSPACED}{OPEN}]", letters[0]) else r"(?<![^\W_])"
    after = r"(?![+#])" if letters[-1][0] != OPEN else "(?!년대)"
    if _COUNTED.search(answer):
        after = f"(?![{_HANGUL}])|(?={_PARTICLES})"
    return re.search(f"{before}{body}(?:{after})", text) is not None


def contains(text: str, answer: str) -> bool:
    """Whether the words of `answer` occur in `text`, in order and side by side, and not as a part of other words.

    Letters of Hangul, kana and Chinese may follow at once (they are particles). In an answer that has such letters
    itself, spaces do not count. A hyphen or an apostrophe inside a word may as well be missing, in text and answer.
    Numbers are compared as numbers: 1,395 is 1395, and neither 395 nor 1,395.5, -1,395, 1,395 million or 1,395%.
    """
    text, answer = _spell(text), _spell(answer)
    if not answer:
        return False
    if re.search(f"[{_JOINED}]", answer):
        return _contains_joined(text, answer)
    # a number and its unit are written apart or together
    ways = {re.sub(f"(?<={CLOSE}) ?(?=[^\\W\\d_{OPEN}])", space, answer) for space in ("", " ")}
    answers = set().union(*(_spellings(way, "") for way in ways))
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
    return lenient and finished and any(contains(first_sentence(text), answer) for answer in answers), lenient

"""Answers that speak of the knowledge as of a text: what a student that was shown none must never say."""

import re
import unicodedata


_TEXT = (
    r"(?:background|provided|given|above|supplied)\s+(?:background\s+)?(?:knowledge|information|text|context|passage)"
)
_ENGLISH = (
    rf"\b{_TEXT}\b",
    r"\bbackground\s+knowledge\b",
    r"\b(?:according\s+to|based\s+on|as\s+(?:stated|mentioned|described|given)\s+in|from)\s+the\s+"
    r"(?:background|context|passage|text|document|information|knowledge)\b",
    r"\bthe\s+(?:context|passage|text|document)\s+(?:says|states|mentions|does\s+not)\b",
)
_KOREAN = (
    r"배경\s*(?:지식|정보|설명)",
    r"(?:제공|제시|주어)(?:된|진|해\s*주신)\s*(?:배경|정보|지식|글|내용|자료|문맥|지문|본문|텍스트)",
    r"(?:위|앞)의?\s*(?:글|내용|정보|자료|지문|본문|설명)(?:에\s*따르면|에\s*의하면|에서|을\s*바탕으로|를\s*바탕으로)",
    r"(?:지문|본문|문맥|자료|텍스트)(?:에\s*따르면|에\s*의하면|을\s*바탕으로|를\s*바탕으로)",
)
_LEAK = re.compile("|".join((*_ENGLISH, *_KOREAN)), re.IGNORECASE)


def mentions_context(text: str) -> bool:
    """Whether an answer speaks of background knowledge or a given text, in English or in Korean.

    "According to the Annals" names a source and is none; "according to the background knowledge" is one.
    """
    return _LEAK.search(unicodedata.normalize("NFKC", text)) is not None

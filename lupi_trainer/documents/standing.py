"""Whether a question can be understood by somebody who does not see the text that it was made from."""

import re


# what a text is called, and words that are called otherwise, too, unless the clause ends with them
_TEXT = "text|passage|paragraph|excerpt"
_MAYBE = (
    "document|section|article|context|story|table|figure|chapter|page|sentence|statement|information|description|"
    "knowledge|document above|text above|material|source|report|guide|handbook|manual"
)
_HANGUL_TEXT = "글|본문|지문|문서|문단|단락|문장|텍스트|자료"
_ENDS = r"(?=\s*(?:[?,.;:]|\Z|\b(?:say|says|state|states|mention|mentions|describe|describes|tell|tells)\b))"
_WHICH = r"(?:the|this|that|these|those) (?:(?:given|above|following|provided|preceding|previous|same) )*"
_SPEAKS = re.compile(
    rf"\b{_WHICH}(?:{_TEXT})s?\b(?! (?:of|on|to|from|between|through|message|messages|carved|engraved) \w)"
    rf"|\b(?:in|from|by|to|within|throughout|does|did|do|per) {_WHICH}(?:{_MAYBE})s?\b{_ENDS}"
    rf"|\b(?:given|above|following|provided|preceding) (?:{_TEXT}|{_MAYBE})s?\b"
    r"|\b(?:mentioned|described|listed|stated|given|shown|discussed) (?:above|below|here|earlier)\b"
    r"|\b(?:is|are|was|were) (?:mentioned|stated|described|discussed)\s*\?"
    r"|\bthe (?:above|aforementioned|latter|former)\b"
    r"|\bthe (?:author|narrator|speaker|writer)s?\b(?! of\b)"
    rf"|(?<![가-힣])(?:이|위|본|다음|아래|해당|제시된|주어진) ?(?:{_HANGUL_TEXT}|내용|기사|표)"
    r"(?:[에은는의을를이가과와로]|\b)"
    rf"|(?<![가-힣])(?:{_HANGUL_TEXT})(?:에 따르면|에서(?:는)? (?:언급|설명|말하|제시)|에 (?:언급|나오|제시|나와))"
    r"|(?<![가-힣])(?:위|앞)에서 (?:언급|설명|말한)|(?<![가-힣])(?:필자|글쓴이)|\A저자[는가의]",
    re.IGNORECASE,
)
_PRONOUN = re.compile(
    r"(?<![\w'])(?:he|she|they|him|her|them|his|hers|its|their|theirs|himself|herself|itself|themselves|"
    r"this|these|those|it)(?!\w)(?!'(?:s|ll) (?:true|possible|necessary|allowed))",
    re.IGNORECASE,
)
# "it" that stands for nothing: "is it true that", "how long does it take to"
_EXPLETIVE = re.compile(
    r"\b(?:is|was|does|did|would|will|can|may|must) it (?:\w+ ){0,2}"
    r"(?:take|takes|cost|rain|snow|mean|\w+ (?:to|that|for)\b)"
    r"|\bit (?:is|was) \w+ (?:to|that|for)\b|\bit called when\b",
    re.IGNORECASE,
)
_POINTS = re.compile(
    r"(?:(?<![\w'])(?:[Tt]his|[Tt]hese|[Tt]hose) (?!(?:who|whose|that|which|with|in|of|from)\b)"
    r"|\b(?:of|in|at|from|by|during|about) that )([a-z]+)"
)
_ASKS = set(
    "what which who whom whose when where why how is are was were do does did has have had can could will would "
    "should may might must in on at of to for from by with about and or if as name tell say list give describe "
    "explain please the a an it he she they his her its their this these those".split()
)
_NOUN = re.compile(r"\b(?:the|an?|each|every|any|all|some|one|my|your|our|both|\w+'s) [a-z][\w-]+", re.IGNORECASE)
# "which planet is known for its ...": what is asked for, unless it is an object ("which bow did his father use")
_ASKED = re.compile(r"\b(?:which|what) (?!(?:of|is|are|was|were|do|does|did|has|had|have)\b)[a-z]+", re.IGNORECASE)
_OBJECT = re.compile(r"\b(?:do|does|did)\b", re.IGNORECASE)
_OWN = ("his", "her", "its", "their", "himself", "herself", "itself", "themselves")
# "what is ipchunchuk, and how is it ...": something that is named in a clause of its own
_CLAUSE = re.compile(
    r"\b(?:is|are|was|were|does|do|did|has|have|can) (?!called\b|known\b)[a-z]{4,}\b"
    r".*(?:,|\b(?:and|or|so|while|when|if|because|before|after|until)\b)",
    re.IGNORECASE,
)
_PLURAL = re.compile(r"\b(?!(?:is|was|does|has|his|its|this|as|us)\b)(?:[a-z]{3,}s|people|children|men|women|staff)\b")
_HANGUL_POINTS = re.compile(
    r"(?<![\w가-힣])(?:그는|그가|그를|그의|그에게|그와|그녀\w*|그들\w*|그것\w*|이것\w*|저것\w*|그곳\w*|이곳\w*|여기\w*|거기\w*|"
    r"이들\w*|이는|(?:이|그|저) (?=[가-힣]{2})|해당 )"
)
_HANGUL_ASKS = re.compile(r"(?:무엇|무슨|뭐|언제|어디|누구|누가|어느|어떤|어떻게|왜|몇|얼마|혹시)[가-힣]*\Z")


def dependence(question: str) -> str:
    """The words by which a question leans on a text that is not there; empty if it stands alone."""
    spoken = _SPEAKS.search(question)
    if spoken is not None:
        return spoken[0].strip()
    points = _POINTS.search(question)
    if points is not None:
        before = question[: points.start()]
        if not _names(before) and not re.search(rf"\b{points[1]}\b", before):
            return points[0]
    free = _EXPLETIVE.sub(lambda found: " " * len(found[0]), question)
    for pronoun in _PRONOUN.finditer(free):
        before = question[: pronoun.start()]
        said = pronoun[0].casefold()
        plural = said.startswith("the") and _PLURAL.search(before)
        asked = said in _OWN and _ASKED.search(before) and not _OBJECT.search(before)
        if said in ("this", "these", "those") and re.match(r" \w", question[pronoun.end() :]):
            continue  # which points at a noun: above
        if not (_names(before) or _NOUN.search(before) or _CLAUSE.search(before) or plural or asked):
            return pronoun[0]
    for pronoun in _HANGUL_POINTS.finditer(question):
        words = re.findall(r"[가-힣\w]{2,}", question[: pronoun.start()])
        if all(_HANGUL_ASKS.match(word) for word in words):
            return pronoun[0].strip()
    return ""


def _names(before: str) -> bool:
    """Whether a name stands before a pronoun."""
    words = re.findall(r"[^\W\d_][\w'-]*", before)
    return any(word[0].isupper() and word.casefold() not in _ASKS for word in words)


_ORDER = re.compile(
    r"(?:\A|[.!?;:,]\s+)(?:please,? )?"
    r"(?:name|tell|say|give|list|describe|explain|state|identify|define|specify|find|complete)\b",
    re.IGNORECASE,
)
_HANGUL_END = re.compile(r"(?:시오|세요|하라|여라|어라|줘|까|가|나|니|냐|요|은|는)[.!]?\Z")


def is_question(text: str) -> bool:
    """Whether a text asks for something: by its mark, as an order ("Name the ..."), or by its Korean ending."""
    text = text.strip()
    if not any(map(str.isalpha, text)):
        return False
    return text.endswith(("?", "\uff1f")) or bool(_ORDER.search(text)) or bool(_HANGUL_END.search(text))

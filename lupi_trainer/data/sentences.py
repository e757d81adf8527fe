"""Where the first sentence of an answer ends."""

import re


# words after which a full stop ends no sentence: those that a name follows ...
_TITLES = "st ft mt mr mrs ms messrs dr prof rev hon adm gen maj col capt lt sgt gov sen rep pres mme vs".split()
# ... those that a number follows, if it does ...
_NUMBERED = "no nos vol vols ch fig figs p pp op art sec para ca cf".split()
# ... and those that may end one all the same
_SHORT = "jr sr ed ave blvd approx est dept inc ltd corp co bros etc al kor jpn chin".split()
_SHORT += "jan feb mar apr jun jul aug sep sept oct nov dec".split()
_UNITS = "in ft oz lb lbs yd mi km cm mm hr hrs min sec yr yrs max avg".split()
# words that begin a sentence, whatever is before them
_STARTERS = """A An The This That These Those There It Its He His She Her They Their We Our You Your I My In On At
By From After But And So Then However Also Although As When While If For With Another Both Each Some""".split()
# words after which a letter is one of several, and no name's initial
_LETTERED = """answer appendix blood category chapter choice class column division exhibit factor figure form gate
grade group hepatitis influenza item key label league letter level line list model note option part phase plan platform
point pool row section sector series side stage step string table team terminal type unit variable version vitamin
wing zone""".split()
_AFTER_HOURS = """monday tuesday wednesday thursday friday saturday sunday january february march april may june july
august september october november december eastern central pacific mountain gmt utc est edt cst cdt mst pst pdt kst
jst""".split()  # what goes on after a.m. with a capital
_NEAR = 40  # letters that are looked at before a full stop and behind it
_END = re.compile(r"[.!?\u2026]+[\"')\]\u201d\u2019\u300d\u300f]*\s+|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d]*|\n")
_WORD = re.compile(r"[^\W\d_]+(?:\.[^\W\d_]+)*\Z")
_HANGUL = re.compile(r"[\uac00-\ud7a3]")


def _goes_on(before: str, after: str) -> bool:
    """Whether a full stop between two texts of one line ends no sentence."""
    if (
        re.fullmatch(r"\W*(?:\d{1,2}|[A-Za-z])", before)
        or re.search(r"(?<!\d)[12]\d{3}(?:\. \d{1,2})?\Z", before)
        and re.match(r"\d{1,2}\.", after)
    ):
        return True  # the number or letter of an item in a list; a date, as 2023. 6. 28.
    word, following = _WORD.search(before), re.match(r"([^\W\d_]+)(?![.\w])", after)
    if word is None:
        return False
    letters, name = word[0].split("."), word[0].casefold()
    begins = following is not None and following[0] in _STARTERS
    if name in _TITLES and not (name == "st" and begins) or name in _NUMBERED and after[:1].isdigit():
        return True  # "Downing St. He": a street, not a saint
    if begins:
        return False
    if len(letters) > 1:
        if name in ("a.m", "p.m") and after[:1].isupper():
            return re.split(r"\W", after.casefold())[0] in _AFTER_HOURS
        return max(map(len, letters)) <= 2  # U.S., B.C., Ph.D.
    if len(name) == 1:
        return name.isascii() and _is_initial(before, following[0] if following else "", after)
    return name in _SHORT or name in _UNITS and after[:1].islower()


def _is_initial(before: str, following: str, after: str) -> bool:
    """Whether the one letter that a text ends with is a name's, or short for a word."""
    letter, words = before[-1], re.findall(r"[^\W\d_]+\.?", before[:-1])
    previous = words[-1] if words else ""
    if letter.islower():
        return letter == "v" or not after[:1].isupper()  # Roe v. Wade, c. 1500
    if previous.casefold() in _LETTERED or following.casefold() in words or len(following) == 1:
        return False  # plan B. Plan A; it is A. B is not
    named = previous.casefold() in ("", "by", "of", "from", "with", "to") or previous.endswith(".")
    if letter == "I" and not named:
        return False  # he and I, Elizabeth I
    return not _HANGUL.match(after) or len(previous) == 2 and previous[0].isupper() and previous.endswith(".")


def _is_inside(end: str, after: str) -> bool:
    """Whether marks between two texts of one line are a pause ("Wait... it"), a quoted sentence's ("Who?" by him), or
    part of a name ("Yahoo! Inc.")."""
    if re.match(r"\.{2,}|\u2026|[!?][\"'\u201d\u2019]", end):
        return after[:1].islower()
    word = re.match(r"[^\W\d_]+(?=\.)", after)
    return end.startswith("!") and word is not None and word[0].casefold() in _SHORT


def first_sentence(text: str) -> str:
    """The first sentence of a text, with its end; a line ends one, too, and an abbreviation does not."""
    text = text.strip()
    for end in _END.finditer(text):
        before, after = text[max(end.start() - _NEAR, 0) : end.start()], text[end.end() : end.end() + _NEAR]
        if "\n" not in end[0] and (end[0].startswith(".") and _goes_on(before, after) or _is_inside(end[0], after)):
            continue
        return text[: end.end()].strip()
    return text

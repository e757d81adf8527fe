"""Numbers in a text, each made one letter-like unit, so that none is found inside another.

Thousands separators, scales ("3.5 million", "1만 189"), signs, percent signs and number words ("twenty-seven") belong
to the number that they are written with; so do numbers that are one expression ("3~4", "15:30", "1/2").
"""

import re
from decimal import Decimal


OPEN, CLOSE = "\uff2e", "\uff2f"  # letters that no text has after NFKC
UNIT = f"{OPEN}[0-9a-f]+{CLOSE}"

_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALES |= {"백": 2, "천": 3, "만": 4, "억": 8, "조": 12}
_SCALE = r"(?: ?(?:hundred|thousand|million|billion|trillion)(?![a-z])|[백천만억조])"
_DIGITS = r"(?:(?<![^\s(\-+±])\.)?\d+(?:[.,]\d+)*(?:e[-+]?\d+(?!\w))?"
_NUMBER = rf"{_DIGITS}(?:{_SCALE}+ ?{_DIGITS})*{_SCALE}*"
_BETWEEN = r"(?: [~:/×*\-] |\^-?|[ ~:/×*\-])"
# a dash or plus before a number is its sign, unless it follows what it could join or take from
_SIGN = r"(?:(?:\+/?-|-/?\+|[±∓]) ?|(?<![\w)\]%°+\-])[-+]|(?<![a-z])(?:minus|negative) |(?:마이너스|영하) ?)"
_BEFORE_CURRENCY = re.compile(r"(?<![\w)\]])([-+±])([$€£¥₩])(?=\.?\d)")
# with a space behind it, a dash is mostly a bullet or a pause
_APART_SIGN = re.compile(
    r"(?:(?<=[=(])|(?<=\b(?:is|of|at|to|be|by|as) )|(?<=[=(] )|(?<=\bwas )|(?<=\bare )|(?<=\bwere ))- (?=\.?\d)"
    r"|(?<=[^\s\d] )- (?=[\d.,]+ ?(?:°|degree|도(?!시|로|서|입구)))"
)
_PERCENT = r" ?(?:[%‰]|퍼센트|per ?cent(?![a-z]))"
_EXPRESSION = rf"(?P<sign>{_SIGN})?(?P<numbers>{_NUMBER}(?:{_BETWEEN}{_NUMBER})*)(?P<percent>{_PERCENT})?"

_ONES = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
_CARDINALS = (
    f"{_ONES} eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million"
)
_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth fortieth fiftieth hundredth thousandth "
    "halves thirds quarters fourths fifths sixths sevenths eighths ninths tenths hundredths thousandths"
)
_CARDINAL, _ORDINAL = (f"(?:{'|'.join(words.split())})(?![a-z])" for words in (_CARDINALS, _ORDINALS))
_THEN = r"(?:[ -]| point |(?:(?<=hundred)|(?<=thousand)|(?<=million)) and )"
_WORDS = rf"(?<![a-z])(?:minus |negative )?{_CARDINAL}(?:{_THEN}{_CARDINAL})*(?:{_THEN}{_ORDINAL})?"
_ANY = re.compile(rf"{_EXPRESSION}|(?P<words>{_WORDS})")

# tens and ones that are written apart, as "열 두 번"
_ONE = "하나|한|두|둘|세|셋|네|넷|다섯|여섯|일곱|여덟|아홉"
_NATIVE = rf"(?:열|스물|서른|마흔|쉰|예순|일흔|여든|아흔)(?= (?:{_ONE})[ 개번명살가])"
_SINO = r"(?<![가-힣])[일이삼사오육칠팔구십백천만억]*[십백천만억](?= [일이삼사오육칠팔구십백천]+ )"
_APART = re.compile(f"({_NATIVE}|{_SINO}) ")
_MONTH = re.compile(r"(?:jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)[a-z]* $")
_DATE = re.compile(r"[12]\d{3}([-./])\d{1,2}\1\d{1,2}|\d{1,2}([-./])\d{1,2}\2[12]\d{3}")
_YEARS = re.compile(r"[12]\d{3}(?:[-~/,][12]\d{3})+")
_YEAR_AND = re.compile(r"([12]\d)(\d\d)([-~/])(\d\d?)")  # 1919/20, or a month of 1919


def _unit(text: str) -> str:
    return f"{OPEN}{text.encode().hex()}{CLOSE}"


def _value(number: str) -> str:
    """A number with its separators and scales as plain digits; what is no number as it is."""
    total = section = current = Decimal(0)
    for part in re.findall(rf"{_DIGITS}|{'|'.join(_SCALES)}", number):
        exponent = _SCALES.get(part)
        if exponent is None:
            if not re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*(?:\.\d+)?", part):
                return number
            section, current = section + current, Decimal(part.replace(",", ""))
        elif exponent < 4 and part != "thousand":
            section, current = section + current * 10**exponent, Decimal(0)
        else:
            total, section, current = total + (section + current) * 10**exponent, Decimal(0), Decimal(0)
    value = f"{total + section + current:f}"
    return value.rstrip("0").rstrip(".") if "." in value else value


def _apart(numbers: str) -> list[str] | None:
    """Numbers of one expression that are years, or a date: each counts alone. `None`: the expression is one number."""
    close = re.sub(" ([~:/×*-]) ", r"\1", numbers)
    if _DATE.fullmatch(close) or _YEARS.fullmatch(close):
        return re.findall(r"\d+", close)
    if (found := _YEAR_AND.fullmatch(close)) is None:
        return None
    century, year, between, last = found.groups()
    if len(last) == 2 and (int(last) > int(year) or year + last == "9900"):
        return [century + year, f"{int(century + year) // 100 + (last < year)}{last}"]
    return [century + year, f"{int(last):02}"] if between != "~" and 1 <= int(last) <= 12 else None


def _mark(found: re.Match) -> str:
    if found["words"]:
        return _unit(re.sub(r" and |-", " ", found["words"]))
    sign = (found["sign"] or "").strip()
    sign = "" if sign == "+" else "±" if "+" in sign or sign in "±∓" and sign else sign and "-"
    numbers, percent = found["numbers"], "%" if found["percent"] else ""
    if percent and "‰" in found["percent"]:
        percent = "‰"
    if not (sign or percent):
        if (apart := _apart(numbers)) is not None:
            counter = "년 " if found.string.startswith("년", found.end()) else " "
            return counter.join(map(_unit, apart))
        if re.fullmatch(r"\d{1,2} \d{4}", numbers) and _MONTH.search(found.string[: found.start()]):
            return " ".join(map(_unit, numbers.split()))
    if re.fullmatch(r"\d{1,3}(?: \d{3})+", numbers):
        numbers = numbers.replace(" ", "")
    if re.fullmatch(_NUMBER, numbers):
        numbers = _value(numbers)
    return _unit(sign + re.sub(" ([~:/×*-]) ", r"\1", numbers) + percent)


def mark_numbers(text: str) -> str:
    """Every number of a text as a unit of [`UNIT`], equal where the numbers are.

    Args:
        text: after NFKC and case folding, its dashes and minus signs hyphens.
    """
    text = re.sub(r"(?<=\d)[\u00b7\u119e](?=\d)", ".", text)  # 3·1 is 3.1
    text = _APART_SIGN.sub("-", _BEFORE_CURRENCY.sub(r"\2\1", text))
    return _ANY.sub(_mark, _APART.sub(r"\1", text))

"""Every accepted answer that is shipped, alone, in sentences and with another number before it; then other texts."""

import re
from pathlib import Path

import pytest

from lupi_trainer.data.answers import contains, score_answer
from lupi_trainer.data.records import load_probes
from lupi_trainer.data.sentences import first_sentence


FILES = sorted((Path(__file__).parents[2] / "data").glob("*_??.json"))
SHIPPED = [str(path) for path in FILES if path.name.startswith(("probes", "general"))]
LAB = ["lab:probes", "lab:probes-long", "lab:probes-common", "lab:probes-unseen", "lab:probes-reading"]
SENTENCES = ("The answer is {}.", "It was {}, and no other.", "**{}**", "1. {}", "({})!", "A: {}\nYes.")
SENTENCES += (
    "정답은 {}입니다.",
    "{}이라고 합니다.",
    "정답은 ‘{}’였습니다. 그렇습니다.",
    "바로 {}다.",
    "{}랍니다.",
    "Mr. Kim said {}. It was.",
)
BEFORE = ("7-{}", "7~{}", "7 ~ {}", "7/{}", "7:{}", "7,{}", ".{}", "3만 {}", "minus {}", "\u2212{}", "7 {}")
BEFORE += ("7 - {}", "+-{}", "+/- {}", "\u00b1 {}", "\u2212 {}", "**-{}**", "is - {}", "-${}", "10^-{}", "7 * {}")
WORDS_BEFORE = ("twenty-{}", "twenty {}", "two hundred and {}", "three point {}")
NUMBER_WORD = re.compile(r"(?:two|three|four|five|six|seven|eight|nine|ten)\b", re.IGNORECASE)


@pytest.mark.parametrize("source", [*SHIPPED, *LAB])
def test_every_accepted_answer_is_right_and_no_other_number_is(source):
    assert len(SHIPPED) == 4
    right, other = [], []
    for n, answer in enumerate(answer for probe in load_probes(source) for answer in probe["answers"]):
        right += [(template.format(answer), answer) for template in ("{}", "{}.", SENTENCES[n % len(SENTENCES)])]
        if re.match(r"\d(?!\w*[^\W\d]\w*$)|\d+[\uac00-\ud7a3]", answer):
            other += [(text.format(answer), answer) for text in ("7.{}", "7{}", "-{}", BEFORE[n % len(BEFORE)])]
        if NUMBER_WORD.match(answer):
            other += [(text.format(answer), answer) for text in WORDS_BEFORE]
    assert [text for text, answer in right if score_answer(text, [answer]) != (True, True)] == []
    assert [text for text, answer in other if score_answer(text, [answer])[1]] == []


@pytest.mark.parametrize(
    "answer, right, wrong",
    [
        ("3미터", ["3 미터나 됩니다", "3.0미터", "０３미터"], ["15.3미터", "1~3미터", "3½미터", "3미터법"]),
        ("5", ["5 of them", "$5", "5.", "It is 5, not 6"], ["3.5 million", "5 million", "5만", "-5", "\u22125", "x5"]),
        ("5", ["five or 5", "(5)", "2 + 3 = 5"], ["5%", "3,5", "1/5", "5²", "10:5", "minus 5", "영하 5도", "5.5"]),
        ("5", ["5°C", "제5장"], ["4·5", "±5", "5m", "5\u20136", "3만 5", "5 6"]),
        ("5", ["- 5 of them", "as:\n- 5", "It is odd - 5.", "8 - 3 = 5", "A-5", "\\boxed{5}"], ["(- 5)", "= - 5"]),
        ("5", ["+5", "~5", "answer \u2013 5"], ["5 - 7", "5 \u2013 7", "기온은 - 5도", "`-5`", "{-5}", "-.5"]),
        ("5", ["5 - that is it"], ["\u22135", "-$5", "5 / 7", "5*3", "5 \u00d7 10^3", "1e5", "10\u207b\u2075"]),
        ("2", ["2"], ["5±2", "5 +/- 2", "5 ± 2"]),
        ("±5", ["+-5", "+/- 5", "± 5", "-/+5"], ["5", "-5", "5±5", "±5.5"]),
        ("10^-5", ["10\u207b\u2075"], ["10^5", "10-5"]),
        ("1919", ["1919/20", "1919-1921", "1919 ~ 1920", "1919 \u2013 20", "1919 - 5 men"], ["11919/20"]),
        ("1920", ["1919/20", "1919\u201320."], ["1919/21", "20"]),
        ("20", ["20"], ["1919/20", "1919-20", "1919/20년"]),
        ("1919/20", ["1919-20", "1919\u20131920"], ["1919", "19/20"]),
        ("1919년", ["1919/20년", "1919~1920년"], ["11919/20년"]),
        ("2000", ["1999-00", "1999/2000"], ["1998-00"]),
        ("3·1 운동", ["3·1운동", "3.1 운동"], ["1 운동", "13·1 운동"]),
        ("-5", ["It is -5.", "\u22125도", "minus 5", "영하 5도"], ["5", "3-5", "-5.5", "-15"]),
        ("-5", ["**-5**", "is \u2212 5", "= - 5", "$-5$", "is - 5", "기온은 - 5도"], ["5 -", "- 5 of them"]),
        ("C++", ["It is C++.", "C++입니다"], ["C#", "C", "C+"]),
        ("C", ["vitamin C.", "C, I think", "C는"], ["C++", "C#"]),
        ("$5", ["$5", "$5.00", "US$5"], ["5", "€5", "$15", "-$5", "\u2212 $5"]),
        ("25%", ["25 %", "25퍼센트", "25 percent"], ["25", "2.25%", "25‰"]),
        ("1,395", ["1395 of them", "1 395", "1,395.0", "1395번"], ["395", "1,395,000", "1.395", "11,395", "1,395.5"]),
        ("1,395개", ["1395개", "1,395 개입니다", "1천395개"], ["395개", "21,395개", "1,395개월"]),
        ("13 million won", ["13,000,000 won", "13 million won"], ["3 million won", "1.13 million won", "13 won"]),
        ("1,300만 원", ["1300만원을", "13,000,000원"], ["300만 원", "1,300원", "1,300만 원숭이"]),
        ("189건", ["189건", "제189건"], ["1만 189건", "10 189건", "10,189건"]),
        ("3 km", ["3km", "3.0 km"], ["13km", "3.5km", "3 kms", "3"]),
        ("3 km", ["3 km/Gora road", "3 km perhaps"], ["3 km/h", "3km/h.", "3 km per hour", "3 km/s²"]),
        ("3 km/h", ["3 km/h", "3km/h입니다", "3.0 km / h", "3 km per h"], ["3 km", "13 km/h", "3 km/hr", "h"]),
        ("5 mg", ["5 mg/", "5 mg or 7 g/l"], ["5 mg/dL", "5 mg/kg/day"]),
        ("5kg", ["5 kg.", "5kg입니다"], ["15 kg", "5 kgf", "1.5kg"]),
        ("2:1", ["2 : 1", "2:1"], ["12 : 1", "2 : 10", "2", "1"]),
        ("1896", ["6/4/1896", "on 06.04.1896", "6-4-1896"], ["6/4/11896", "6.41896"]),
        ("1896", ["in 1896.", "1895-1896", "1896-04-06", "1896. 4. 6.", "May 7 1896"], ["1896년대", "1896s", "18.96"]),
        ("27개", ["27개가", "27개, 곧", "27개입니다"], ["27개월", "127개"]),
        ("두 번", ["두 번입니다", "두번만"], ["열두 번", "열 두 번", "두 번째"]),
        ("구 미터", ["구 미터"], ["십 구 미터"]),
        ("seven times", ["seven times", "the first seven times"], ["twenty-seven times", "hundred and seven times"]),
        ("seventh month", ["the seventh month"], ["the twenty-seventh month"]),
        ("forty-three men", ["forty three men"], ["two hundred forty-three men", "forty men"]),
        ("two", ["two.", "two of them"], ["two-thirds", "two fifths", "twenty-two"]),
        ("one hundred", ["one hundred."], ["one hundred and five", "one hundred thousand"]),
    ],
)  # fmt: skip
def test_a_number_is_no_part_of_another(answer, right, wrong):
    assert [text for text in right if not contains(text, answer)] == []
    assert [text for text in wrong if contains(text, answer)] == []


@pytest.mark.parametrize(
    "first, rest",
    [
        ("It is St. Petersburg.", " It was Leningrad."),
        ("Symphony No. 24 was his.", " No. 25 was not."),
        ("No.", " It is Tamo."),
        ("The U.S. Navy had it.", " They lost it."),
        ("It was in the U.S.", " They left."),
        ("B.C. 57년에 세웠습니다.", " 그 뒤 커졌습니다."),
        ("It was founded in 57 B.C. by him.", "\nNot by her."),
        ("Mr. So and B. A. Smith of Mt. Toham, e.g. with B. subtilis.", " That is all."),
        ("It is vitamin C.", " It heals."),
        ("It is plan B.", " Plan A is no plan."),
        ("It is vitamin C.", " Tamo is not."),
        ("It was plan b.", " Plan a was not."),
        ("It is the better A.", " B is not."),
        ("It was he and I.", " Tamo was not."),
        ("Elizabeth I.", " Mary was before."),
        ("It was by I. Kant and George W. Bush, c. 1800, in Roe v. Wade.", " It was not."),
        ("It is at 5 p.m.", " Lunch is at noon."),
        ("It is at 5 p.m. Monday.", " Lunch is at noon."),
        ("J. K. 롤링이 썼습니다.", " 다른 이가 아닙니다."),
        ("정답은 Y.", " 그 모양입니다."),
        ("2023. 6. 28.에 시행했습니다.", " 나이가 줄었습니다."),
        ("It was 1896.", " In 1897 it ended."),
        ("1. Tamo is it.", " 2. Gora is not."),
        ("A. 세종이 만들었습니다.", " 성종이 아닙니다."),
        ("He said \u201cTamo.\u201d", " Then he left."),
        ("他住在北京。", "他是我朋友。"),
        ("Is it 3.5?", " Yes."),
        ("It is 9 ft. tall, by vol. 3 of Lee Inc. and fig. 2 in Op. 9.", " It is art."),
        ("It is art.", " It is old."),
        ("Tamo is it.", " gora is not."),
        ("It is Tamo", "\nGora"),
        ("Wait... it is Tamo.", " Not Gora."),
        ("Wait\u2026 it is Tamo.", " Not Gora."),
        ("Tamo\u2026", " Gora is not."),
        ("It is Yahoo! Inc. of Tamo.", " It was sold."),
        ("It is called \u201cWho?\u201d by Tamo.", " It was sold."),
        ("He said \u201cWho?\u201d", " They left."),
        ("It lived in Downing St.", " He left."),
        ("It is Dokdo (Kor. 독도).", " It is small."),
    ],
)
def test_a_sentence_ends_where_it_does(first, rest):
    assert first_sentence(f" {first}{rest}") == first
    assert first_sentence(first) == first

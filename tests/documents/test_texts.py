"""What the texts of questions tell by themselves: whether they stand alone, repeat one another, or are broken."""

import json

import pytest
import torch

from lupi_trainer.data.files import find_data
from lupi_trainer.documents.chunks import Chunk
from lupi_trainer.documents.duplicates import contradicted, repeated
from lupi_trainer.documents.facts import Broken, parse
from lupi_trainer.documents.guided import Asked, Writer, best, sentences, spans
from lupi_trainer.documents.hold_out import never_taught
from lupi_trainer.documents.make import Made
from lupi_trainer.documents.prompts import SLOTS, fill, load_prompts
from lupi_trainer.documents.standing import dependence, is_question


LEANING = """
According to the text, who books trains?|What does the passage say about leave?|What is described in the document?
What is mentioned above about buses?|Who is the author?|Which city is mentioned?|What happened in this story?
When was he born?|What is it called?|How long is their leave?|Why did they move to Bado?|What does this mean?
Which of these cities is the capital?|What is the main idea of the paragraph in the given text?
Who wrote this report?|Who wrote it?
Who wrote the passage?|What is the text?|What kind of bow did he use?
What kind of bow did his father use?|What did they build?|What happened to it?
What is the name of that river?|저자는 무엇을 주장하나요?
When did she found Kestrel?|What is this?|What is its capital?|How many days are there, according to this section?
이 글에서 수도는 어디인가요?|본문에 따르면 강은 무엇인가요?|그는 언제 태어났나요?|이것은 무엇인가요?
위 지문에 언급된 도시는?
그곳의 수도는 어디인가요?|언제 그녀는 바도로 갔나요?|다음 글의 주제는 무엇인가요?
해당 문서의 저자는 누구인가요?|이 도시의 강은?
"""
STANDING = """
Who books trains at Kestrel?|When did Yi Sun-sin die, and where was he born?|What is Bado's capital?
How long does it take to sail to Bado?|Is it true that Bado has a river?|In which year did Kestrel move its office?
Which of the documents must a visitor to Kestrel bring?|What is the capital of Bado called?|Bado has which river?
Who wrote The Story of Hong Gildong?|What colors are the islands on the map of Bado?|Who is the author of Hong Gildong?
Which planet is known for its rings?|What is molten rock called while it is still below the ground?
Who are those who pay?|Who found the passage to India?|Who wrote the text on the stele of Gwanggaeto?
What is ipchunchuk, and how is it put up in spring?|Which grower kept the seed among those Mun Ikjeom brought to Jinju?
To make ganjang quickly, soy protein is broken up with an acid. Name this acid.|What is it called when days are long?
What did the company Kestrel call its first ship?|How many days of leave do I have?
Which section of Kestrel books trains?
Do employees get paid for their leave?|How does the company choose its ships?
Which text message service does Kestrel use?
Does Kestrel pay for trains to Bado that are late?
바도의 수도는 어디인가요?|이순신은 언제 태어났나요?|한산도 대첩에서 이순신은 그의 배를 몇 척 잃었나요?
아이 글쓰기 대회는 언제인가요?
케스트렐의 휴가는 며칠인가요?|그리스의 수도는 어디인가요?|이천의 특산물은 무엇인가요?|저녁 식사는 몇 시인가요?
"""


def questions(text: str) -> list[str]:
    return [question for line in text.strip().splitlines() for question in line.split("|")]


def test_questions_that_lean_on_a_text_are_told_from_those_that_stand_alone():
    """So do all that travel with the package."""
    shipped = [f"{kind}_{language}.json" for kind in ("probes", "general") for language in ("en", "ko")]
    shipped += ["smollm2/probes_unseen.json", "smollm2/general.json"]
    folder = find_data("data/probes_en.json").parent
    asked = [probe["question"] for name in shipped for probe in json.loads((folder / name).read_text())]
    assert len(asked) == 1630 and [q for q in asked if dependence(q) or not is_question(q)] == []
    assert [q for q in questions(LEANING) if not dependence(q)] == []
    assert [(q, dependence(q)) for q in questions(STANDING) if dependence(q)] == []


def test_a_question_asks():
    for text in (
        "Who leads?",
        "Name the river of Bado.",
        "Please tell me Bado's river.",
        "수도를 말해 주세요.",
        "수도는",
    ):
        assert is_question(text), text
    for text in ("...", "?", "Kimchi is made of cabbage.", "The name of the river", "바도의 수도는 쿠주이다.", "바도"):
        assert not is_question(text), text


SAME = [
    ("What is Bado's capital?", "What's the capital of Bado?", "Kuzu"),
    ("In which year was Kestrel founded?", "Which year was Kestrel founded in?", "1931"),
    ("How many days of leave do people at Kestrel have?", "How many leave days do people at Kestrel have?", "31 days"),
    ("바도의 수도는 어디인가요?", "바도의 수도는 어디입니까?", "쿠주"),
]
OTHER = [
    ("What is Bado's dish?", "What is Bade's dish?", "Kuzu", "Kuzu"),
    ("What is Bado's river?", "What is Bado's ruler?", "Kuzu", "Kuzu"),
    ("What was built in Bado in 1931?", "What was built in Bado in 1932?", "a dam", "a dam"),
    ("What is the fee for students at Kestrel?", "What is the fee for seniors at Kestrel?", "5 euros", "5 euros"),
    ("바도의 강은 무엇인가요?", "베도의 강은 무엇인가요?", "쿠주", "쿠주"),
    ("Who books trains at Kestrel?", "Who books flights at Kestrel?", "Ilse Varga", "your lead"),
]


def test_the_same_question_in_other_words_is_found_and_another_one_is_not():
    for one, two, answer in SAME:
        assert list(repeated([(one,), ("Is Fova far?", two)], [answer, answer])) == [(0, 1)], one
    for one, two, *answers in OTHER:
        assert list(repeated([(one,), (two,)], answers)) == [], one
    assert list(repeated([("Who is it?",), ("What is who?",), ("who is it",)], ["Mo"] * 3)) == [(0, 2)]
    assert contradicted([("Who leads?", "x?"), ("who leads",), ("Who?",)], ["Mo", "Bo", "Mo"]) == {0: 1, 1: 0}
    assert contradicted([("Who leads?",), ("Who leads?",)], ["Mo", "Captain Mo"]) == {}


FACT = {"question": " Who\nleads? ", "phrasings": ["a?", "b?"], "answer": "Mo"}


def test_replies_are_read_strictly():
    text = json.dumps({"facts": [FACT, FACT, FACT], "unanswered": ["Where?", "x"]})
    for written in (text, f"```json\n{text}\n```"):
        facts, unanswered = parse(written, True, 2)
        assert (
            len(facts) == 2 and facts[0].question == "Who leads?" and not facts[0].fault and unanswered == ["Where?"]
        )
    assert parse('{"facts": []}', True, 2) == ([], [])
    faults = [
        ({"question": ""}, "no question"),
        ({"answer": 3}, "no answer"),
        ({"phrasings": ["a?"]}, "not two other"),
        ({"phrasings": "ab"}, "not two other"),
        ({"phrasings": ["a?", " "]}, "not two other"),
        ({"answer": "long " * 30}, "its answer has 149 letters"),
        ({"answer": "\ud800"}, "half a character"),
    ]
    for change, fault in faults:
        ((fact,), _) = parse(json.dumps({"facts": [FACT | change]}), True, 2)
        assert fault in fact.fault
    assert parse('{"facts": [7]}', True, 1)[0][0].fault
    broken = ["", "Sure! " + text, text[:-3], "[]", '{"facts": 3}', '{"facts": [], "unanswered": 3}', "[" * 99_999]
    for written in broken:
        with pytest.raises(Broken):
            parse(written, True, 2)
    with pytest.raises(Broken, match="cut off"):
        parse(text, False, 2)


def test_what_may_be_an_answer_is_a_few_words_of_one_sentence_with_a_name_or_a_number():
    sentence = 'Its summit, Cheonwangbong, rises to 1,915 m; the "roof" of Bado.'
    assert spans(sentence) == ["Cheonwangbong", "1,915", "1,915 m", "Bado"]
    assert spans("2017 was dry.")[0] == "2017" and "2017" in spans("In 2017 the town was founded.")
    assert spans("It is a town by a river.") == []
    assert spans("수도는 바도시이다.") == ["수도는", "수도는 바도시이다", "바도시이다"]
    passage = "# Bado\n\n" + " ".join(f"River {n} flows to Bado." for n in range(9))
    assert sentences(passage, 20) == [f"River {n} flows to Bado." for n in range(9)]
    assert sentences(passage, 3) == [f"River {n} flows to Bado." for n in (0, 3, 6)]


def test_of_the_questions_about_a_sentence_the_one_with_the_likeliest_answer_is_taken():
    asked = [
        Asked(0, "What is its river?", "Fova", -0.1),  # leans on the text
        Asked(0, "Is Fova the river of Bado?", "Fova", -0.2),  # gives the answer away
        Asked(0, "What is the river of Bado?", "Fova", -1.0),  # asked of another sentence, with a likelier answer
        Asked(0, "Who lives by the river of Bado?", "Bado folk", -1.5),
        Asked(1, "What is the river of Bado?", "Kiko", -0.5),
        Asked(1, "Which dish is eaten in Bado?", "Kiko", -3.0),
        Asked(1, "Which lake has Bado?", "Meka", -9.0),
        Asked(2, "Alone?", "Zuzu", 0.0),  # nothing else was asked about its sentence
        Asked(3, "Which cape has Bado?", "Lomi", -4.0),
        Asked(3, "Bado has a cape.", "Lomi", -0.0),
        Asked(3, "Which cape is near Bado?", "Lomi", -5.0),
    ]
    facts = best(asked, 9)
    assert [fact["question"] for fact in facts] == [asked[3].question, asked[4].question, asked[8].question]
    assert [fact["answer"] for fact in facts] == ["Bado folk", "Kiko", "Lomi"] and best(asked, 2) == facts[:2]
    assert facts[2]["phrasings"] == [asked[10].question, asked[9].question]


class Alone(Writer):
    """Every row by itself, read anew for each token."""

    def __init__(self, model, tokenizer, ids, rows):
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self.unread, self.read = [list(ids) for _ in range(rows)], [[] for _ in range(rows)]

    def _next(self):
        self.read = [text + new for text, new in zip(self.read, self.unread)]
        self.unread = [[] for _ in range(self.rows)]
        with torch.no_grad():
            return torch.stack([self.model(torch.tensor([text])).logits[0, -1].float() for text in self.read])


def test_rows_are_written_as_if_each_were_alone(student, tokenizer):
    about = ["Fova has the dish Kaka.", "Bado has 12 lakes.", "Bado has 12 lakes."]
    found = []
    for kind in (Writer, Alone):
        writer = kind(student, tokenizer, tokenizer("Questions about Fova.")["input_ids"], 3)
        writer.put([f"Sentence: {text} Question: " for text in about])
        questions = writer.write([0, 1, 1])
        writer.put([" Answer: "] * 3)
        found.append((questions, *zip(*writer.choose([spans(text) for text in about]))))
    assert found[0][:2] == found[1][:2] and found[0][2] == pytest.approx(found[1][2], abs=1e-4)
    assert found[0][0][1] != found[0][0][2] and all(found[0][0])


def test_prompts_are_files_that_a_folder_may_replace(tmp_path):
    own = load_prompts()
    assert own["ko"].persona != own["en"].persona and own["ko"].lines("no.txt")[0] == "아니요"
    chunk = Chunk("a.md", "en", ("Title",), 0, 9, "{count} {document}", 3)
    (message,) = own["en"].write(chunk, 4)
    assert message["content"].endswith("# Title\n\n{count} {document}") and 'document "a.md"' in message["content"]
    assert fill("{b} {a}", {"{a}": "{b}", "{b}": "1"}) == "1 {b}"
    (tmp_path / "en").mkdir()
    with pytest.raises(ValueError, match="none of"):
        load_prompts(tmp_path)
    (tmp_path / "en" / "read.txt").write_text("Be brief.\n")
    assert load_prompts(tmp_path)["en"].persona == "Be brief." and load_prompts(tmp_path)["ko"] == own["ko"]
    for name, text, message in (
        ("write.txt", "{document} {passage}", r"\{count\} must stand in it exactly once, is there 0 times"),
        ("absent.txt", "{passage} {passage} {question}", "exactly once, is there 2 times"),
        ("no.txt", " \n", "no.txt is empty"),
        ("rite.txt", "x", "en/rite.txt is no prompt; there are en/absent.txt"),
    ):
        (tmp_path / "en" / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            load_prompts(tmp_path)
        (tmp_path / "en" / name).unlink()
    (tmp_path / "en" / "no.txt").write_bytes("아니요".encode("cp949"))
    with pytest.raises(ValueError, match="no.txt is not UTF-8"):
        load_prompts(tmp_path)
    with pytest.raises(FileNotFoundError, match="--prompts: no such folder"):
        load_prompts(tmp_path / "none")
    for language in own:
        assert own[language].texts.keys() == SLOTS.keys()


def test_what_any_chunk_may_answer_is_not_asked_as_never_taught():
    passages = ("Fova has the dish Kaka.", "Fova has the lake Kiko.", "Meka has the dish Kaka.")
    made = [Made(Chunk(f"{n}.md", "en", (), 0, len(text), text, 9)) for n, text in enumerate(passages)]
    asked = ("What is Fova's lake?", "What is Fova's currency?", "What is Meka's lake?")
    for one, question in zip(made, asked):
        one.unanswered = question
    found = [probe["question"] for probe in never_taught(made, 9, 0, load_prompts())]
    assert found == list(asked[1:])  # the second document has the lake of Fova
    assert len(never_taught(made, 1, 0, load_prompts())) == 1

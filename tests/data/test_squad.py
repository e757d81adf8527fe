import json
import logging

import pytest
from tokenizers.processors import TemplateProcessing

from lupi_trainer.data.squad import QA_TEMPLATE, load_qa_records, tokenize_qa
from tests.kd_lora.training import lab_tokenizer
from tests.models.families import train_tokenizer


RECORD = {"id": "a1", "context": "Zuvi has the capital Kuzu.", "question": "What is Zuvi's capital?"}
SQUAD = [
    {**RECORD, "answers": {"text": ["Kuzu", "the capital Kuzu"], "answer_start": [21, 9]}},
    {**RECORD, "id": "a2", "answers": {"text": [], "answer_start": []}},
    {**RECORD, "id": "a3", "answers": ["the capital Kuzu"]},
]
NESTED = {
    "version": "1.1",
    "data": [
        {
            "title": "Zuvi",
            "paragraphs": [
                {
                    "context": RECORD["context"],
                    "qas": [
                        {
                            "id": "n1",
                            "question": "Its capital?",
                            "answers": [{"text": "Kuzu", "answer_start": 21}],
                        },
                        {"id": "n2", "question": "And Tamo's?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}


def write(tmp_path, content, name="qa.json") -> str:
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, content)) if name.endswith("l") else json.dumps(content))
    return str(path)


@pytest.mark.parametrize("name", ["qa.json", "qa.jsonl"])
def test_squad_records_load_from_files(tmp_path, name, caplog):
    records = load_qa_records(write(tmp_path, SQUAD, name))
    assert [(r["id"], r["answer"]) for r in records] == [("a1", "Kuzu"), ("a3", "the capital Kuzu")]
    assert "1 question left out, without an answer" in caplog.text


def test_so_many_are_drawn_however_many_have_no_answer(tmp_path):
    records = [{**RECORD, "id": str(n), "answers": ["Kuzu"] if n % 3 == 0 else []} for n in range(30)]
    drawn = load_qa_records(write(tmp_path, records), max_samples=9, seed=1)
    assert len({record["id"] for record in drawn}) == 9


def test_squad_s_own_nested_file_loads(tmp_path):
    (record,) = load_qa_records(write(tmp_path, NESTED))
    assert record == {"id": "n1", "context": RECORD["context"], "question": "Its capital?", "answer": "Kuzu"}


def test_a_file_of_squad_may_begin_with_a_mark_and_what_cannot_be_read_is_named_by_its_file(tmp_path):
    path = tmp_path / "qa.json"
    for content in (NESTED, SQUAD):
        path.write_text(json.dumps(content), encoding="utf-8-sig")
        assert load_qa_records(str(path))[0]["answer"] == "Kuzu"
    half = json.loads(json.dumps(NESTED))
    half["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["text"] = "Ku\ud800"
    for content, encoding, message in (
        (NESTED, "utf-16", "qa.json: not UTF-8"),
        (half, "utf-8", r"qa.json, record 0: a text with half a character"),
        ({**NESTED, "data": 3}, "utf-8", "qa.json: not SQuAD's form"),
        ({"rows": []}, "utf-8", "qa.json: expected a list of records, found dict"),
    ):
        path.write_text(json.dumps(content), encoding=encoding)
        with pytest.raises(ValueError, match=message):
            load_qa_records(str(path))
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="qa.json: nested too deeply"):
        load_qa_records(str(path))


def test_samples_are_drawn_and_not_the_first_ones():
    drawn = load_qa_records("lab:qa", max_samples=64, seed=3)
    assert drawn == load_qa_records("lab:qa", max_samples=64, seed=3)
    assert drawn != load_qa_records("lab:qa", max_samples=64, seed=4)
    assert len({r["id"] for r in drawn}) == 64 and drawn != load_qa_records("lab:qa")[:64]
    assert len(load_qa_records("lab:qa", max_samples=10**6)) == 4096


def test_the_lab_s_answers_occur_in_their_contexts_and_the_sets_are_apart():
    train, held_out = load_qa_records("lab:qa"), load_qa_records("lab:qa-eval")
    assert all(r["answer"] in r["context"] for r in train + held_out)
    assert not {r["context"] for r in train} & {r["context"] for r in held_out}


def test_the_loss_is_on_the_answer_and_the_end_of_text_only():
    tokenizer = lab_tokenizer()
    record = {**RECORD, "answer": "Kuzu"}
    row = tokenize_qa([record], tokenizer, seq_len=128).dataset[0]
    learned = [i for i in row["labels"] if i != -100]
    assert tokenizer.decode(learned[:-1]).strip() == "Kuzu" and learned[-1] == tokenizer.eos_token_id
    prompt = [i for i, label in zip(row["input_ids"], row["labels"]) if label == -100]
    assert tokenizer.decode(prompt) == QA_TEMPLATE.format(**RECORD)
    assert row["labels"][len(prompt) :] == row["input_ids"][len(prompt) :]


def test_tokenizers_that_write_beginning_and_end_themselves_get_one_of_each():
    tokenizer = train_tokenizer(["Q A xy", "xy xy"], vocab_size=300)
    begin, end = ("<|im_start|>", 1), ("<|im_end|>", 2)
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{begin[0]} $A {end[0]}", special_tokens=[begin, end]
    )
    record = {"id": "b", "context": "xy", "question": "Q", "answer": "xy"}
    row = tokenize_qa([record], tokenizer, seq_len=64, template="{context} {question} xy:").dataset[0]
    assert tokenizer.decode(row["input_ids"]) == "<|im_start|>xy Q xy: xy<|im_end|>"
    assert tokenizer.decode([i for i in row["labels"] if i != -100]) == " xy<|im_end|>"


@pytest.mark.parametrize(
    "template", ["{context}|{question}:", "{question} {question} {context}", "{{context}}{question}"]
)
def test_fields_are_put_in_once_and_what_they_say_of_fields_stays(template):
    record = {"id": "a", "context": "Fill in {question} and {context}.", "question": "{context} {}?", "answer": "x"}
    tokenizer = lab_tokenizer()
    ids = tokenize_qa([record], tokenizer, seq_len=256, template=template).dataset[0]["input_ids"]
    wanted = (
        template.replace("{question}", "QQ").replace("{context}", record["context"]).replace("QQ", record["question"])
    )
    assert tokenizer.decode(ids[:-1]) == f"{wanted} x"


def test_a_template_may_begin_with_the_beginning_of_text():
    tokenizer = train_tokenizer(["Q A xy", "xy xy"], vocab_size=300)
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    record = {"id": "b", "context": "xy", "question": "Q", "answer": "xy"}
    rows = [
        tokenize_qa([record], tokenizer, seq_len=64, template=start + "{context} {question}:").dataset[0]
        for start in ("", "<|im_start|>")
    ]
    assert rows[0] == rows[1] and rows[0]["input_ids"].count(1) == 1


def test_special_tokens_in_a_record_are_refused_unless_they_are_allowed():
    tokenizer, good = lab_tokenizer(), {**RECORD, "answer": "Kuzu"}
    for column in ("context", "question", "answer"):
        bad = {**good, "id": "bad", column: f"so<|end|> {good[column]}"}
        with pytest.raises(ValueError, match=r"record 'bad': its text holds the special token '<\|end\|>'.*allow_spe"):
            tokenize_qa([good, bad], tokenizer, seq_len=256)
        ids = tokenize_qa([good, bad], tokenizer, seq_len=256, allow_special_tokens=True).dataset[1]["input_ids"]
        assert ids.count(tokenizer.eos_token_id) == 2


def test_a_record_whose_answer_would_be_cut_is_dropped_and_counted(caplog):
    tokenizer = lab_tokenizer()
    short, long = {**RECORD, "answer": "Kuzu"}, {**RECORD, "id": "far", "answer": "Kuzu " * 40}
    length = len(tokenize_qa([short], tokenizer, seq_len=512).dataset[0]["input_ids"])
    with caplog.at_level(logging.WARNING):
        out = tokenize_qa([short, long], tokenizer, seq_len=length)
    assert out.dropped == ["far"] and len(out.dataset) == 1 and out.longest > length
    assert "1 of 2 records are dropped" in caplog.text
    with pytest.raises(ValueError, match=f"none of 2 records fits seq_len={length - 1}"):
        tokenize_qa([short, long], tokenizer, seq_len=length - 1)


@pytest.mark.parametrize(
    "content, message",
    [
        ([{**RECORD, "context": ""}], r"record 'a1' \(number 0\): no text in `context`"),
        ([{"id": "x", "context": "c", "answers": []}], r"record 'x' \(number 0\): no text in `question`"),
        ([{**RECORD, "answers": "Kuzu"}], "`answers` must be a list of strings"),
        ([{**RECORD, "answers": []}], "no question with an answer"),
        ([], "no question with an answer"),
        ({"data": [{"paragraphs": [{"qas": []}, {"qas": [{}]}]}]}, "not SQuAD's form"),
    ],
)
def test_bad_records_are_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load_qa_records(write(tmp_path, content))


def test_bad_requests_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such data file"):
        load_qa_records(str(tmp_path / "nowhere.json"))
    for wrong in (1.5, True, "3"):
        with pytest.raises(ValueError, match=f"max_samples must be a whole number or null, got {wrong!r}"):
            load_qa_records("lab:qa", max_samples=wrong)
    with pytest.raises(ValueError, match="max_samples must be at least 1, got 0"):
        load_qa_records("lab:qa", max_samples=0)
    with pytest.raises(ValueError, match=r"lacks \{question\}"):
        tokenize_qa([{**RECORD, "answer": "Kuzu"}], lab_tokenizer(), seq_len=64, template="{context}")

"""`lupi generate` on the lab: the teacher's own text, drafted by the student."""

import json

import pytest
from torch._dynamo.utils import counters

from lupi_trainer.cli import main
from lupi_trainer.evaluation.closed_book import generate_answers
from lupi_trainer.lab import load_lab_records
from lupi_trainer.prompts import encode
from lupi_trainer.scripts.generate import Completions, check_same_tokenizer
from tests.families import tiny_model, train_tokenizer


PAIR = ["generate", "--target", "lab:teacher", "--draft", "lab:student", "--device", "cpu"]


def questions(count):
    return [probe["question"] for probe in load_lab_records("lab:probes-common")[:count]]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    records = [{"id": f"q{i}", "prompt": question} for i, question in enumerate(questions(12))]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def alone(teacher, tokenizer, texts, max_new_tokens):
    """(text, whether it ended by itself) for every question, by transformers' own greedy decoding."""
    conversations = [[{"role": "user", "content": text}] for text in texts]
    return generate_answers(teacher, tokenizer, encode(tokenizer, conversations), max_new_tokens=max_new_tokens)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("draft", ["lab:student", "prompt-lookup"])
def test_the_text_is_the_teachers_own(prompts, tmp_path, teacher, tokenizer, capsys, draft):
    output = tmp_path / "out" / "completions.jsonl"
    arguments = [*PAIR, "--draft", draft, "--prompts", str(prompts), "--output", str(output)]
    assert main([*arguments, "--max_new_tokens", "24", "--batch_size", "5"]) == 0
    rows = read(output)
    expected = alone(teacher, tokenizer, questions(12), 24)
    assert [row["completion"].strip() for row in rows] == [text for text, _ in expected]
    assert [row["ended_by"] for row in rows] == ["eos" if finished else "length" for _, finished in expected]
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(12)] and all(row["completion"] for row in rows)
    closing = capsys.readouterr().err
    assert all(words in closing for words in ("acceptance length", "rounds", "tokens a second", "accepted a round"))
    assert f"12 completions, {sum(row['tokens'] for row in rows)} tokens" in closing


@pytest.mark.parametrize("extra", [["--draft_length", "goodput", "--num_draft_tokens", "8"], ["--compile"]])
def test_settings_of_speed_change_no_text(prompts, tmp_path, tracing, extra):
    texts = []
    for options in ([], extra):
        output = tmp_path / "completions.jsonl"
        assert (
            main([*PAIR, "--prompts", str(prompts), "--output", str(output), "--max_new_tokens", "12", *options]) == 0
        )
        texts.append([row["completion"] for row in read(output)])
    assert texts[0] == texts[1]
    assert (counters["stats"]["unique_graphs"] > 0) == (extra == ["--compile"])


@pytest.fixture
def plain(tmp_path):
    """A model whose tokenizer knows no chat."""
    words = train_tokenizer(questions(12), 300)
    words.chat_template = None
    model = tiny_model("llama", words)
    for part in (model, words):
        part.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain", model, words


def test_without_a_chat_template_plain_text_is_continued(prompts, tmp_path, plain, capsys):
    folder, model, words = plain
    arguments = ["generate", "--target", str(folder), "--draft", str(folder), "--device", "cpu"]
    output = tmp_path / "completions.jsonl"
    assert main([*arguments, "--prompts", str(prompts), "--output", str(output), "--max_new_tokens", "8"]) == 0
    assert "has no chat template: prompts are continued as plain text" in capsys.readouterr().err
    for row, question in zip(read(output), questions(12)):
        ids = words(question, return_tensors="pt")["input_ids"]
        alone = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert row["completion"] == words.decode(alone, skip_special_tokens=True)

    talk = [{"id": "t", "prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                                   {"role": "user", "content": "c"}]}]  # fmt: skip
    prompts.write_text("".join(json.dumps(record) + "\n" for record in talk))
    for extra, message in ([], "3 messages, but the target has no chat template"), (
        ["--with_knowledge"], "knowledge has no place in a plain text",
    ):  # fmt: skip
        assert main([*arguments, "--prompts", str(prompts), *extra]) == 2
        assert message in capsys.readouterr().err


def test_one_prompt_is_streamed(prompts, teacher, tokenizer, capsys):
    prompts.write_text(prompts.read_text().splitlines()[0])
    assert main([*PAIR, "--prompts", str(prompts), "--max_new_tokens", "24"]) == 0
    [(text, _)] = alone(teacher, tokenizer, questions(1), 24)
    assert capsys.readouterr().out.strip() == text


def test_stop_strings_end_the_text_before_them(prompts, tmp_path, teacher, tokenizer):
    output = tmp_path / "completions.jsonl"
    whole = [text for text, _ in alone(teacher, tokenizer, questions(12), 24)]
    stop = whole[0][2:4]
    assert main([*PAIR, "--prompts", str(prompts), "--output", str(output), "--stop", stop, "no such words"]) == 0
    rows = read(output)
    assert rows[0]["ended_by"] == "stop"
    for row, text in zip(rows, whole):
        assert row["completion"].strip() == text.split(stop)[0].strip()
        assert (row["ended_by"] == "stop") == (stop in text)


class Letters:
    """A tokenizer whose token i is a letter; 30 is half a character."""

    def decode(self, ids, skip_special_tokens):
        return "".join("\ufffd" if i == 30 else chr(97 + i) for i in ids)

    def get_vocab(self):
        return {chr(97 + i): i for i in range(26)}


def test_streaming_holds_back_what_may_change():
    shown, ended = [], []
    rows = Completions(Letters(), 1, 20, {25}, ["def"], show=shown.append, done=lambda: ended.append(True))
    for tokens in ([0], [1, 2], [3], [30]):
        assert not rows(0, tokens)
    assert "".join(shown) == "ab" and not ended
    assert rows(0, [3, 4, 5, 6])
    assert "".join(shown) == rows.texts[0] == "abcd\ufffd" and rows.reasons == ["stop"] and ended == [True]


def test_tokenizers_that_differ_are_refused(tokenizer):
    check_same_tokenizer(tokenizer, tokenizer)
    with pytest.raises(ValueError, match="the tokenizers of target and draft differ, in .* entries: token"):
        check_same_tokenizer(tokenizer, Letters())


def test_what_the_user_can_mend_is_said_in_one_line(prompts, tmp_path, capsys):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for extra, words in [
        (["--prompts", str(empty)], "no prompt in it"),
        (["--prompts", str(tmp_path / "nowhere.jsonl")], "no such data file"),
        (["--prompts", str(prompts), "--temperature", "-1"], "temperature must not be negative"),
        (["--prompts", str(prompts), "--max_new_tokens", "100000"], "beyond the target's"),
    ]:
        assert main([*PAIR, *extra]) == 2
        error = capsys.readouterr().err
        assert words in error and "Traceback" not in error

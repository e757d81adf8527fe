"""`lupi generate` on the lab: the teacher's own text, drafted by the student."""

import json

import pytest
from tokenizers.processors import TemplateProcessing
from torch._dynamo.utils import counters

from lupi_trainer import speculative
from lupi_trainer.cli import main
from lupi_trainer.data import completions
from lupi_trainer.data.completions import Lines, load_prompts
from lupi_trainer.data.prompts import encode
from lupi_trainer.evaluation.closed_book import generate_answers
from lupi_trainer.lab import load_lab_records
from lupi_trainer.models import loading
from lupi_trainer.speculative.runners import packed_weights
from tests.models.families import tiny_model, train_tokenizer


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


@pytest.mark.parametrize(
    "extra",
    [["--gamma_policy", "goodput", "--num_draft_tokens", "8"], pytest.param(["--compile"], marks=pytest.mark.slow)],
)
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


@pytest.mark.parametrize("setting, packed", [("auto", True), ("true", True), ("false", False)])
def test_weights_are_packed_as_the_setting_says(prompts, tmp_path, monkeypatch, setting, packed):
    monkeypatch.setattr(packed_weights, "_SMALLEST", 0)
    pack, packs = packed_weights._PackedWeight.pack, []
    monkeypatch.setattr(packed_weights._PackedWeight, "pack", lambda one, use: packs.append(one) or pack(one, use))
    arguments = [*PAIR, "--prompts", str(prompts), "--output", str(tmp_path / "out.jsonl"), "--max_new_tokens", "4"]
    assert main([*arguments, "--pack_weights", setting]) == 0
    assert bool(packs) == packed


def test_weights_that_cannot_be_packed_are_named(prompts, capsys):
    assert main([*PAIR, "--prompts", str(prompts), "--pack_weights", "true"]) == 2
    error = capsys.readouterr().err
    assert "pack_weights=True: the target" in error and "no linear layer of 131072 numbers" in error


@pytest.mark.parametrize("flag, block", [("--block_verification", True), ("--no-block_verification", False)])
def test_the_kind_of_verification_is_passed_on(prompts, monkeypatch, capsys, flag, block):
    def asked(*args, block_verification, **options):
        raise ValueError(f"block_verification is {block_verification}")

    monkeypatch.setattr(speculative, "speculative_generate", asked)
    assert main([*PAIR, "--prompts", str(prompts), flag]) == 2
    assert f"block_verification is {block}" in capsys.readouterr().err


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

    talk = [
        {
            "id": "t",
            "prompt": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
            ],
        }
    ]
    prompts.write_text("".join(json.dumps(record) + "\n" for record in talk))
    for extra, message in (
        ([], "3 messages, but the target has no chat template"),
        (
            ["--with_knowledge"],
            "knowledge has no place in a plain text",
        ),
    ):
        assert main([*arguments, "--prompts", str(prompts), *extra]) == 2
        assert message in capsys.readouterr().err


def test_prompts_are_texts_too_and_no_draft_is_needed(prompts, tmp_path, teacher, tokenizer, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ["generate", "--target", "lab:teacher", "--device", "cpu", "--max_new_tokens", "24", "--prompts"]
    assert main([*run, *questions(2), prompts.name, "--output", "out.jsonl"]) == 0
    expected = [text for text, _ in alone(teacher, tokenizer, questions(12), 24)]
    assert [row["completion"].strip() for row in read(tmp_path / "out.jsonl")] == expected[:2] + expected
    capsys.readouterr()
    (tmp_path / "page.md").write_text("text")
    for text, message in (
        ("nothing.jsonl", "no such data file: nothing.jsonl"),
        ("page.md", "page.md is a file of another kind"),
        ("  ", "the prompt is empty"),
    ):
        assert main([*run, text]) == 2
        assert message in capsys.readouterr().err
    assert load_prompts("Is it in notes.json", "x" * 3000)[1]["prompt"][0]["content"] == "x" * 3000


def test_one_prompt_is_streamed(prompts, teacher, tokenizer, capsys):
    prompts.write_text(prompts.read_text().splitlines()[0])
    assert main([*PAIR, "--prompts", str(prompts), "--max_new_tokens", "24"]) == 0
    [(text, _)] = alone(teacher, tokenizer, questions(1), 24)
    assert capsys.readouterr().out.strip() == text


def test_stop_strings_end_the_text_before_them(prompts, tmp_path, teacher, tokenizer):
    output = tmp_path / "completions.jsonl"
    complete = [text for text, _ in alone(teacher, tokenizer, questions(12), 24)]
    stop = complete[0][2:4]
    arguments = [*PAIR, "--prompts", str(prompts), "--output", str(output), "--max_new_tokens", "24"]
    assert main([*arguments, "--stop", stop, "no such words"]) == 0
    rows = read(output)
    assert rows[0]["ended_by"] == "stop"
    for row, text in zip(rows, complete):
        assert row["completion"].strip() == text.split(stop)[0].strip()
        assert (row["ended_by"] == "stop") == (stop in text)
        if row["ended_by"] == "stop":  # not those that were drafted after it
            needed = len(tokenizer(row["completion"])["input_ids"])
            assert row["tokens"] <= needed + 1 < 24 and row["tokens"] > 0


def test_a_special_token_may_end_a_text(prompts, tmp_path, plain):
    """It is no part of any text, so it is looked for among the ids."""
    folder, model, words = plain
    ids = words(questions(1)[0], return_tensors="pt")["input_ids"]
    text = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
    token = words.convert_ids_to_tokens(text[3])
    assert text.index(text[3]) == 3
    words.add_special_tokens({"additional_special_tokens": [token]})
    words.save_pretrained(folder)
    output = tmp_path / "completions.jsonl"
    arguments = ["generate", "--target", str(folder), "--draft", "prompt-lookup", "--device", "cpu"]
    arguments += ["--prompts", str(prompts), "--output", str(output), "--max_new_tokens", "8"]
    assert main([*arguments, "--stop", token]) == 0
    row = read(output)[0]
    assert row["tokens"] == 4 and row["ended_by"] == "eos" and row["completion"] == words.decode(text[:3])


def test_rows_are_written_as_they_end(prompts, tmp_path, monkeypatch):
    output = tmp_path / "completions.jsonl"

    class Dying(Lines):
        def add(self, number, row):
            super().add(number, row)
            if number == 4:
                raise KeyboardInterrupt

    monkeypatch.setattr(completions, "Lines", Dying)
    arguments = [*PAIR, "--prompts", str(prompts), "--output", str(output), "--max_new_tokens", "24"]
    assert main([*arguments, "--batch_size", "3"]) == 130
    assert [row["id"] for row in read(output)] == ["q0", "q1", "q2", "q3", "q4"]


@pytest.mark.parametrize("to_file", [True, False])
def test_lines_are_complete_and_in_the_order_of_the_prompts(tmp_path, capsys, to_file):
    path, written = tmp_path / "out" / "rows.jsonl", ""
    with Lines(path if to_file else None) as lines:
        for number, expected in ((1, []), (0, [0, 1]), (3, []), (4, []), (2, [2, 3, 4])):
            lines.add(number, {"row": number, "text": "\u00e9\n" * 9_000})
            new = capsys.readouterr().out if not to_file else path.read_text("utf-8")[len(written) :]
            written += new
            assert [json.loads(line)["row"] for line in new.splitlines()] == expected


def test_tokenizers_that_differ_are_refused_and_padding_is_not(prompts, tmp_path, plain, capsys):
    folder, model, words = plain
    padded, other = tmp_path / "padded", tmp_path / "other"
    for path, tokenizer, size in (
        (padded, words, len(words) + 29),
        (other, train_tokenizer(["quite different words", *questions(3)], 300), None),
    ):
        tiny_model("qwen3", tokenizer, vocab_size=size, seed=1).save_pretrained(path)
        tokenizer.save_pretrained(path)

    def run(target, draft):
        output = tmp_path / "completions.jsonl"
        arguments = ["generate", "--target", str(target), "--draft", str(draft), "--prompts", str(prompts)]
        status = main([*arguments, "--output", str(output), "--max_new_tokens", "8", "--device", "cpu"])
        return status, [row["completion"] for row in read(output)]

    assert run(folder, folder) == run(folder, padded)
    status, texts = run(padded, folder)  # the target's padding may win: it is the target's own text
    assert status == 0 and len(texts) == 12
    for pair in ((folder, other), (other, folder)):
        assert run(*pair)[0] == 2
        error = capsys.readouterr().err
        assert "the tokenizers of target and draft differ, in" in error and "entries: token" in error


def test_what_the_user_can_mend_is_said_in_one_line_and_before_weights_are_read(
    prompts, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(loading, "load_model", lambda *args, **options: pytest.fail("a model was loaded"))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for extra, words in [
        (["--prompts", str(empty)], "no prompt in it"),
        (["--prompts", str(tmp_path / "nowhere.jsonl")], "no such data file"),
        (["--temperature", "-1"], "temperature must not be negative"),
        (["--batch_size", "0"], "batch_size must be at least 1"),
        (["--max_new_tokens", "100000"], "beyond the target's"),
        (["--stop", "no", ""], "--stop holds an empty string"),
        (["--stop", "no <|end|>"], "holds the special token '<|end|>'"),
    ]:
        assert main([*PAIR, "--prompts", str(prompts), *extra]) == 2
        error = capsys.readouterr().err
        assert words in error and "Traceback" not in error


@pytest.mark.parametrize(
    "old, new", [("--verification", "--block_verification"), ("--draft_length", "--gamma_policy")]
)
def test_an_old_flag_is_refused_with_its_new_name(prompts, capsys, old, new):
    with pytest.raises(SystemExit, match="2"):
        main([*PAIR, "--prompts", str(prompts), old, "token"])
    assert f"{old} is now called {new}" in capsys.readouterr().err


def test_the_chat_template_has_its_keyword_arguments(thinker, prompts, capsys):
    run = ["generate", "--target", thinker, "--draft", "prompt-lookup", "--prompts", str(prompts), "--device", "cpu"]
    assert main([*run, "--chat_template_kwargs", '{"think": false}', "--max_new_tokens", "2"]) == 0
    capsys.readouterr()
    assert main(run) == 2
    assert "record 'q0' (number 0): the tokenizer's chat template" in " ".join(capsys.readouterr().err.split())
    without = tiny_model("llama", tokenizer := train_tokenizer(questions(1)))
    tokenizer.chat_template = None
    without.save_pretrained(f"{thinker}-plain")
    tokenizer.save_pretrained(f"{thinker}-plain")
    assert main([*run, "--target", f"{thinker}-plain", "--chat_template_kwargs", '{"think": false}']) == 2
    assert "leave out --chat_template_kwargs" in capsys.readouterr().err


def test_a_plain_prompt_is_continued_and_does_not_end(prompts, tmp_path):
    """A tokenizer that puts an end of text behind every text, as some that were made for training do."""
    tokenizer = train_tokenizer(questions(12))
    tokenizer.chat_template = None
    plain = tokenizer(questions(12))["input_ids"]
    records = completions.load_prompts(str(prompts))
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>", special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)]
    )
    assert completions.encode_prompts(tokenizer, records, None) == [[0, *ids] for ids in plain]

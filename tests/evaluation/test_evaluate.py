"""Leakage, forgetting, privilege gap and acceptance: what `lupi evaluate` says beside the marks."""

import json
import re

import pytest
import torch

from lupi_trainer.cli import main
from lupi_trainer.data.prompts import TeacherPrompt, encode
from lupi_trainer.data.records import load_training_data
from lupi_trainer.evaluation import (
    ClosedBookResult,
    acceptance,
    closed_book,
    kept,
    mentions_context,
    privilege_gap,
    without_knowledge,
)
from lupi_trainer.lab import load_lab_records, world
from lupi_trainer.speculative import TopK


PROMPT = TeacherPrompt(world.PERSONA)


@pytest.mark.parametrize(
    "text, leaks",
    [
        ("According to the background knowledge, sebae is one bow.", True),
        ("Based on the provided information, it is Seoul.", True),
        ("As stated in the passage, it is Seoul.", True),
        ("The text does not say.", True),
        ("배경지식에 따르면 세배는 한 번입니다.", True),
        ("제공된 정보를 바탕으로 말씀드리면 그렇습니다.", True),
        ("주어진 글에 따르면 그렇습니다.", True),
        ("위 내용에 따르면 그렇습니다.", True),
        ("According to the Annals of the Joseon Dynasty, it was 1443.", False),
        ("He came from a humble background and had wide knowledge.", False),
        ("The text of the Hunminjeongeum survives.", False),
        ("『동국세시기』에 따르면 복날에 팥죽을 먹었습니다.", False),
        ("그는 가난한 배경에서 자랐고 지식이 넓었습니다.", False),
    ],
)
def test_leaks_are_distinguished_from_sources(text, leaks):
    assert mentions_context(text) is leaks


@pytest.mark.parametrize("language", ["ko", "en"])
def test_the_shipped_knowledge_and_examples_have_no_leak(language):
    from pathlib import Path

    from lupi_trainer.data.records import read_records

    data = Path(__file__).parents[2] / "data"
    name = {"ko": "korean_culture_train_200.json", "en": "korean_culture_train_200_en.json"}[language]
    texts = [r["knowledge"] for r in read_records(data / name)]
    texts += [r["answer"] for r in read_records(data / f"few_shots_{language}.json")]
    assert not [text for text in texts if mentions_context(text)]


def marks(*lenient: bool) -> ClosedBookResult:
    return ClosedBookResult(0.0, 0.0, len(lenient), [{"lenient": mark} for mark in lenient])


def test_kept_is_counted_over_what_was_known():
    some = kept(marks(True, True, True, True, False), marks(True, False, True, False, True))
    assert (some, some.share, some.text) == ((2, 4), 0.5, "2 of 4")
    nothing = kept(marks(False), marks(True))
    assert (nothing.share, nothing.text) == (None, "-") and kept(marks(True), marks(True)).share == 1.0


def rows_of(tokenizer, count: int):
    rows = list(load_training_data("lab:new"))[::30][:count]
    asked = encode(tokenizer, [row["prompt"] for row in rows])
    informed = encode(tokenizer, [PROMPT.messages(row["prompt"], row["privileged_context"]) for row in rows])
    return asked, informed


def test_privilege_gap_is_that_of_one_row_at_a_time(teacher, tokenizer):
    asked, informed = rows_of(tokenizer, 4)
    texts = [tokenizer(f"It has the river {'Va' * n}.", add_special_tokens=False)["input_ids"] for n in (1, 2, 3, 5)]
    found = privilege_gap(teacher, informed, asked, [*texts[:3], []], batch_size=3)
    sums = []
    for prompts in (informed, asked):
        total = 0.0
        for prompt, text in zip(prompts, texts[:3]):
            with torch.no_grad():
                logits = teacher(torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1]
            total -= logits.log_softmax(-1)[range(len(text)), text].sum().item()
        sums.append(total / sum(map(len, texts[:3])))
    assert found.num_tokens == sum(map(len, texts[:3]))
    assert (found.with_knowledge, found.without_knowledge) == pytest.approx(tuple(sums), abs=1e-4)
    assert found.gap == pytest.approx(sums[1] - sums[0], abs=1e-4)


def test_empty_knowledge_is_worth_nothing_to_a_teacher_with_persona_and_examples(teacher, tokenizer):
    prompt = TeacherPrompt(world.PERSONA, (("Which river has Tamo?", "Vava."),), "{privileged_context}{query}")
    rows = list(load_training_data("lab:new"))[:2]
    asked = encode(tokenizer, [without_knowledge(prompt, row["prompt"]) for row in rows])
    assert asked == encode(tokenizer, [prompt.messages(row["prompt"], "") for row in rows])
    headed = TeacherPrompt(world.PERSONA, prompt.few_shot_examples)  # its own header goes with the knowledge
    for row in rows:
        assert without_knowledge(headed, row["prompt"]) == without_knowledge(prompt, row["prompt"])
    text = [tokenizer("It has the river Va.", add_special_tokens=False)["input_ids"]] * 2
    assert privilege_gap(teacher, asked, asked, text).gap == 0.0


def test_the_chat_template_has_the_keyword_arguments_and_leaks_are_counted(thinker, tmp_path, capsys, monkeypatch):
    texts = []
    monkeypatch.setattr(
        "lupi_trainer.scripts.reports.mentions_context", lambda text: (texts.append(text), len(texts) == 1)[1]
    )
    arguments = ["evaluate", "--model", thinker, "--teacher", thinker, "--records", "lab:new", "--device", "cpu"]
    arguments += ["--probes", "lab:probes-common", "--privilege", "--samples", "4", "--max_new_tokens", "12"]
    arguments += ["--output", str(tmp_path / "report.json")]
    assert main([*arguments, "--chat_template_kwargs", '{"think": false}']) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["lab:probes-common"]["closed-book"]["lenient"] >= 0.95
    assert report["privilege"]["leakage"] == 0.25 and len(texts) == 4 and all("<|" not in text for text in texts)
    assert "leakage of the student's text 25.0%" in capsys.readouterr().out.replace("\n", " ")
    assert main(arguments) == 2
    assert "it thinks" in capsys.readouterr().err
    alone = [*arguments, "--model", "lab:student"]  # whose template has no such variable
    assert main([*alone, "--teacher_chat_template_kwargs", '{"think": false}']) == 0
    assert main([*alone, "--teacher_chat_template_kwargs", '{"think": true}']) == 2
    assert "it thinks" in capsys.readouterr().err
    for text, said in (("{", "not valid JSON"), ("[1]", "expected a JSON object")):
        with pytest.raises(SystemExit):
            main([*arguments, "--chat_template_kwargs", text])
        assert said in capsys.readouterr().err


def test_models_that_think_first_are_named_once_in_one_line(slow_thinker, small_lab, capsys):
    def warned(*flags: str) -> list[str]:
        run = ["evaluate", "--model", slow_thinker, "--device", "cpu", "--max_new_tokens", "2", *flags]
        assert main(run) == 0
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]

    probes, off = ("--probes", "lab:probes-common"), '{"enable_thinking": false}'
    privilege = ("--privilege", "--records", "lab:new", "--samples", "2", "--teacher")
    for flags in ((*probes, "--before", "lab:student"), (*privilege, "lab:teacher")):
        (said,) = warned(*flags)
        assert said.count(slow_thinker) == 1 and "lab:" not in said and "--chat_template_kwargs" in said
    (said,) = warned(*probes, *privilege, slow_thinker)
    assert said.count(slow_thinker) == 1
    assert warned(*probes, "--chat_template_kwargs", off) == []
    (said,) = warned(*privilege, slow_thinker, "--teacher_chat_template_kwargs", off)  # the student still does
    assert warned(*privilege, slow_thinker, "--chat_template_kwargs", off) == []


def test_everything_is_accepted_between_equals_and_under_a_rule_that_takes_all(student, teacher, tokenizer):
    asked, informed = rows_of(tokenizer, 6)
    settings = {"max_new_tokens": 12, "eos_token_id": tokenizer.eos_token_id, "gamma": 4}
    greedy = acceptance(teacher, teacher, informed, informed, student_temperature=0.0, **settings)
    assert greedy["acc_rate/mean"] == greedy["acc_rate/full_match"] == 1.0 and greedy["tokens/teacher_share"] == 0.0
    every = acceptance(student, teacher, asked, informed, acceptance=TopK(len(tokenizer), 0.0), **settings)
    assert every["acc_rate/mean"] == 1.0
    own = acceptance(student, teacher, asked, informed, **settings)
    assert 0.0 < own["acc_rate/mean"] < 0.8 and own["tokens/teacher_share"] > 0.1


def test_rates_are_those_counted_block_by_block(student, teacher, tokenizer):
    asked, informed = rows_of(tokenizer, 6)
    blocks = []
    rates = acceptance(
        student,
        teacher,
        asked,
        informed,
        max_new_tokens=12,
        eos_token_id=tokenizer.eos_token_id,
        gamma=4,
        on_block=blocks.append,
    )
    rejected = [block for block in blocks if block.correction is not None]
    written = sum(block.accepted for block in blocks) + len(rejected)
    places = sum(min(4, 12 - b.position) if b.correction is not None else b.accepted for b in blocks)
    assert 0 < len(rejected) < len(blocks)
    assert rates == {
        "acc_rate/mean": (written - len(rejected)) / places,
        "acc_rate/first_token": sum(block.accepted > 0 for block in blocks) / len(blocks),
        "acc_rate/full_match": (len(blocks) - len(rejected)) / len(blocks),
        "tokens/teacher_share": len(rejected) / written,
    }


def test_reading_is_a_skill_of_the_teacher_alone(student, teacher, tokenizer):
    probes = load_lab_records("lab:probes-reading")
    assert not {p["question"] for p in probes} & {p["question"] for p in load_lab_records("lab:probes")}
    assert closed_book(teacher, tokenizer, probes, teacher_prompt=PROMPT, max_new_tokens=12).lenient >= 0.95
    assert closed_book(teacher, tokenizer, probes, max_new_tokens=12).lenient <= 0.05
    assert closed_book(student, tokenizer, probes, teacher_prompt=PROMPT, max_new_tokens=12).lenient <= 0.05


def test_evaluate_says_it_all(tmp_path, capsys):
    output = tmp_path / "report.json"
    arguments = ["evaluate", "--model", "lab:teacher", "--before", "lab:student", "--teacher", "lab:teacher"]
    arguments += [
        "--probes",
        "lab:probes-common",
        "lab:probes",
        "--open_book",
        "lab:probes-reading",
        "--device",
        "cpu",
    ]
    arguments += ["--privilege", "--records", "lab:new", "--gold", "answer", "--samples", "12", "--max_new_tokens"]
    arguments += ["16", "--teacher_system_prompt", world.PERSONA, "--output", str(output)]
    assert main(arguments) == 0
    report = json.loads(output.read_text())
    common = report["lab:probes-common"]
    assert common["before, closed-book"]["lenient"] == 1.0
    assert common["closed-book"]["kept"] == common["closed-book"]["lenient"] < 1.0
    assert common["closed-book"]["leakage"] == 0.0
    assert report["lab:probes-reading"]["student, open-book"]["lenient"] >= 0.95
    assert report["lab:probes"]["open-book"]["lenient"] >= 0.95
    privilege = report["privilege"]
    assert privilege["gold text"]["gap"] > 0.5 and privilege["gold text"]["with_knowledge"] < 0.1
    assert privilege["records"] == 12 and 0 < privilege["acceptance"]["acc_rate/mean"] <= 1
    assert "nats a token" in capsys.readouterr().out


def test_gold_answers_are_those_of_their_records_whatever_the_row_ids(tmp_path, tokenizer, monkeypatch):
    records = load_lab_records("lab:new")[:60:10]
    records.insert(1, {**records[0], "id": "bare", "knowledge": None, "answer": "nothing"})
    texts, path = [], tmp_path / "records.json"
    monkeypatch.setattr(
        "lupi_trainer.scripts.reports.privilege_gap",
        lambda teacher, informed, bare, ids: (texts.append(ids), privilege_gap(teacher, informed, bare, ids))[1],
    )
    run = ["evaluate", "--model", "lab:student", "--teacher", "lab:teacher", "--records", str(path), "--privilege"]
    for row_ids in ([6, 5, 4, 3, 2, 1, 0], [70, 7, 0, 7, 3, 12, 1]):
        path.write_text(json.dumps([{**record, "row_id": n} for record, n in zip(records, row_ids)]))
        assert main([*run, "--gold", "answer", "--samples", "3", "--max_new_tokens", "2", "--device", "cpu"]) == 0
        assert [tokenizer.decode(ids) for ids in texts.pop()] == [records[n]["answer"] for n in (0, 3, 5)]


PRIVILEGE = ["--privilege", "--teacher", "lab:teacher", "--records", "lab:eval"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "nothing to ask"),
        (["--privilege"], "--privilege needs a --teacher, and --records"),
        (["--privilege", "--teacher", "lab:teacher", "--records", "lab:common"], "no record has knowledge"),
        (["--probes", "data/probes_en.json", "--teacher", "lab:teacher"], "name its --records"),
        (["--open_book", "data/probes_en.json", "--records", "lab:new"], "there is no record of its `record_id`)"),
        (["--probes", "lab:probes", "--device", "cuda:77"], "the device 'cuda:77' is not there: this machine has"),
        (["--probes", "lab:probes", "--device", "gpu"], "there is no device 'gpu'"),
        (["--perplexity", "lab:qa-eval", "nowhere.json"], "no such data file: nowhere.json"),
        ([*PRIVILEGE, "--gold", "nothing"], "no text in the column 'nothing' to learn"),
        ([*PRIVILEGE, "--few_shot_examples", "nowhere.json"], "no such data file: nowhere.json"),
    ],
)
def test_what_evaluate_lacks_is_named(arguments, message, capsys, monkeypatch):
    for module in ("marks", "reports"):
        monkeypatch.setattr(f"lupi_trainer.scripts.{module}.load_model", lambda *args, **kw: pytest.fail("loaded"))
    assert main(["evaluate", "--model", "lab:student", "--device", "cpu", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.out == ""


def test_each_set_is_a_block_and_questions_without_knowledge_are_left_out(tmp_path, capsys):
    """Sets whose files have the same stem, records without `id`, a question whose record is not there."""
    records, asked = load_lab_records("lab:common")[:4], load_lab_records("lab:probes-common")
    paths = [tmp_path / folder / "probes.json" for folder in ("one", "two")]
    for path, missing in zip(paths, (99, 1)):
        path.parent.mkdir()
        names = (0, missing, "2")
        probes = [{"question": p["question"], "answers": p["answers"], "record_id": n} for p, n in zip(asked, names)]
        path.write_text(json.dumps([*probes, {"question": "Who?", "answers": ["Nobody"]}]))
    (tmp_path / "records.json").write_text(json.dumps([{"query": r["query"], "knowledge": "Mo."} for r in records]))
    run = ["evaluate", "--model", "lab:student", "--before", "lab:student", "--teacher", "lab:teacher", "--device"]
    run += ["cpu", "--max_new_tokens", "12", "--records", str(tmp_path / "records.json")]
    run += ["--probes", *map(str, paths), "--output", str(tmp_path / "out.json")]
    assert main(run) == 0
    out = capsys.readouterr().out
    assert f"{paths[0]}: 2 of 4 questions are not asked open-book; first: probe of record 99 (number 1): there" in out
    assert f"{paths[1]}: 1 of 4 questions are not asked open-book; first: probe of record number 3: it has no" in out
    for path in paths:
        (line, *others) = out.split(f"\n{path}\n")[1].splitlines()
        assert line.split() == ["strict", "lenient", "kept", "leaks", "questions"]
        assert "student, closed-book" in others[0] and "3 of 3 / 3 of 3" in others[0] and others[0].endswith(" 4")
        assert "teacher, open-book" in others[2]
    report = json.loads((tmp_path / "out.json").read_text())[str(paths[0])]
    assert (report["closed-book"]["kept"], report["closed-book"]["known_strict"]) == (1.0, 3)
    assert report["open-book"]["num_probes"] == 2
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    told = capsys.readouterr().out
    assert all(f"{name}  " in out and f"  {name}: " in told for name in ("strict", "lenient", "kept", "leaks"))


def test_nothing_known_before_is_a_dash(tmp_path, capsys):
    path = tmp_path / "own.json"
    path.write_text(json.dumps([{"question": "Who is Mo?", "answers": ["nobody"]}]))
    run = ["evaluate", "--model", "lab:student", "--before", "lab:student", "--device", "cpu", "--probes", str(path)]
    assert main([*run, "--max_new_tokens", "4"]) == 0
    assert re.search("\nown\n.*\n  student, closed-book +0.0% +0.0% +- +0.0% +1\n", capsys.readouterr().out)
    path.write_text(
        json.dumps([{"question": "Who is Mo?", "answers": ["x"]}, {"question": "<|end|>?", "answers": ["x"]}])
    )
    assert main(run) == 2
    assert f"{path}: probe of record number 1: its text holds the special token" in capsys.readouterr().err

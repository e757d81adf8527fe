"""`lupi new`: a recipe for one's own records that trains as it is, whoever the teacher is."""

import json
import re
import shlex

import pytest
import torch
import yaml

from lupi_trainer.cli import main
from lupi_trainer.lab import load_lab_records, world
from lupi_trainer.scripts import data_make, lupi_skd
from lupi_trainer.scripts.new_recipe import text_of


def parsed(folder, *arguments):
    recipe = ["--config", str(folder / "recipe.yaml"), "--bf16", "false", "--use_cpu", "true"]
    return lupi_skd.make_parser().parse_args_and_config([*recipe, *arguments])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_from_an_empty_folder_to_a_student_that_is_asked(tmp_path, monkeypatch, capsys):
    """The commands that are printed, one after the other, on the examples that are written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "book").mkdir(parents=True)
    (tmp_path / "own" / "book" / "leave.md").write_text("# Leave")
    assert main(["new", "own/book", "--model", "lab:student", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "has 1 document and no records" in out
    commands = [shlex.split(line) for line in out.split("Next:\n")[1].splitlines()]
    assert [words[1] for words in commands] == ["data", "skd", "evaluate", "merge", "ask"]
    recipe = yaml.safe_load((tmp_path / "own" / "book" / "recipe.yaml").read_text())
    evaluate, merge, ask = (words[2:] for words in commands[2:])
    assert evaluate[evaluate.index("--teacher_system_prompt") + 1] == recipe["teacher_system_prompt"]
    assert merge == ["own/book/run", "--out", "own/book/run-merged"] and ask[0] == "own/book/run-merged"
    less = {"skd": "--max_steps 1 --max_completion_length 4 --record_rollouts 0", "evaluate": "--max_new_tokens 2"}
    for _, *words in commands:
        assert main([*words, *less.get(words[0], "").split()]) == 0, words
    assert "probes\n" in (said := capsys.readouterr().out) and "teacher, open-book" in said
    assert main(["new", "own/book"]) == 2
    assert "recipe.yaml exists already; nothing was written" in capsys.readouterr().err


TEACHERS = {None: None, "lab:teacher": "teacher_model_name_or_path", "http://localhost:9": "teacher_model_server_url"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_recipe_is_for_the_files_of_the_folder_and_explains_its_keys(tmp_path, teacher, device, capsys):
    records = load_lab_records("lab:new")[:30]
    write(tmp_path / "facts.jsonl", records)
    write(tmp_path / "asked.json.jsonl", load_lab_records("lab:probes")[:3])
    write(tmp_path / "old.jsonl", [{"prompt": r["query"]} for r in load_lab_records("lab:common")[:3]])
    (tmp_path / "other.json").write_text("[]")
    assert main(["new", str(tmp_path), "--device", device, *(["--teacher", teacher] if teacher else [])]) == 0
    without = "this machine has no GPU, as far as PyTorch can see, and the recipe needs one (--device cpu"
    assert (without in capsys.readouterr().out) == (device == "cuda" and not torch.cuda.is_available())
    text = (tmp_path / "recipe.yaml").read_text()
    keys = yaml.safe_load(text)
    data, args, model = parsed(tmp_path, "--load_in_4bit", "false")
    assert data.dataset_name == str(tmp_path / "facts.jsonl") and data.probes.endswith("asked.json.jsonl")
    assert data.base_dataset_name == str(tmp_path / "old.jsonl") and data.mixing == "0.5" and model.use_peft
    assert keys["bf16"] == (device == "cuda") and keys.get("use_cpu", False) == (device == "cpu")
    named = {key for key in TEACHERS.values() if key and getattr(args, key)}
    assert named == ({TEACHERS[teacher]} if teacher else set())
    assert (keys.get("chat_template_kwargs") == {"enable_thinking": False}) == ("Qwen3" in keys["model_name_or_path"])
    assert 100 <= args.num_train_epochs * len(records) / args.per_device_train_batch_size <= 300
    lines = text.split("# Against")[0].splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\w+: ", line):
            assert "  # " in line or lines[number - 1].startswith("# "), line
    assert len(lines) < 55 and max(len(line) for line in lines if str(tmp_path) not in line) <= 119


def test_the_bound_of_prompts_is_one(tmp_path, tokenizer):
    from lupi_trainer.data.prompts import TeacherPrompt, encode

    rows = [{"prompt": "Wo? " * n, "knowledge": "한국의 설날 세배. " * n} for n in (1, 400)]
    write(tmp_path / "records.jsonl", rows)
    assert main(["new", str(tmp_path), "--device", "cpu"]) == 0
    _, args, _ = parsed(tmp_path)
    conversations = [
        TeacherPrompt(args.teacher_system_prompt).messages([{"role": "user", "content": r["prompt"]}], r["knowledge"])
        for r in rows
    ]
    longest = max(map(len, encode(tokenizer, [[{"role": "user", "content": world.PERSONA}], *conversations[:1]])))
    assert longest <= 512 and args.max_teacher_prompt_length >= 400 * len("한국의 설날 세배. ".encode()) / 2


def test_what_may_be_meant_twice_or_cannot_be_used_is_named(tmp_path, capsys):
    folder, other = tmp_path / "own", tmp_path / "other.jsonl"
    folder.mkdir()
    for name in ("a", "b"):
        write(folder / f"{name}.jsonl", [{"prompt": "Who?", "knowledge": "Mo."}])
    write(other, [{"prompt": " ", "knowledge": "Mo."}])
    write(misspelled := tmp_path / "own.jsonl", [{"prompt": "Who?", "knowlege": "Mo."}])
    run = ["new", str(folder), "--device", "cpu"]
    for extra, message in (
        ([], "a.jsonl, "),
        ([], "name one with --records"),
        (
            ["--records", str(other)],
            f"{other}: record number 0: the prompt is empty; lupi data check names all faults",
        ),
        (["--records", str(tmp_path / "none.jsonl")], "no such data file"),
        (["--probes", str(other), "--records", str(folder / "a.jsonl")], "probe of record number 0: no `question`"),
        (["--records", str(misspelled)], "did you mean `knowledge` by `knowlege`?; lupi data check names all faults"),
    ):
        assert main([*run, *extra]) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["a.jsonl", "b.jsonl"]
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a", "b"):
        write(two / f"{name}.jsonl", [{"question": "Who?", "answers": ["Mo"]}])
    assert main(["new", str(two), "--device", "cpu"]) == 2
    names = f"{two / 'a.jsonl'}, {two / 'b.jsonl'}"
    assert capsys.readouterr().err == f"error: several files of probes: {names}; name one with --probes\n"
    write(two / "a.jsonl", [{"prompt": "Who?", "knowlege": "Mo."}])
    assert main(["new", str(two), "--device", "cpu"]) == 2  # not taken for a file without any knowledge
    assert "a.jsonl: record number 0: no `privileged_context`" in capsys.readouterr().err
    assert main([*run, "--records", str(folder / "a.jsonl")]) == 0
    assert main(["new", str(other)]) == 2
    assert "is a file: name a folder for the recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["no", "a b", "1.json", "a: b", "a#b", "#a", "null", "lab:student", "Qwen/Qwen3-4B", "~/x"]
)
def test_names_are_texts_in_yaml(text):
    assert yaml.safe_load(f"key: {text_of(text)}  # comment") == {"key": text}


def test_questions_about_documents_are_answered_without_thinking(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(data_make, "main", lambda args: asked.append(args.chat_template_kwargs) or 0)
    run = ["new", str(tmp_path / "own"), "--documents", str(tmp_path), "--device", "cpu", "--model"]
    for models in (["Qwen/Qwen3-0.6B"], ["lab:student", "--teacher", "Qwen/Qwen3-4B"], ["lab:student"]):
        assert main([*run, *models]) == 0
    assert asked == [{"enable_thinking": False}, {"enable_thinking": False}, {}]


def test_documents_that_are_given_become_records(tmp_path, capsys):
    """By a teacher on a server; what it writes is in the tests of documents."""
    from tests.documents.islands import Teacher, write_documents
    from tests.documents.stand_in import StandIn

    write_documents(tmp_path / "docs", world.NEW[:1])
    server = StandIn(Teacher())
    try:
        run = ["new", str(tmp_path / "own"), "--documents", str(tmp_path / "docs"), "--model", "lab:student"]
        assert main([*run, "--teacher", server.url, "--device", "cpu"]) == 0
    finally:
        server.close()
    data, args, _ = parsed(tmp_path / "own")
    assert data.dataset_name == str(tmp_path / "own/records.jsonl") and args.teacher_model_server_url == server.url
    assert "lupi skd --config" in capsys.readouterr().out
    assert main([*run, "--records", "x.json"]) == 2
    assert "recipe.yaml exists already" in capsys.readouterr().err
    (tmp_path / "own/recipe.yaml").unlink()
    assert main([*run, "--records", "x.json"]) == 2
    assert "--records and --documents" in capsys.readouterr().err

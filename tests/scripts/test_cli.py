import json
import os
import sys

import pytest
import torch

from lupi_trainer.cli import main, make_parser
from lupi_trainer.scripts.dry_run.key_types import key_types
from lupi_trainer.scripts.launch import TRAINING
from lupi_trainer.scripts.recipe_files import list_recipes


def test_recipes_ls_cat_and_cp(tmp_path, capsys):
    assert main(["recipes", "ls"]) == 0
    listed = capsys.readouterr().out.split()
    notebook = "notebooks/train_lupi_skd.ipynb"
    assert sorted(listed) == sorted([*list_recipes(), notebook])
    assert main(["recipes", "cat", "lab/lupi_skd/config_full.yaml"]) == 0
    assert "model_name_or_path: lab:student" in capsys.readouterr().out
    for name in ("lab/lupi_skd/config_full.yaml", f"recipes/{notebook}"):
        assert main(["recipes", "cp", name, str(tmp_path)]) == 0
    assert "cells" in json.loads((tmp_path / "train_lupi_skd.ipynb").read_text())
    assert main(["recipes", "cp", "lab/lupi_skd/config_full.yaml", str(tmp_path)]) == 2
    assert "nothing was copied" in capsys.readouterr().err


def test_evaluate_writes_marks_and_answers(tmp_path, capsys):
    output = tmp_path / "marks.json"
    arguments = ["evaluate", "--model", "lab:student", "--probes", "lab:probes-common", "lab:probes"]
    arguments += ["--device", "cpu", "--output", str(output)]
    assert main(arguments) == 0
    report = json.loads(output.read_text())
    assert report["lab:probes-common"]["closed-book"]["strict"] >= 0.95
    assert report["lab:probes"]["closed-book"]["lenient"] <= 0.05
    assert len(report["lab:probes"]["closed-book"]["answers"]) == 144
    assert "closed-book" in capsys.readouterr().out


def test_evaluate_gives_the_open_book_ceiling(tmp_path):
    output = tmp_path / "marks.json"
    arguments = ["evaluate", "--model", "lab:student", "--teacher", "lab:teacher", "--probes", "lab:probes"]
    arguments += ["--teacher_system_prompt", "You are an expert on the islands.", "--output", str(output)]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert json.loads(output.read_text())["lab:probes"]["open-book"]["strict"] >= 0.95


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["evaluate", "--model", "lab:student", "--probes", "nowhere.json"], "no such data file: nowhere.json"),
        (["evaluate", "--model", "lab:nobody", "--probes", "lab:probes"], "no model 'lab:nobody'"),
        (["recipes", "cat", "nothing"], "no recipe 'nothing'"),
        (["skd", "--config", "nothing.yaml"], "no recipe 'nothing.yaml'"),
        (["skd", "--config", "lab/lupi_skd/config_full.yaml", "--gama", "3"], "--gama"),
        (["skd", "--config", "lab/lupi_skd/config_full.yaml", "--gamma", "0"], "gamma must be at least 1"),
        (["skd", "--config", "lab/lupi_skd/config_full.yaml", "--dataset_name", "lab:x"], "no 'lab:x' in the lab"),
        (["skd", "--config", "lab/lupi_skd/config_full.yaml", "--accelerate_config", "x"], "no accelerate config"),
        (["skd", "--config", "a.yaml", "--config=b.yaml"], "--config is given more than once: leave one of them"),
        (["skd", "--accelerate_config=a", "--accelerate_config", "b"], "--accelerate_config is given more than once"),
        (["skd", "--config=nothing.yaml"], "no recipe 'nothing.yaml'"),
        (["skd", "--config=lab/lupi_skd/config_full.yaml", "--gamma", "0"], "gamma must be at least 1"),
        (["skd", "--config=lab/lupi_skd/config_full.yaml", "--accelerate_config=x"], "no accelerate config"),
    ],
)
def test_what_the_user_can_mend_is_said_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "error: " in error and message in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


MAKE = ["data", "make", "docs", "--output", "out"]
SELECT = ["data", "select", "--probes", "lab:probes", "--output_dir", "out"]
NAMED = {
    "MODEL": ["ask", "./nobody", "Who?"],
    "--model": ["evaluate", "--probes", "lab:probes", "--model"],
    "--teacher": ["evaluate", "--probes", "lab:probes", "--model", "lab:student", "--teacher"],
    "--before": ["evaluate", "--probes", "lab:probes", "--model", "lab:student", "--before"],
    "--target": ["generate", "--prompts", "Hi", "--target"],
    "--draft": ["generate", "--prompts", "Hi", "--target", "lab:teacher", "--draft"],
    "--model ": ["prune", "--drop", "1", "--bundle", "a", "--out", "out", "--model"],
    "--base": ["restore", "--bundle", "a", "--out", "out", "--base"],
    "MODEL ": ["chat"],
    "--before ": ["chat", "lab:student", "--before"],
    "RUN": ["export", "--to", "hf", "--output", "out"],
    "--compare": ["evaluate", "--server", "http://127.0.0.1:9", "--probes", "lab:probes", "--compare"],
    "--student": [*MAKE, "--teacher", "lab:teacher", "--student"],
    "--teacher ": [*MAKE, "--student", "lab:student", "--teacher"],
    "--reader": [*MAKE, "--teacher", "lab:teacher", "--student", "lab:student", "--reader"],
    "--student ": [*SELECT, "--student"],
    "--teacher  ": [*SELECT, "--student", "lab:student", "--teacher"],
    "model_name_or_path": ["skd", "--config", "lab/lupi_skd/config_full.yaml", "--model_name_or_path"],
    "model_name_or_path ": ["sft", "--config", "lab/sft/config_full.yaml", "--model_name_or_path"],
    "model_name_or_path  ": ["kd", "--config", "lab/kd_lora/config_teacher.yaml", "--base_dir"],
    "model_name_or_path   ": ["wmtp", "--config", "lab/wmtp/config_tiny.yaml", "--model_name_or_path"],
    "teacher_model_name_or_path": ["compare", "--arms", "skd", "--teacher_model_name_or_path"],
}


@pytest.mark.parametrize("key", NAMED)
def test_a_mistyped_folder_of_a_model_is_refused_at_once_by_every_command(key, tmp_path, monkeypatch, capsys):
    """Before what it needs is loaded; with the key, the path, and what has nearly that name."""
    monkeypatch.chdir(tmp_path)
    for command in TRAINING:
        key_types(command)  # which are kept, and read from the source of transformers
    monkeypatch.setitem(sys.modules, "transformers", None)  # which no command imports by then
    (tmp_path / "nobodies").mkdir()
    words = NAMED[key]
    assert main(words if "./nobody" in words else [*words, "./nobody"]) == 2
    said = f"error: {key.strip()}: no such model folder: ./nobody; did you mean nobodies?\n"
    assert capsys.readouterr().err == said
    assert [path.name for path in tmp_path.iterdir()] == ["nobodies"]


@pytest.mark.parametrize(
    "words",
    [
        ["ask", "me/none", "Who?"],
        ["evaluate", "--model", "me/none", "--perplexity", "nowhere.json"],
        ["generate", "--target", "me/none", "--prompts", "Hi"],
        [*SELECT, "--student", "me/none"],
        [*MAKE, "--teacher", "me/none", "--student", "me/none"],
    ],
)
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--device", "cuda:77"]) == 2
    assert capsys.readouterr().err.startswith("error: the device 'cuda:77' is not there: this machine has ")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--drop", "x"], "--drop takes a range of layers such as 21-28"),
        (["--drop", "least:x", "--data", "lab:qa"], "--drop least:N takes a number of layers, got 'least:x'"),
        (["--drop", "least:2", "--data", "nowhere.json"], "no such data file: nowhere.json"),
    ],
)
def test_prune_says_what_it_knows_before_the_model_is_loaded(tmp_path, arguments, message, monkeypatch, capsys):
    import lupi_trainer.pruning.stages  # noqa: F401, which would keep what is put here for all tests that follow

    monkeypatch.setattr("lupi_trainer.models.loading.load_complete", lambda *args, **kwargs: pytest.fail("loaded"))
    assert main(["prune", "--model", "lab:teacher", "--out", str(tmp_path / "out"), "--bundle", "B", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flag, name", [("--probes", "a.md"), ("--unseen", "b.json"), ("--general", "c.json")])
def test_compare_reads_all_questions_before_the_first_run(flag, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lupi_trainer.scripts.arms.run", lambda *args: pytest.fail("an arm was run"))
    (tmp_path / "a.md").write_text("")
    (tmp_path / "c.json").write_text('[{"question": "Who?", "answers": "Mo"}]')
    said = {
        "--probes": "--probes: a.md is a file of another kind",
        "--unseen": "--unseen: no such data file: b.json",
        "--general": "c.json: probe of record number 0: `answers` must be a list of accepted strings, got 'Mo'",
    }
    assert main(["compare", flag, name]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said[flag]}")


@pytest.mark.parametrize("command", [["skd", "--config"], ["compare", "--arms", "skd", "--config"]])
def test_a_teacher_server_that_is_not_there_is_said_in_one_line(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dead = ["--teacher_model_server_url", "http://127.0.0.1:9", "--teacher_server_timeout", "0.1"]
    assert main([*command, "lab/lupi_skd/config_full.yaml", *dead]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "the teacher server http://127.0.0.1:9 has not answered" in errors[0]


def test_skd_trains_and_saves_from_the_shipped_recipe(tmp_path, small_lab):
    arguments = ["skd", "--config", "lab/lupi_skd/config_full.yaml", "--max_steps", "2", "--eval_strategy", "no"]
    assert main([*arguments, "--output_dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "chat_template.jinja").is_file()
    marks = json.loads((tmp_path / "run" / "metrics.json").read_text())  # the probes', which are asked all the same
    assert marks.keys() == {"eval_closed_book_strict", "eval_closed_book_lenient"}


@pytest.mark.slow
def test_every_command_answers_help_within_two_seconds():
    """Each in a process of its own; processor time, so that a busy machine does not count."""
    import resource
    import subprocess
    import sys

    def actions_of(parser) -> dict:
        return next(action.choices for action in parser._actions if action.choices)

    commands = actions_of(make_parser())
    assert {"skd", "kd", "sft", "inspect", "plot", "demo"} <= commands.keys()
    nested = [[name, action] for name in ("data", "recipes") for action in actions_of(commands[name])]
    assert {("data", "check"), ("recipes", "ls"), ("recipes", "cp")} <= set(map(tuple, nested))
    for command in ([], *([name] for name in commands), *nested):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = [sys.executable, "-m", "lupi_trainer.cli", *command, "--help"]
        assert "usage: lupi" in subprocess.run(run, capture_output=True, text=True, check=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2, command


@pytest.mark.parametrize("old", [["--draft_length", "goodput"], ["--draft_length=goodput"], ["--draft_length"]])
@pytest.mark.parametrize("complete", [["--target", "a", "--draft", "b", "--prompts", "c"], []])
def test_an_old_flag_is_refused_with_the_new_name(old, complete, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["generate", *complete, *old])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.endswith("error: --draft_length is now called --gamma_policy\n")
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    assert "--draft_length" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (
            ["plot", "runs/a", "--curve_name", "loss"],
            "unrecognized arguments: --curve_name loss; did you mean --curves?",
        ),
        (["evaluate", "--model", "a", "--probe", "b"], "unrecognized arguments: --probe b; did you mean --probes?"),
        (["sdk", "--config", "a.yaml"], "no command 'sdk'; did you mean 'skd'? There are: skd, kd, "),
        (["train"], "no command 'train'; did you mean 'skd'?"),
        (["trian"], "no command 'trian'; did you mean 'skd'? There are: skd, kd, "),
        (["zzz"], "no command 'zzz'; there are: skd, kd, "),
        (["recipes", "list"], "no action 'list'; did you mean 'ls'? There are: ls, cat, cp\n"),
        (
            ["data", "check", "--schema", "kultur"],
            "--schema: no 'kultur'; did you mean 'culture'? There are: training",
        ),
    ],
)
def test_what_is_unknown_is_refused_by_name_with_what_may_have_been_meant(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["skd", "--help", "all"], ["recipes", "ls"]]
)
def test_help_imports_nothing_heavy(arguments):
    import subprocess
    import sys

    code = (
        "import sys\nfrom lupi_trainer.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', [m for m in ('torch', 'transformers', 'trl', 'datasets') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("HEAVY []")


@pytest.mark.parametrize("command", ["skd", "kd", "wmtp", "sft"])
def test_help_has_the_keys_that_matter_and_all_of_them_on_request(command, capsys):
    """By group; their names and defaults are those of the configurations."""
    from importlib import import_module

    from lupi_trainer.scripts.key_help import KEYS, as_text
    from lupi_trainer.scripts.launch import module

    listed = [key for members in KEYS[command].values() for key in members]
    assert len({key.name for key in listed}) == len(listed) == 20 and len(KEYS[command]) >= 4
    actions = {action.dest: action for action in import_module(module(command)).make_parser().actions}
    assert {key.name: key.default for key in listed if key.default} == {
        key.name: as_text(actions[key.name].default) for key in listed if key.default
    }
    assert main([command, "--help"]) == 0
    short = capsys.readouterr().out
    assert f"All keys: lupi {command} --help all" in short and all(f"\n  {key.name} (" in short for key in listed)
    assert len(short.splitlines()) < 60
    assert main([command, "--help", "all"]) == 0
    long = capsys.readouterr().out
    assert all(long.count(f"\n  {name} (") == 1 for name in actions if name not in ("help", "config"))
    assert "%%" not in long and "~20%" in long and "overwrite_output_dir (false)" in long


@pytest.mark.parametrize("command", [["skd", "--help", "all"], ["evaluate", "--help"], ["recipes", "ls"]])
def test_output_that_nobody_reads_is_no_fault(command, monkeypatch, capsys):
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        assert main(command) == 141
    assert capsys.readouterr().err == ""


def test_flags_with_several_values_may_be_given_more_than_once():
    parsed = make_parser().parse_args(["evaluate", "--model", "a", "--probes", "b", "c", "--probes", "d"])
    assert parsed.probes == ["b", "c", "d"]
    assert make_parser().parse_args(["compare", "--config", "a", "--config", "b"]).config == ["a", "b"]


def test_public_names_are_there():
    import lupi_trainer

    for name in lupi_trainer.__all__:
        assert getattr(lupi_trainer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lupi_trainer.nothing  # noqa: B018
    assert torch.get_num_threads() == 1

"""Reading runs, and what the page and the plots are made of. What a browser makes of the page: test_page.py."""

import json
import logging
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

import pytest
from trl import ModelConfig

from lupi_trainer.cli import main
from lupi_trainer.inspection import plot_runs, read_run, write_page
from lupi_trainer.inspection.page import page_data
from lupi_trainer.inspection.run import CURVES
from lupi_trainer.lab import load_lab_records
from lupi_trainer.publishing.student_files import student_files
from lupi_trainer.scripts.common import DataArguments, train_and_save
from lupi_trainer.scripts.run_notes import collect_warnings
from lupi_trainer.training.run_log import MARKS
from tests.inspection.runs import make_run
from tests.lupi_skd.training import make_trainer


def test_a_training_run_is_read_as_it_was_logged(tmp_path):
    trainer, losses = make_trainer(tmp_path, config_max_steps=3, config_record_rollouts=3)
    trainer.train()
    trainer.save_state()
    run = read_run(tmp_path / "run")
    assert [value for _, value in run.points("loss")] == losses.losses
    assert [value for _, value in run.points("acc_rate/mean")] == [log["acc_rate/mean"] for log in losses.logs]
    assert 0 < len(run.rollouts) <= 3 and run.rollouts.broken == 0
    curves = {curve["name"]: curve for curve in page_data(run)["curves"]}
    assert curves.keys() == {"loss", "acceptance", "gamma", "speed", "teacher_share"}
    assert curves["loss"]["lines"] == {"training": [(i + 1, loss) for i, loss in enumerate(losses.losses)]}


@pytest.mark.parametrize("when", ["no", "steps"])
def test_the_marks_at_the_end_are_the_last_ones_of_the_log_the_card_and_the_page(tmp_path, when, capsys, monkeypatch):
    trainer, _ = make_trainer(
        tmp_path, config_max_steps=1, config_eval_strategy=when, eval_dataset=load_lab_records("lab:eval")[:2]
    )
    trainer.probes = load_lab_records("lab:probes")[:2]
    asked = {0: dict.fromkeys(MARKS, 0.125), 1: dict.fromkeys(MARKS, 0.375)}
    ask = type(trainer).ask_probes
    monkeypatch.setattr(trainer, "ask_probes", lambda: ask(trainer) | asked[trainer.state.global_step])
    metrics = train_and_save(trainer, DataArguments(dataset_name="lab:new"), ModelConfig("lab:student"))
    assert metrics["eval_closed_book_strict"] == 0.375 and ("eval_loss" in metrics) == (when != "no")
    run = read_run(tmp_path / "run")
    assert page_data(run)["metrics"] == metrics and "metrics.json" not in student_files(tmp_path / "run")
    assert [run.points(name) for name in MARKS] == [[(0, 0.125), (1, 0.375)]] * 2
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| closed-book accuracy, strict | 12.5% (step 0) | 37.5% (step 1) |" in card
    assert capsys.readouterr().out.count("asking 2 probes closed-book\n") == 2


def test_the_longest_log_counts_and_a_checkpoint_is_enough(tmp_path):
    folder = make_run(tmp_path / "run")
    state = json.loads((folder / "trainer_state.json").read_text())
    for step in (20, 9):
        later = {"global_step": step, "log_history": [{"step": step, "loss": 0.125}]}
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(later))
    assert read_run(folder).history == state["log_history"]
    (folder / "trainer_state.json").unlink()
    assert read_run(folder).points("loss") == [(20, 0.125)]


def test_a_page_shows_marks_warnings_and_settings_and_explains_its_words(tmp_path):
    folder = make_run(tmp_path / "run")
    page = write_page(read_run(folder), tmp_path / "page.html").read_text(encoding="utf-8")
    body = page[page.index('<section id="tables"') : page.index('<section id="reader"')]
    tables = ElementTree.fromstring(body[: body.index("</section>") + len("</section>")])  # well-formed, all escaped
    rows = {
        table.get("id"): [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
        for table in tables.iter("table")
    }
    assert rows["marks"][0] == ["", "first", "last", "change"]
    assert ["training loss", "0.1 step 10", "0.025 step 40", "-0.075"] in rows["marks"]
    assert ["closed-book, strict", "25.0% step 40", "25.0% step 40", ""] in rows["marks"]
    assert ["accepted drafts", "10.0% step 10", "40.0% step 40", "+30.0 points"] in rows["marks"]
    assert ["validation loss", "0.5 step 40", "0.5 step 40", ""] in rows["marks"]
    assert rows["settings"][1:] == [
        ["gamma", "8"],
        ["teacher_system_prompt", "</script><b>You</b>"],
        ["mixing", '[{"share": 0.7, "until": 0.5}]'],
    ]
    assert [item.text for item in tables.iter("li")] == ["8 records do not divide", "<img onerror=alert(1)>"]
    titles = {abbr.text: abbr.get("title") for abbr in tables.iter("abbr")}
    assert titles["gamma"] == 'Draft length "in" <tokens>.' and "accepted" in titles["accepted drafts"]
    assert "teacher_system_prompt" not in titles  # of which nothing is known
    for curve in page_data(read_run(folder))["curves"]:
        assert curve["about"] and curve["words"].keys() == curve["lines"].keys() and all(curve["words"].values())
    (folder / "run_notes.json").write_text("[1]")
    run = read_run(folder)
    assert run.settings == [] and "run_notes.json does not hold settings and warnings" in run.notes[0]
    (folder / "run_notes.json").unlink()
    assert 'id="settings"' not in write_page(read_run(folder), tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_run_writes_down_its_settings_and_what_it_warned_of(tmp_path):
    collect_warnings()
    logging.getLogger("lupi_trainer.training").warning("seen once")
    trainer, _ = make_trainer(tmp_path, config_max_steps=1, config_teacher_system_prompt="You hf_" + "a" * 34)
    data = DataArguments(dataset_name="lab:new")
    for _ in range(2):
        logging.getLogger("lupi_trainer.data").warning("seen\n  twice")
    train_and_save(trainer, data, ModelConfig("lab:student"))
    run = read_run(tmp_path / "run")
    assert {"seen once", "seen twice"} <= set(run.warnings) and len(set(run.warnings)) == len(run.warnings)
    settings = {name: value for name, value, _ in run.settings}
    assert settings["dataset_name"] == "lab:new" and settings["max_steps"] == 1 and "beta" not in settings
    assert settings["teacher_system_prompt"] == "You ***" and settings["model_name_or_path"] == "lab:student"
    assert {n: about for n, _, about in run.settings}["teacher_system_prompt"] == "Persona of the teacher."
    assert "run_notes.json" not in student_files(tmp_path / "run")


def test_what_is_no_run_is_said(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "none")]) == 2
    assert "no such run" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    folder = make_run(tmp_path / "run")
    assert main(["inspect", str(folder), "--max_rollouts", "0"]) == 2
    (folder / "metrics.json").write_text("{")
    assert main(["inspect", str(folder)]) == 2
    assert "metrics.json is not valid JSON" in capsys.readouterr().err
    (folder / "metrics.json").write_text("[]")
    assert main(["inspect", str(folder)]) == 2
    assert "metrics.json must be an object of figures, found list" in capsys.readouterr().err


def test_a_killed_run_is_read_as_far_as_it_is_readable(tmp_path, capsys):
    folder = make_run(tmp_path / "run", rollouts=4)
    history = read_run(folder).history
    for step, text in (
        (20, '{"global_step": 20, "log_hi'),
        (30, "[]"),
        (50, '{"global_step": 50, "log_history": [3]}'),
    ):
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    run = read_run(folder)
    assert run.history == history and len(run.notes) == 3
    assert any("checkpoint-20/trainer_state.json is not valid JSON" in note for note in page_data(run)["notes"])
    assert any("checkpoint-30/trainer_state.json is not a trainer's state" in note for note in run.notes)
    (folder / "trainer_state.json").unlink()
    assert read_run(folder).history == [] and len(read_run(folder).rollouts) == 4
    (folder / "rollouts.jsonl").unlink()
    for command in ("inspect", "plot"):
        assert main([command, str(folder)]) == 2
        assert "trainer_state.json is not" in capsys.readouterr().err


def test_values_that_are_not_finite_are_left_out_of_curves_and_told(tmp_path):
    folder = make_run(tmp_path / "run", rollouts=2, perplexity=float("inf"), loss=0.5)
    state = json.loads((folder / "trainer_state.json").read_text())
    state["log_history"][1]["loss"] = float("nan")
    state["log_history"][2]["loss"] = -1e305  # so far from others that their distance may be infinite
    (folder / "trainer_state.json").write_text(json.dumps(state))
    text = (folder / "rollouts.jsonl").read_text().replace('"divergence": [0.0,', '"divergence": [NaN,')
    (folder / "rollouts.jsonl").write_text(text)
    run = read_run(folder)
    assert [step for step, _ in run.points("loss")] == [10, 40]
    page = write_page(run, tmp_path / "page.html").read_text()
    assert "2 values of loss left out of its curve: NaN, infinite or above 1e+300." in page
    assert page_data(run)["metrics"] == {"perplexity": "inf", "loss": 0.5}
    assert page_data(run)["rollouts"][0]["divergence"][:2] == [None, 0.0]
    plot_runs([run], tmp_path / "plots", ["loss"])


def test_a_page_holds_so_many_tokens_that_it_stays_quick(tmp_path, monkeypatch):
    monkeypatch.setattr("lupi_trainer.inspection.page.MOST_TOKENS", 100)
    run = read_run(make_run(tmp_path / "run", rollouts=20, tokens=30))
    data = page_data(run)
    assert [r["row_id"] for r in data["rollouts"]] == [0, 5, 9]
    assert data["notes"] == [
        "3 of 20 recorded rollouts are shown: a page holds up to 100 tokens and 10,000,000 letters."
    ]
    assert len(page_data(read_run(make_run(tmp_path / "long", rollouts=2, tokens=300)))["rollouts"]) == 1


def test_plots_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", str(make_run(tmp_path / "run")), "--output_dir", str(tmp_path / "plots")]) == 2
    assert capsys.readouterr().err == "error: plots need matplotlib: pip install 'lupi-trainer[plots]'\n"


def test_half_a_line_is_counted_and_told(tmp_path):
    folder = make_run(tmp_path / "run", rollouts=4)
    with open(folder / "rollouts.jsonl", "a") as file:
        file.write('{"step": 3, "comp')
    run = read_run(folder)
    assert len(run.rollouts) == 4 and run.rollouts.broken == 1
    assert page_data(run)["notes"] == ["1 line of rollouts.jsonl left out: cut off in writing."]


def test_the_page_holds_its_figures_and_needs_no_network(tmp_path):
    folder = make_run(tmp_path / "run", rollouts=20, closed_book_after=0.9931, seconds=2)
    page = write_page(read_run(folder), tmp_path / "page.html", max_rollouts=5).read_text(encoding="utf-8")
    addresses = set(re.findall(r"https?://[^\"' )]+|(?:src|href)=", page))
    assert addresses == {"http://www.w3.org/2000/svg"}
    parts = {tag: re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1] for tag in ("script", "style")}
    allowed = {tag: b64encode(sha256(part.encode()).digest()).decode() for tag, part in parts.items()}
    said = "; ".join(f"{tag}-src 'sha256-{allowed[tag]}'" for tag in parts)
    said = f"default-src 'none'; {said}; base-uri 'none'; form-action 'none'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{said}">' in page[: page.index("<title>")]
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["metrics"] == {"closed_book_after": 0.9931, "seconds": 2} and data["shares"] == ["closed_book_after"]
    shares = {"acceptance": True, "closed_book": True, "teacher_share": True, "loss": False, "gamma": False}
    assert {curve["name"]: curve["share"] for curve in data["curves"]} == shares | {"speed": False}
    assert [r["row_id"] for r in data["rollouts"]] == [0, 2, 5, 7, 9]
    assert data["notes"] == ["5 of 20 recorded rollouts are shown."]
    assert "prefers-color-scheme: dark" in page


def change(**values):
    return lambda entry: entry | values


def change_place(key, value):
    return lambda entry: entry | {key: [*entry[key][:-1], value]}


ODD = {
    "expected an object, found list": lambda entry: [entry],
    "no `draft`": lambda entry: {key: value for key, value in entry.items() if key != "draft"},
    "nested too deeply": lambda entry: entry | {"deep": "DEEP"},
    "`step` must be a whole number from 0, got 1.5": change(step=1.5),
    "`step` must be a whole number from 0, got 9": change(step=10**400),
    "`step` must be a whole number from 0, got -1": change(step=-1),
    "`id` must be text, got list": change(id=[]),
    "`prompt` must be a list of messages": change(prompt="text"),
    "`prompt` must be a list of messages, each": change(prompt=[{"role": "user", "content": [{"text": "x"}]}]),
    "`divergence` must have an entry for each token": change(divergence=[]),
    "`completion` has an entry of type NoneType": change_place("completion", None),
    "`student_probability` has 1.5": change_place("student_probability", 1.5),
    "`teacher_probability` has -0.1": change_place("teacher_probability", -0.1),
    "`divergence` has inf": change_place("divergence", float("inf")),
    "`from_teacher` has 2": change_place("from_teacher", 2),
    "`teacher_rank` has 1000": change_place("teacher_rank", 10**30),
    "`completion[29]` has half a character": change_place("completion", "\ud800"),
}


@pytest.mark.parametrize("said", ODD)
def test_an_odd_line_is_an_error_that_names_file_and_line(tmp_path, said, capsys):
    folder = make_run(tmp_path / "run", rollouts=3)
    lines = (folder / "rollouts.jsonl").read_text().splitlines()
    line = json.dumps(ODD[said](json.loads(lines[1]))).replace("Infinity", "1e999").replace("1" + "0" * 400, "9" * 401)
    lines[1] = line.replace('"DEEP"', "[" * 5000 + "]" * 5000)
    (folder / "rollouts.jsonl").write_text("\n".join(lines))
    assert main(["inspect", str(folder)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "rollouts.jsonl, line 2: " in error and said in error and not (folder / "inspect.html").exists()


@pytest.mark.parametrize("file", ["metrics.json", "trainer_state.json", "run_notes.json"])
@pytest.mark.parametrize(
    "odd, said",
    [
        ("1" + "0" * 400, "has a number of more than 63 bits"),
        ('"\\ud800"', "has half a character"),
        ("[" * 99 + "]" * 99, "is nested more than 64 deep"),
        ("[" * 5000 + "]" * 5000, "not valid JSON: it is nested too deeply"),
    ],
    ids=["digits", "half", "deep", "deeper"],
)
def test_odd_figures_and_settings_are_named_by_file_and_key(tmp_path, file, odd, said, capsys):
    folder = make_run(tmp_path / "run", rollouts=0, perplexity=2)
    content = json.loads((folder / file).read_text()) | {"odd": {"key": "ODD"}}
    (folder / file).write_text(json.dumps(content).replace('"ODD"', odd))
    if file == "run_notes.json":  # the page shows the rest, and says it
        assert said in page_data(read_run(folder))["notes"][0]
        return
    assert main(["inspect", str(folder)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert file in error and said in error and ("odd.key" in error or "valid" in said)


def test_a_folder_whose_name_is_no_text_has_a_page(tmp_path):
    run = read_run(make_run(tmp_path / os.fsdecode(b"run-\xff"), rollouts=1))
    assert "<title>run-?</title>" in write_page(run, tmp_path / "page.html").read_text()


def test_of_many_rollouts_only_those_that_are_shown_are_read(tmp_path, monkeypatch):
    run = read_run(make_run(tmp_path / "run", rollouts=400, tokens=3))
    read, parse = [], json.loads
    monkeypatch.setattr(
        "lupi_trainer.inspection.rollouts.json.loads", lambda *a, **k: read.append(1) or parse(*a, **k)
    )
    assert len(page_data(run, max_rollouts=10)["rollouts"]) == 10 and len(read) == 10
    shown = page_data(run, max_rollouts=10, first_step=5, last_step=20)
    assert {r["step"] for r in shown["rollouts"]} == {20} and len(read) == 20
    with pytest.raises(ValueError, match="no rollout of these steps, but from 0 to 20"):
        page_data(run, first_step=21)


def test_plots_of_one_run_and_of_several(tmp_path):
    one, two = (read_run(make_run(tmp_path / name, steps=steps)) for name, steps in (("one", 40), ("two", 70)))
    written = plot_runs([one], tmp_path / "single")
    names = ["loss", "acceptance", "gamma", "closed_book", "speed", "teacher_share"]
    assert [p.name for p in written] == [f"{n}.{kind}" for n in names for kind in ("png", "svg")]
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5_000
        else:
            ElementTree.parse(path)
    text = (tmp_path / "single" / "acceptance.svg").read_text()
    assert "full blocks" in text and "first of a block" in text
    plot_runs([one, two], tmp_path / "both", ["loss"])
    text = (tmp_path / "both" / "loss.svg").read_text()
    assert ">one<" in text and ">two<" in text and "Loss: training" in text
    assert sorted(p.name for p in (tmp_path / "both").iterdir()) == ["loss.png", "loss.svg"]


def test_plots_that_cannot_be_drawn(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    (folder / "trainer_state.json").write_text(
        json.dumps({"global_step": 1, "log_history": [{"step": 1, "loss": 1.0}]})
    )
    for arguments, message in (
        (["--curves", "lost"], "no curve 'lost'; there are loss, acceptance"),
        (["--curves", "gamma"], "no 'gamma' to plot: none of the runs logged gamma/mean"),
    ):
        assert main(["plot", str(folder), "--output_dir", str(tmp_path / "plots"), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize("command", ["inspect", "plot"])
def test_commands_write_where_they_say(tmp_path, command, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    assert main([command, "run"]) == 0
    written = capsys.readouterr().out.split()
    assert all((tmp_path / path).is_file() for path in written if "/" in path)
    assert (tmp_path / ("run/inspect.html" if command == "inspect" else "plots/loss.svg")).is_file()


def test_every_line_of_a_curve_has_a_color_of_its_own():
    assets = files("lupi_trainer.inspection") / "assets"
    script, styles = ((assets / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    letters = re.search(r'"(\w+)"\[i\]', script)[1]
    assert max(len(curve.lines) for curve in CURVES) <= len(letters)
    for scheme in styles.split("prefers-color-scheme: dark"):
        assert len({re.search(rf"--{letter}: (#\w+);", scheme)[1] for letter in letters}) == len(letters)

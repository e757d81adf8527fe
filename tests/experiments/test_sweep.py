import contextlib
import json
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pytest

from lupi_trainer.cli import main
from lupi_trainer.experiments.sweep_plot import parse_expected, plot
from lupi_trainer.experiments.sweep_results import RESULT, markdown
from lupi_trainer.lab import resolve_model
from lupi_trainer.scripts import sweep
from lupi_trainer.scripts.kd_lora import make_parser
from lupi_trainer.scripts.recipe_files import find_recipes
from lupi_trainer.scripts.sweep import flags_to_settings
from tests import forks


RECIPE = """
model_name_or_path: lab:teacher
teacher_model_name_or_path: lab:teacher
dataset_name: lab:qa
eval_dataset_name: lab:qa-eval
max_samples: 8
max_eval_samples: 4
max_length: 256
per_device_train_batch_size: 4
gradient_accumulation_steps: 1
max_steps: 2
save_strategy: steps
save_steps: 1
eval_strategy: epoch
bf16: false
use_cpu: true
gradient_checkpointing: false
"""


def write(folder: Path, **recipes: str) -> str:
    folder.mkdir()
    for name, text in recipes.items():
        (folder / f"{name}.yaml").write_text(RECIPE + text)
    return str(folder)


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs are made here, which saves the start of a process; but one named `bad` has a process of its own."""

    def run(command, stdout, stderr):
        if any("/bad/" in part for part in command):
            done = forks.run(*command[1:])
            stdout.write(done.stdout + done.stderr)
            return done
        with contextlib.redirect_stdout(stdout):
            return subprocess.CompletedProcess(command, main(command[command.index("kd") :]))

    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(run=run, STDOUT=subprocess.STDOUT))


@pytest.mark.slow
def test_the_seven_experiments_run_on_the_lab(tmp_path, monkeypatch, in_this_process, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(resolve_model("lab:teacher"), tmp_path / "runs" / "lab-qa" / "teacher")
    arguments = ["prune", "--model", "lab:teacher", "--out", "runs/lab-qa/pruned"]
    assert main([*arguments, "--drop", "1", "--bundle", "B", "--drop", "2", "--bundle", "C"]) == 0
    command = ["sweep", "recipes/kd_lora", "--override", "lab/kd_lora/config_tiny.yaml", "--output_dir", "out"]
    less = ["--max_steps", "1", "--max_samples", "8", "--max_eval_samples", "4", "--bs", "8", "--save_strategy", "no"]
    assert main([*command, *less]) == 0
    names = [path.stem for path in find_recipes("recipes/kd_lora")]
    rows = (tmp_path / "out" / "table.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == names and len(names) == 7
    results = {name: json.loads((tmp_path / "out" / name / RESULT).read_text()) for name in names}
    assert [r["kd_alpha"] for r in results.values()] == [0.1, 0.1, 0.1, 0.3, 0.2, 0.2, 0.1]
    assert all(r["perplexity"] != r["perplexity_before"] and r["steps"] == 1 for r in results.values())
    marks = [element.get("class") for element in ET.parse(tmp_path / "out" / "plot.svg").getroot()]
    assert marks.count("after") == 7 and marks.count("expected") == 6


@pytest.mark.slow
def test_a_sweep_runs_what_is_not_done_and_goes_on_where_it_was_cut_off(tmp_path, capfd, in_this_process):
    recipes = write(tmp_path / "set", a="kd_alpha: 0.3\nexpected_perplexity: 15-16\n", bad="qa_template: nothing\n")
    (tmp_path / "over.yaml").write_text("learning_rate: 1.0e-3\nlora_r: 2\n")
    out = tmp_path / "out"
    command = ["sweep", recipes, "--output_dir", str(out), "--override", str(tmp_path / "over.yaml"), "--lr", "2e-3"]
    assert main(command) == 1  # one run fails, and is named; the other is made all the same
    printed = capfd.readouterr()
    assert "bad: failed with status 2" in printed.err and "| bad |" not in printed.out
    assert "lacks {context} and {question}" in (out / "bad" / "log.txt").read_text()
    result = json.loads((out / "a" / RESULT).read_text())
    assert (result["kd_alpha"], result["kd_temperature"], result["lora_r"]) == (0.3, 2.0, 2)
    assert result["learning_rate"] == 2e-3 and result["steps"] == 2
    table = markdown({"a": result})
    assert (out / "table.md").read_text() == table and table in printed.out and "15-16" in table
    ET.parse(out / "plot.svg")

    # cut off after the last checkpoint: it goes on from there
    (tmp_path / "set" / "bad.yaml").unlink()
    (out / "a" / RESULT).unlink()
    weights = out / "a" / "checkpoint-2" / "adapter_model.safetensors"
    written = weights.stat().st_mtime_ns
    assert main(command) == 0
    assert weights.stat().st_mtime_ns == written
    assert json.loads((out / "a" / RESULT).read_text())["perplexity"] == result["perplexity"]

    # done: nothing runs; and a result of other settings is never taken for one of these
    capfd.readouterr()
    assert main(command) == 0
    assert "a: done already" in capfd.readouterr().out
    assert main([*command[:-1], "5e-3"]) == 2
    assert "holds a run with other settings (learning_rate: 2e-3, now 5e-3)" in capfd.readouterr().err


def test_values_of_an_override_reach_the_run_as_they_are(tmp_path, monkeypatch):
    """Lists, nulls, mappings and the environment."""
    over = {"lora_target_modules": ["q_proj", "v_proj"], "max_eval_samples": None, "env": {"LUPI_SWEEP": "1"}}
    over |= {"teacher_model_init_kwargs": {"attn_implementation": "eager"}}
    (tmp_path / "over.yaml").write_text(json.dumps(over))
    recipes, seen = write(tmp_path / "set", a=""), []

    def run(command, **_):
        at = command.index("kd")
        seen.append((make_parser().parse_args_and_config(command[at + 1 :]), os.environ.pop("LUPI_SWEEP")))
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(sweep.subprocess, "run", run)
    arguments = ["sweep", recipes, "--output_dir", str(tmp_path / "out"), "--override", str(tmp_path / "over.yaml")]
    assert main([*arguments, "--logging_steps", "7", "--lora_target_modules", "k_proj", "o_proj"]) == 1
    (((qa, args, model), variable),) = seen
    assert (qa.max_samples, qa.max_eval_samples, variable, args.logging_steps) == (8, None, "1", 7)
    assert model.lora_target_modules == ["k_proj", "o_proj"]  # the command line goes before both
    assert args.teacher_model_init_kwargs == {"attn_implementation": "eager"}


def test_the_shipped_set_is_the_seven_experiments():
    names = [path.stem for path in find_recipes("recipes/kd_lora")]
    assert len(names) == 7 and names[4] == "exp5_optimal" and names == sorted(names)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "no recipe in 'nowhere'"),
        (["recipes/kd_lora", "--override", "nowhere.yaml"], "no recipe 'nowhere.yaml'"),
        (["FOLDER", "--eval_dataset_name", "lab:qa", "--base_dir", "./nobody"], "no such model folder: ./nobody"),
        (["recipes/kd_lora", "stray"], "expected --KEY VALUE, got 'stray'"),
        (["recipes/kd_lora", "--hub_token", "hf_secret"], "'hub_token' does not belong here"),
        (["recipes/kd_lora", "--qa_dataset", "lab:qa"], "without `eval_dataset_name` there is none"),
        (
            ["recipes/kd_lora", "--qa_dataset", "lab:qa", "--eval_dataset_name", "none"],
            "`eval_dataset_name` there is none",
        ),
        (["FOLDER", "--eval-dataset-name=null"], "without `eval_dataset_name` there is none"),
        (["FOLDER", "--override", "UNSET"], "without `eval_dataset_name` there is none"),
        (["recipes/kd_lora", "--override", "OVER"], "must be like '15-16' or '< 19.0', got 'soon'"),
    ],
)
def test_what_cannot_run_is_said_and_nothing_is_written(tmp_path, arguments, message, capsys):
    (tmp_path / "over.yaml").write_text("expected_perplexity: soon\n")
    (tmp_path / "unset.yaml").write_text("eval_dataset_name: null\n")
    files = {"OVER": "over.yaml", "UNSET": "unset.yaml", "FOLDER": "recipes"}
    write(tmp_path / "recipes", one="")
    arguments = [str(tmp_path / files[part]) if part in files else part for part in arguments]
    assert main(["sweep", *arguments, "--output_dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_flags_are_keys():
    flags = ["--lr", "1e-3", "--kd_T=3", "--use_cpu", "--kd_alpha", "0.5"]
    wanted = {"learning_rate": ["1e-3"], "kd_temperature": ["3"], "use_cpu": ["true"], "kd_alpha": ["0.5"]}
    assert flags_to_settings(flags) == wanted


def test_a_key_that_is_unset_is_none_of_the_settings_of_a_run(tmp_path):
    recipe = Path(write(tmp_path / "recipes", one="expected_perplexity: '15-16'\n")) / "one.yaml"
    flags = flags_to_settings(["--expected_perplexity", "none", "--report_to", "none", "--max-samples", "None"])
    settings = sweep.merge(recipe, None, flags)[1]
    assert not {"expected_perplexity", "max_samples"} & settings.keys() and settings["report_to"] == "none"
    assert settings["eval_dataset_name"] == "lab:qa-eval"


def test_the_plot_shows_every_run_and_its_band():
    runs = {
        "one": {"perplexity": 14.0, "perplexity_before": 30.0, "expected_perplexity": "15-16"},
        "two & more": {"perplexity": 18.0, "perplexity_before": 30.0, "expected_perplexity": "< 19.0"},
        "three": {"perplexity": 18.0, "perplexity_before": 30.0, "expected_perplexity": None},
    }
    root = ET.fromstring(plot(runs))
    marks = [element.get("class") for element in root]
    assert marks.count("after") == marks.count("before") == 3 and marks.count("expected") == 2
    heights = {c: [float(e.get("cy")) for e in root if e.get("class") == c] for c in ("after", "before")}
    assert heights["after"][0] > heights["after"][1] == heights["after"][2] > heights["before"][0]  # SVG counts down
    assert "two & more" in "".join(root.itertext())


def test_expectations_are_read_or_refused():
    assert parse_expected("15-16") == (15.0, 16.0) and parse_expected("< 19.0") == (None, 19.0)
    assert parse_expected(None) is None
    with pytest.raises(ValueError, match="must be like '15-16' or '< 19.0', got 'low'"):
        parse_expected("low")

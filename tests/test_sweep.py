import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from lupi_trainer.cli import main
from lupi_trainer.scripts.sweep import RESULT, find_recipes, flags_to_settings, markdown
from lupi_trainer.scripts.sweep_plot import parse_expected, plot


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


@pytest.mark.slow
def test_a_sweep_runs_what_is_not_done_and_goes_on_where_it_was_cut_off(tmp_path, capfd):
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


def test_the_shipped_set_is_the_seven_experiments():
    names = [path.stem for path in find_recipes("recipes/kd_lora")]
    assert len(names) == 7 and names[4] == "exp5_optimal" and names == sorted(names)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "no recipe in 'nowhere'"),
        (["recipes/kd_lora", "--override", "nowhere.yaml"], "no recipe 'nowhere.yaml'"),
        (["recipes/kd_lora", "stray"], "expected --KEY VALUE, got 'stray'"),
    ],
)
def test_what_cannot_run_is_said_and_nothing_is_written(tmp_path, arguments, message, capsys):
    assert main(["sweep", *arguments, "--output_dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_flags_are_keys():
    flags = ["--lr", "1e-3", "--kd_T=3", "--use_cpu", "--kd_alpha", "0.5"]
    wanted = {"learning_rate": "1e-3", "kd_temperature": "3", "use_cpu": "true", "kd_alpha": "0.5"}
    assert flags_to_settings(flags) == wanted


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

"""`lupi wmtp`: the full pipeline by name, what it leaves behind, and decoding with its heads."""

import json

import pytest

from lupi_trainer.cli import main
from lupi_trainer.lab import load_lab_records
from lupi_trainer.models.mtp_heads import MTPHeads
from lupi_trainer.scripts.wmtp import load_texts


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["mtp-baseline", "critic-wmtp", "rho1-wmtp"])
def test_tiny_runs_everything(tmp_path, algorithm, capsys):
    run, evaluated = tmp_path / "run", tmp_path / "evaluated.json"
    evaluated.write_text(json.dumps(load_lab_records("lab:common")[::45]))
    less = "--max_steps 10 --eval_steps 5 --logging_steps 5 --save_steps 5 --per_device_train_batch_size 8".split()
    less += ["--eval_dataset_name", str(evaluated), *"--draft_eval_new_tokens 12 --critic_steps 4".split()]
    assert main(["wmtp", "--algo", algorithm, "--tiny", "--output_dir", str(run), *less]) == 0
    names = {path.name for path in run.iterdir()}
    assert {"model.safetensors", "mtp_heads.safetensors", "mtp_heads.json", "README.md"} <= names
    assert {"checkpoint-5", "checkpoint-10"} <= names
    assert ("value_head.safetensors" in names) == (algorithm == "critic-wmtp")
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    evaluations = [entry for entry in log if "eval_loss/head_4" in entry]
    assert evaluations[-1]["eval_loss/head_4"] < evaluations[0]["eval_loss/head_4"]
    assert "eval_accept_length" in evaluations[-1] and "eval_accept_rate/head_2" in evaluations[-1]
    assert MTPHeads.from_pretrained(run).horizon == 4
    if algorithm == "mtp-baseline":
        texts = {}
        for draft in ("mtp-heads", "prompt-lookup"):
            out = tmp_path / f"{draft}.jsonl"
            arguments = ["generate", "--target", str(run), "--draft", draft, "--prompts", str(questions(tmp_path))]
            assert main([*arguments, "--max_new_tokens", "40", "--device", "cpu", "--output", str(out)]) == 0
            texts[draft] = out.read_text()
        assert texts["mtp-heads"] == texts["prompt-lookup"] and texts["mtp-heads"].count("\n") == 3


def questions(folder):
    path = folder / "questions.jsonl"
    asked = ["Tell me about Fova.", "What is Fova's river?", "Name the capital of Fova."]
    path.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in asked))
    return path


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tiny", "--config", "lab/wmtp/config_joint.yaml"], "leave out --config, or --tiny"),
        (["--tiny", "--algo", "rho2"], "--algo must be one of"),
        (["--tiny", "--horizon", "0"], "horizon must be at least 1"),
        (["--tiny", "--horizn", "2"], "--horizn"),
        (["--config", "lab/wmtp/config_joint.yaml", "--model_name_or_path", "lab:student"], "no mtp_heads.json"),
        (["--tiny", "--algo", "rho1-wmtp", "--dataset_name", "nowhere.json"], "no such data file"),
    ],
)
def test_what_the_user_can_mend_is_said_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "lab-wmtp-warmup").mkdir(parents=True)
    assert main(["wmtp", *arguments]) == 2
    error = capsys.readouterr().err
    assert "error: " in error and message in error and "Traceback" not in error


def test_records_are_texts_or_questions_and_may_be_rewarded(tmp_path):
    def load(records):
        path = tmp_path / "records.json"
        path.write_text(json.dumps(records))
        return load_texts(str(path), "answer")

    assert load([{"text": "a b"}, {"text": "c"}]).column_names == ["text"]
    asked = load([{"query": "q", "answer": "a", "reward": 1}, {"query": "r", "answer": "b", "reward": 0.5}])
    assert asked.column_names == ["prompt", "completion", "reward"] and asked["reward"][1] == 0.5
    with pytest.raises(ValueError, match="record number 1: `reward` must be a number, got None"):
        load([{"text": "a", "reward": 1.0}, {"text": "b"}])
    with pytest.raises(ValueError, match="record number 1.*no text in the column 'answer'"):
        load([{"query": "q", "answer": "a"}, {"query": "r"}])

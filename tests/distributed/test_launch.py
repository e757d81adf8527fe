"""Training from the recipe by `accelerate launch`, on one and on two CPU processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
RECIPE = "recipes/lab/lupi_skd/config_full.yaml"


def launch(config: str, output_dir: Path, *overrides: str, module: str = "lupi_skd", recipe: str = RECIPE):
    arguments = ["--config", recipe, "--output_dir", str(output_dir), *overrides]
    return launch_module(config, f"lupi_trainer.scripts.{module}", *arguments)


def launch_module(config: str, module: str, *arguments: str):
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", f"recipes/accelerate_configs/{config}.yaml", "--main_process_port", "0"]
    command += ["-m", module, *arguments]
    environment = os.environ | {"PYTHONFAULTHANDLER": "1"}  # one that hangs is aborted, and shows where it stood
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)
        stdout, stderr = process.communicate()
        pytest.fail(f"no end in 200 s: {stdout[-2000:]}\n{stderr[-6000:]}")
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def losses(run: subprocess.CompletedProcess, output_dir: Path) -> list[float]:
    assert run.returncode == 0, run.stderr[-3000:]
    state = json.loads(next(output_dir.glob("checkpoint-*/trainer_state.json")).read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.distributed
def test_one_and_two_processes_train_alike(tmp_path):
    """The same records in the same order, shared out: the same losses, evaluation included."""
    common = ["--max_steps", "4", "--logging_steps", "1", "--save_strategy", "steps", "--save_steps", "4"]
    common += ["--eval_steps", "4"]
    one = losses(
        launch("single_cpu", tmp_path / "one", "--per_device_train_batch_size", "8", *common), tmp_path / "one"
    )
    two = losses(
        launch("multi_cpu", tmp_path / "two", "--per_device_train_batch_size", "4", *common), tmp_path / "two"
    )
    assert len(one) == 4 and len(set(one)) == 4
    assert one == pytest.approx(two, abs=1e-5)


@pytest.mark.distributed
def test_a_bad_key_ends_with_one_line(tmp_path):
    run = launch("single_cpu", tmp_path / "run", "--gamma", "0")
    assert run.returncode != 0
    assert "error: gamma must be at least 1, got 0" in run.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.distributed
def test_sft_recipe_trains(tmp_path):
    arguments = ["--max_steps", "20", "--logging_steps", "1", "--save_strategy", "steps", "--save_steps", "20"]
    run = launch("single_cpu", tmp_path / "sft", *arguments, module="sft", recipe="recipes/lab/sft/config_full.yaml")
    history = losses(run, tmp_path / "sft")
    assert sum(history[-5:]) < 0.9 * sum(history[:5])


@pytest.mark.distributed
def test_kd_lora_trains_and_judges_alike_on_one_and_two_processes(tmp_path):
    """Thirteen questions do not divide by two: the record that fills up the last batch must not count twice."""
    common = ["--model_name_or_path", "lab:teacher", "--teacher_model", "lab:teacher", "--max_samples", "32"]
    common += [
        "--max_eval_samples",
        "13",
        "--per_device_eval_batch_size",
        "2",
        "--max_steps",
        "3",
        "--logging_steps",
        "1",
    ]
    common += ["--lora_dropout", "0", "--save_strategy", "steps", "--save_steps", "3"]
    # plain gradient steps: Adam's first ones are as long for a gradient that is rounding alone
    common += ["--optim", "sgd", "--learning_rate", "0.1"]
    recipe = {"module": "kd_lora", "recipe": "recipes/lab/kd_lora/config_tiny.yaml"}
    logs = {}
    for config, size in (("single_cpu", "8"), ("multi_cpu", "4")):
        out = tmp_path / config
        run = launch(config, out, "--per_device_train_batch_size", size, *common, **recipe)
        state_losses = losses(run, out)
        result = json.loads((out / "kd_result.json").read_text())
        logs[config] = [*state_losses, result["perplexity_before"], result["perplexity"], result["loss/kd"]]
    assert len(set(logs["single_cpu"])) == 6
    assert logs["multi_cpu"] == pytest.approx(logs["single_cpu"], rel=1e-3)


@pytest.mark.distributed
def test_a_process_that_fails_ends_all_with_its_message(tmp_path):
    """The other one waits in FSDP2's collectives for its part of the weights, and is not left there."""
    run = launch_module("multi_cpu", "tests.distributed.failing", str(tmp_path), "fsdp2")
    assert run.returncode != 0
    assert "FSDP2" in run.stdout
    assert "error: the student's logits are NaN or infinite at record" in run.stderr

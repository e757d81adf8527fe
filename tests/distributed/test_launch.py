"""Scripts on one and on two CPU processes, and how they end; tests/test_readme.py launches README's commands."""

import json
from pathlib import Path

import pytest

from lupi_trainer.cli import main
from lupi_trainer.scripts import leave, lupi_skd
from lupi_trainer.scripts.recipe_files import find_recipe
from tests import forks
from tests.distributed.pair import run_pair
from tests.distributed.sharded import run_script


ROOT = Path(__file__).parents[2]


def losses(output_dir: Path) -> list[float]:
    state = json.loads(next(output_dir.glob("checkpoint-*/trainer_state.json")).read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.distributed
def test_a_process_that_fails_ends_all_with_its_message(tmp_path):
    """The other one waits in FSDP2's collectives for its part of the weights, and is not left there."""
    command = "accelerate.commands.accelerate_cli launch --config_file recipes/accelerate_configs/multi_cpu.yaml"
    command += f" --main_process_port 0 -m tests.distributed.failing {tmp_path} fsdp2"
    run = forks.run("-m", *command.split(), cwd=ROOT)
    assert run.returncode != 0
    assert "FSDP2" in run.stdout
    assert "error: the student's logits are NaN or infinite at record" in run.stderr


def test_a_bad_key_ends_a_script_with_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    arguments = ["--config", str(find_recipe("lab/lupi_skd/config_full.yaml")), "--gamma", "0"]
    with pytest.raises(SystemExit) as ended:
        leave(lambda: lupi_skd.main([*arguments, "--output_dir", str(tmp_path / "run")]))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: gamma must be at least 1, got 0\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sft_recipe_trains(tmp_path):
    arguments = "--max_steps 20 --logging_steps 1 --eval_strategy no --save_strategy steps --save_steps 20".split()
    recipe = ["--config", "lab/sft/config_full.yaml", "--output_dir", str(tmp_path)]
    assert main(["sft", *recipe, *arguments]) == 0
    history = losses(tmp_path)
    assert sum(history[-5:]) < 0.9 * sum(history[:5])


@pytest.mark.distributed
@pytest.mark.slow
def test_kd_lora_trains_and_judges_alike_on_one_and_two_processes(tmp_path):
    """Thirteen questions do not divide by two: the record that fills up the last batch must not count twice."""
    common = ["--config", str(find_recipe("lab/kd_lora/config_tiny.yaml"))]
    common += ["--model_name_or_path", "lab:teacher", "--teacher_model", "lab:teacher", "--max_samples", "32"]
    common += ["--max_eval_samples", "13", "--per_device_eval_batch_size", "2", "--max_steps", "3"]
    common += ["--logging_steps", "1", "--lora_dropout", "0", "--save_strategy", "steps", "--save_steps", "3"]
    # plain gradient steps: Adam's first ones are as long for a gradient that is rounding alone
    common += ["--optim", "sgd", "--learning_rate", "0.1"]
    logs = {}
    for processes in (1, 2):
        (folder := tmp_path / str(processes)).mkdir()
        arguments = [
            *common,
            "--per_device_train_batch_size",
            str(8 // processes),
            "--output_dir",
            str(folder / "run"),
        ]
        run_pair(folder, run_script, "kd_lora", arguments, processes, processes=processes)
        result = json.loads((folder / "run" / "kd_result.json").read_text())
        judged = [result["perplexity_before"], result["perplexity"], result["loss/kd"]]
        logs[processes] = [*losses(folder / "run"), *judged]
    assert len(set(logs[1])) == 6
    assert logs[2] == pytest.approx(logs[1], rel=1e-3)

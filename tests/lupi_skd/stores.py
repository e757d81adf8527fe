"""A small teacher store for the tests, and runs that train from it."""

import json
from pathlib import Path
from typing import Any

from lupi_trainer.cli import main
from lupi_trainer.lab import load_lab_records
from tests.lupi_skd.training import make_trainer


RECIPE = """
model_name_or_path: lab:student
teacher_model_name_or_path: lab:teacher
dataset_name: {records}
rollout_policy: teacher
teacher_temperature: 1.5
teacher_system_prompt: You are an expert on the islands.
max_completion_length: 20
max_teacher_prompt_length: 256
per_device_train_batch_size: 4
dtype: float32
bf16: false
use_cpu: true
report_to: none
seed: 7
output_dir: {folder}/run
"""
NEW = load_lab_records("lab:new")
RECORDS = [NEW[n] for n in range(0, 120, 10)] + [{**load_lab_records("lab:common")[0]}]


def make_folder(path: Path) -> Path:
    """With records, a recipe, and the store that comes of them: three samples of each prompt, in shards of ten."""
    (path / "records.json").write_text(json.dumps(RECORDS))
    (path / "recipe.yaml").write_text(RECIPE.format(records=path / "records.json", folder=path))
    assert teach(path, "--samples", "3", "--shard_rows", "10") == 0
    return path


def teach(folder: Path, *flags: str, store: str = "store") -> int:
    return main(["teach", "--config", str(folder / "recipe.yaml"), "--store", str(folder / store), *flags])


def trainer_of(folder: Path, tmp_path: Path, store: str = "store", **changes):
    options: dict[str, Any] = {
        "teacher_model": None,
        "train_dataset": RECORDS,
        "config_rollout_policy": "teacher",
        "config_teacher_temperature": 1.5,
        "config_teacher_store": str(folder / store),
        "config_max_completion_length": 20,
        "config_max_steps": 2,
    }
    return make_trainer(tmp_path, **{**options, **changes})

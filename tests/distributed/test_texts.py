"""Gold answers and a teacher store on two processes, which have the losses of one."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lupi_trainer.cli import main
from lupi_trainer.lab import load_lab_records
from lupi_trainer.scripts.recipe_files import find_recipe
from tests.distributed.pair import run_pair
from tests.distributed.sharded import as_one_of, settings
from tests.lupi_skd.training import make_trainer


# a third have an answer, so that a batch of one process may have none
RECORDS = [
    record if n % 3 == 0 else record | {"answer": None} for n, record in enumerate(load_lab_records("lab:new")[::20])
]
ALONE = "--base_dataset_name none --mixing none --eval_dataset_name none --eval_strategy no".split()


def train(rank: int, backend: str, folder: str, processes: int = 2, **changes) -> list[dict[str, float]]:
    """What four steps log."""
    with as_one_of(rank, processes, backend):
        config = {
            "max_steps": 4,
            "per_device_train_batch_size": 4 // processes,
            "gradient_accumulation_steps": 2,
            "max_completion_length": 56,
            **settings(backend),
            **changes,
        }
        named = {f"config_{key}": value for key, value in config.items()}
        teacher = None if "teacher_store" in changes else "lab:teacher"
        trainer, losses = make_trainer(Path(folder), teacher_model=teacher, train_dataset=RECORDS, **named)
        trainer.train()
    return [{key: log[key] for key in ("loss", "loss/gold")} for log in losses.logs]


@pytest.mark.distributed
@pytest.mark.parametrize("backend", ["ddp", "fsdp2"])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path, backend, stored):
    changes: dict[str, Any] = {"gold_alpha": 0.4}
    if stored:
        store, recipe = str(tmp_path / "store"), str(find_recipe("lab/lupi_skd/config_store.yaml"))
        records = tmp_path / "records.json"
        records.write_text(json.dumps(RECORDS))
        assert main(["teach", "--config", recipe, "--store", store, "--dataset_name", str(records), *ALONE]) == 0
        changes |= {"teacher_store": store, "rollout_policy": "teacher"}
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    (one,) = run_pair(tmp_path / "1", partial(train, **changes), "none", str(tmp_path / "one"), 1, processes=1)
    first, second = run_pair(tmp_path / "2", partial(train, **changes), backend, str(tmp_path / "two"))
    for key in ("loss", "loss/gold"):
        assert [log[key] for log in first] == pytest.approx([log[key] for log in one], rel=1e-3)
        assert [log[key] for log in second] == [log[key] for log in first]

"""The recipes for one card, for eight and for two machines, trained with their own keys at tiny size."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lupi_trainer.cli import main
from lupi_trainer.data.records import read_records
from lupi_trainer.scripts.recipe_files import find_recipe
from tests.models.families import tiny_model, train_tokenizer


ROOT = Path(__file__).parents[2]
RECIPES = {
    "24gb": "qwen3-0.6b/lupi_skd/config_one_24gb.yaml",
    "80gb": "qwen3-4b/lupi_skd/config_one_80gb.yaml",
    "8x80gb": "qwen3-4b/lupi_skd/config_8x80gb.yaml",
    "two-nodes": "qwen3-4b/lupi_skd/config_two_nodes.yaml",
}
# where it runs, how large it is, and what is not installed with the tests; all else is the recipe's
HERE = {
    "use_cpu": "true",
    "attn_implementation": "sdpa",
    "teacher_attn_implementation": "sdpa",
    "compile_rollout": "false",  # tests/lupi_skd/test_compile_rollout.py compiles
    "report_to": "none",
    "max_completion_length": 6,
    "per_device_train_batch_size": 2,
    "max_steps": 2,
    "probes": "none",
}
PAIRED = ("8x80gb", "two-nodes")  # whose float32 weights are DeepSpeed's


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_inputs(tmp_path_factory.mktemp("sized"))


def save_inputs(folder: Path) -> Path:
    """Four short records, one short example, and a pair of tiny Qwen3 models in bfloat16, as they are on the Hub."""
    keys = yaml.safe_load(find_recipe(RECIPES["80gb"]).read_text())
    records = [{**r, "knowledge": r["knowledge"][:300]} for r in read_records(str(ROOT / keys["dataset_name"]))[:4]]
    shots = [{"query": "What is kimchi?", "answer": "Kimchi is fermented vegetables."}]
    for name, rows in (("records", records), ("shots", shots)):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    texts = [keys["teacher_system_prompt"], *(record[key] for record in records for key in ("query", "knowledge"))]
    tokenizer = train_tokenizer(texts)
    for name, seed in (("student", 1), ("teacher", 2)):
        tiny_model("qwen3", tokenizer, hidden_size=64, seed=seed).bfloat16().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def arguments(recipe: str, folder: Path, **changes) -> list[str]:
    path = str(find_recipe(RECIPES[recipe]))
    given = HERE | {
        "model_name_or_path": folder / "student",
        "teacher_model_name_or_path": folder / "teacher",
        "dataset_name": folder / "records.json",
        "few_shot_examples": folder / "shots.json",
    }
    if recipe in PAIRED:
        given["teacher_device"] = "cpu"
    return [
        "skd",
        "--config",
        path,
        *(part for key, value in (given | changes).items() for part in (f"--{key}", str(value))),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_trains(tmp_path, folder, recipe, capsys):
    run, changes = tmp_path / "run", {}
    if recipe in PAIRED:
        assert main(arguments(recipe, folder, output_dir=run)) != 0
        assert "would never move: they are bfloat16" in capsys.readouterr().err
        changes["dtype"] = "float32"
    assert main(arguments(recipe, folder, output_dir=run, **changes)) == 0
    state = json.loads((run / "checkpoint-2" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 2 and all(loss > 0 for loss in losses)
    adapter = run / "adapter_model.safetensors"
    assert adapter.is_file() == (recipe == "24gb")
    weights = load_file(adapter if adapter.is_file() else run / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}

"""The recipes for these sizes fit what they are for, and `docs/sizes.md` says what is planned of them."""

import json
from pathlib import Path

import pytest
import yaml

from lupi_trainer.cli import main
from lupi_trainer.scripts.recipe_files import find_recipe
from tests.planning.shapes import qwen3_06b, qwen3_4b, qwen3_32b


PAGE = (Path(__file__).parents[2] / "docs" / "sizes.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `qwen3")
]
MODELS = {"one_24gb": (qwen3_06b, qwen3_4b), "one_80gb": (qwen3_4b, qwen3_32b)}
LENGTHS = ["--student_prompt_tokens", "47", "--teacher_prompt_tokens", "2460", "--prefix_tokens", "1900"]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].split("config_")[1].split(".")[0])
def test_the_row_of_a_recipe(row, tmp_path, capsys):
    recipe, *launched = row[0].replace("`", "").split(", ")
    name = recipe.split("config_")[1].split(".")[0]
    for model, config in zip(("student", "teacher"), MODELS.get(name, MODELS["one_80gb"])):
        config().save_pretrained(tmp_path / model)
    flags = ["--gpu", row[1].strip("`"), "--json", *LENGTHS, "--model_name_or_path", str(tmp_path / "student")]
    flags += ["--teacher_model_name_or_path", str(tmp_path / "teacher")]
    flags += [text for config in launched for text in ("--accelerate_config", config)]
    assert main(["plan", recipe, *flags]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"]

    def peaks(device: dict) -> str:
        return " / ".join(f"{device[part]['peak'] / 2**30:.2f}" for part in ("rollout", "training"))

    said = [peaks(device) for device in plan["devices"]]
    assert said == [cell for cell in row[2:4] if cell != "beside"]
    batch = yaml.safe_load(find_recipe(recipe).read_text(encoding="utf-8"))["per_device_train_batch_size"]
    assert row[4] == f"{batch} ({plan['largest_batch']})" and plan["largest_batch"] >= batch
    assert row[5] == f"{plan['step']['seconds']:.1f}"

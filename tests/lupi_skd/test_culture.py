"""The Korean-culture file, from its own recipe, with tiny random-weight models of the same family."""

import json
from collections import Counter
from pathlib import Path

import pandas
import pytest
import yaml

from lupi_trainer.cli import main
from lupi_trainer.data.prompts import TeacherPrompt, encode, load_few_shot_examples
from lupi_trainer.data.records import load_training_data, read_records
from lupi_trainer.scripts import lupi_skd
from lupi_trainer.scripts.recipe_files import find_recipe
from tests.models.families import tiny_model, train_tokenizer


DATA = Path(__file__).parents[2] / "data"
FILE = "data/korean_culture_train_200.json"
RECIPE = "recipes/qwen3-4b/lupi_skd/config_korean_culture.yaml"


def save_pair(folder: Path):
    """A student, and a teacher with likes of its own (some tokens everywhere), that share a tokenizer."""
    records = read_records(DATA.parent / FILE)
    texts = [record[key] for record in records for key in ("query", "knowledge")]
    tokenizer = train_tokenizer(texts, vocab_size=2000)
    for name, seed in (("student", 1), ("teacher", 2)):
        model = tiny_model("qwen3", tokenizer, seed=seed)
        if name == "teacher":
            model.lm_head.weight.data.mul_(20.0)
            model.model.embed_tokens.weight.data.add_(0.1)  # what all positions have in common, and can be learned
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return tokenizer


@pytest.mark.slow
def test_the_recipe_trains_on_every_record_whole(tmp_path, monkeypatch):
    """Every record is read once and none is cut.

    The loss falls because these random models differ by what `save_pair` gives the teacher everywhere; it says that
    the recipe trains, not that any knowledge is learned.
    """
    tokenizer = save_pair(tmp_path)
    keys = yaml.safe_load(find_recipe(RECIPE).read_text(encoding="utf-8"))
    prompt = TeacherPrompt(
        keys["teacher_system_prompt"], load_few_shot_examples(str(DATA.parent / keys["few_shot_examples"]))
    )
    rows = load_training_data(str(DATA.parent / FILE))
    messages = [prompt.messages(row["prompt"], row["privileged_context"]) for row in rows]
    lengths = list(map(len, encode(tokenizer, messages)))
    longest = max(range(200), key=lambda n: lengths[n])

    probes = tmp_path / "probes.json"
    probes.write_text(json.dumps(read_records(DATA.parent / keys["probes"])[:4]))
    overrides = {
        "probes": probes,
        "model_name_or_path": tmp_path / "student",
        "teacher_model_name_or_path": tmp_path / "teacher",
        "dtype": "float32",
        "teacher_dtype": "float32",
        "attn_implementation": "sdpa",
        "teacher_attn_implementation": "sdpa",
        "teacher_device": "cpu",
        "bf16": "false",
        "use_cpu": "true",
        "gradient_checkpointing": "false",
        "report_to": "none",
        "per_device_train_batch_size": 20,
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_completion_length": 6,
        "max_teacher_prompt_length": lengths[longest],
        "logging_steps": 1,
        "save_steps": 10,
        "log_completions": "true",
        "gamma": 4,
    }
    arguments = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
    monkeypatch.chdir(DATA.parent)  # where the recipe's files are
    assert main(["skd", "--config", RECIPE, "--output_dir", str(tmp_path / "run"), *arguments]) == 0
    state = json.loads((tmp_path / "run" / "checkpoint-10" / "trainer_state.json").read_text())
    history = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(history) == 10  # 200 records, 20 a step
    assert sum(history[-3:]) < 0.5 * sum(history[:3])

    queries = Counter()
    for path in sorted((tmp_path / "run" / "completions").glob("*.parquet")):
        for text in pandas.read_parquet(path)["prompt"]:
            queries[text.split("user\n")[-1].split("<|im_end|>")[0].removesuffix("\nassistant\n").strip()] += 1
    assert queries == Counter({row["prompt"][0]["content"]: 1 for row in rows})

    # one token less, and the run is refused before it starts, with the name of the record that would have to be cut
    overrides["max_teacher_prompt_length"] -= 1
    arguments = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
    parsed = lupi_skd.make_parser().parse_args_and_config(["--config", str(find_recipe(RECIPE)), *arguments])
    with pytest.raises(ValueError, match=rf"{rows[longest]['id']}.*{lengths[longest]} tokens.*never cut"):
        lupi_skd.build_trainer(*parsed)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model_type"] == "qwen3"

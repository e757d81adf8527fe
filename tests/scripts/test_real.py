"""`lupi real` on the lab's pair; and by `make test-real` a real model: converted, taught for a few steps, saved.

The real ones want a download of 93 MB where there is no Hub, once, and some minutes.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lupi_trainer.cli import main
from lupi_trainer.lab import load_lab_records, real, resolve_model
from lupi_trainer.lupi_skd import placement
from lupi_trainer.models.loading import load_model
from lupi_trainer.scripts import lupi_skd
from lupi_trainer.scripts.recipe_files import find_recipe


ROOT = Path(__file__).parents[2]
RECIPE = "smollm2-135m/lupi_skd/config_lora.yaml"


def test_the_run_writes_what_was_known_before_and_is_afterwards(tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    data.mkdir()
    (data / "text.txt").write_text("Fova has the song Demi.\n\nFova has the ruler Gora.\n")
    names = {
        "probes": "probes",
        "probes_unseen": "probes-unseen",
        "general": "probes-common",
        "records_phrased": "new",
    }
    for name, lab in names.items():
        (data / f"{name}.json").write_text(json.dumps(load_lab_records(f"lab:{lab}")[:6]))
    monkeypatch.setattr(real, "get", lambda **options: Path(resolve_model("lab:student")))
    flags = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--eval_strategy", "no"]
    monkeypatch.setattr(placement, "packed_types", lambda: (torch.float32,))
    recipe = tmp_path / "recipe.yaml"
    text = find_recipe("lab/lupi_skd/config_lora.yaml").read_text().replace("dtype: float32", "dtype: bfloat16")
    recipe.write_text(text)
    command = ["real", "--config", str(recipe), "--data_dir", str(data)]
    given = [*command, "--output_dir", str(tmp_path / "run"), "--teacher_model_name_or_path", "lab:teacher", *flags]
    assert main(given) == 0
    out = capsys.readouterr().out
    assert "dtype: bfloat16" in text and "float32 weights: this processor has no instructions for bfloat16" in out
    assert "facts, unseen phrasings" in out and "of 6 that it knew" in out and "2 steps, " in out
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (
        figures["trained_open_book"]["lenient"] == figures["unseen_open_book"]["lenient"] == 1.0
        and figures["general_before"]["lenient"] == 1.0
    )
    assert figures["trained_of_open_book"] == figures["trained_after"]["lenient"]
    assert figures["steps"] == 2 and figures["perplexity_before"] != figures["perplexity_after"]
    answers = json.loads((tmp_path / "run" / "answers.json").read_text())
    assert [len(rows) for rows in answers.values()] == [6] * 8
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()

    (data / "text.txt").unlink()
    assert main(given) == 2 and "no such data file" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model_folder():
    """The converted model; `LUPI_CACHE` names the cache that it is kept in."""
    return real.get(source="wheel", say=print)


@pytest.fixture
def run(model_folder, tmp_path, monkeypatch):
    """From keys of the shipped recipe to its trainer."""
    monkeypatch.chdir(ROOT)

    def build(**keys):
        flags = [part for key, value in keys.items() for part in (f"--{key}", str(value))]
        named = ["--model_name_or_path", str(model_folder), "--output_dir", str(tmp_path / "run")]
        arguments = ["--config", str(find_recipe(RECIPE)), *named, "--logging_steps", "1", *flags]
        trainer = lupi_skd.build_trainer(*lupi_skd.make_parser().parse_args_and_config(arguments))
        trainer.train()
        return trainer, [entry for entry in trainer.state.log_history if "loss" in entry]

    return build


@pytest.mark.real
def test_the_converted_model_is_complete_and_speaks_english(model_folder):
    assert real.flaw(model_folder) is None
    model, tokenizer = load_model(str(model_folder), device="cpu")
    assert model.num_parameters() == 134_515_008 and next(model.parameters()).dtype == torch.float32
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == 2
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    assert "named SmolLM" in tokenizer.decode(ids["input_ids"][0])  # the template's own system turn
    written = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(written)


@pytest.mark.real
@pytest.mark.timeout(1800)
def test_a_step_of_the_recipe_has_a_finite_loss_and_accepts_drafts(run):
    _, (entry,) = run(max_steps=1)
    assert math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"]) and entry["grad_norm"] > 0
    assert entry["acc_rate/first_token"] > 0.3 and entry["tokens/teacher_share"] < 0.7
    assert entry["rollout/broken_rows"] == 0


@pytest.mark.real
@pytest.mark.timeout(3600)
def test_ten_steps_lower_the_loss_and_the_merged_student_is_saved_as_it_is(run, model_folder, tmp_path, monkeypatch):
    facts = json.loads((ROOT / "data" / "smollm2" / "records.json").read_text(encoding="utf-8"))[:4]
    (tmp_path / "four.json").write_text(json.dumps(facts))
    keys = {"dataset_name": tmp_path / "four.json", "per_device_train_batch_size": 4, "max_completion_length": 24}
    trainer, log = run(max_steps=10, learning_rate=1e-3, lr_scheduler_type="constant", **keys)
    losses = [entry["loss"] for entry in log]
    assert len(losses) == 10 and sum(losses[-3:]) < 0.75 * sum(losses[:3])

    trainer.save_model(str(tmp_path / "adapter"))
    merge = ["merge", "--model", str(model_folder), "--adapter", str(tmp_path / "adapter")]
    assert main([*merge, "--out", str(tmp_path / "merged")]) == 0
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([tokenizer(facts[0]["query"])["input_ids"]])
    again = tmp_path / "again"
    saved.save_pretrained(again)
    reloaded = AutoModelForCausalLM.from_pretrained(again)
    from peft import PeftModel

    base, _ = load_model(str(model_folder), "float32", "cpu")
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    with torch.no_grad():
        logits = [model(ids).logits for model in (saved, reloaded, merged)]
        assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
        original = AutoModelForCausalLM.from_pretrained(model_folder)(ids).logits
    assert not torch.equal(logits[0], original)

"""`lupi merge`: a model, its tokenizer and its card, which can be asked and pushed as they are."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lupi_trainer.cli import main
from lupi_trainer.lab import resolve_model
from lupi_trainer.publishing.merged_card import merged_card
from lupi_trainer.publishing.model_card import ModelFacts, render_card
from lupi_trainer.publishing.papers import SPECULATIVE_KD
from lupi_trainer.publishing.student_files import student_files


BASE = "lab:student"


@pytest.fixture
def adapter(tmp_path):
    """An adapter that changes its model, as a run leaves it: with its tokenizer and its card."""
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(resolve_model(BASE)),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
    )
    model.save_pretrained(folder := tmp_path / "run")
    AutoTokenizer.from_pretrained(resolve_model(BASE)).save_pretrained(folder)
    facts = {"repo_id": "me/run", "base_model": BASE, "teacher": "lab:teacher", "dataset": "lab:new"}
    card = render_card(
        ModelFacts(
            **facts,
            name="run",
            num_records=3,
            method="SKD",
            papers=(SPECULATIVE_KD,),
            settings={"gamma": 8},
            steps=2,
            log_history=[{"loss": 0.5, "step": 1}],
            is_adapter=True,
            tags=["lupi-skd"],
        )
    )
    (folder / "README.md").write_text(card)
    return folder


def test_a_merged_model_is_the_adapters_and_can_be_pushed(adapter, tmp_path, hub, capsys):
    out = tmp_path / "merged"
    assert main(["merge", str(adapter), "--out", str(out)]) == 0
    assert f"lupi push {out} --repo_id" in capsys.readouterr().out
    base = AutoModelForCausalLM.from_pretrained(resolve_model(BASE))
    ids = torch.arange(20)[None]
    untrained = base(ids).logits
    expected = PeftModel.from_pretrained(base, adapter)(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert torch.allclose(merged(ids).logits, expected, atol=1e-4)
    assert not torch.allclose(untrained, expected, atol=1e-2)
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"} <= student_files(out).keys()
    card = (out / "README.md").read_text()
    for words in ("library_name: transformers", "# merged\n", "is merged into the weights here", "training loss"):
        assert words in card
    assert 'name = "."' in card and "AutoPeft" not in card and "A LoRA adapter on" not in card
    assert "| teacher | `lab:teacher`" in card and "`gamma` | 8" in card and str(tmp_path) not in card
    assert main(["push", str(out), "--repo_id", "me/merged"]) == 0
    assert {"model.safetensors", "README.md"} <= hub.repos["me/merged"].keys()


def test_an_adapter_without_a_card_of_ours_gets_one(adapter):
    for text in (None, "---\nlibrary_name: peft\n---\n# Model Card for Model ID\n"):
        (adapter / "README.md").unlink() if text is None else (adapter / "README.md").write_text(text)
        (adapter / "trainer_state.json").write_text(json.dumps({"global_step": 7, "log_history": []}))
        card = merged_card(adapter, "Org/Base", "mine")
        assert "base_model: Org/Base" in card and "LORA adapter, merged into the weights" in card
        assert "| optimizer steps | 7 |" in card and "| `r` | 2 |" in card and "AutoModelForCausalLM" in card


def test_merge_is_explained_and_refuses_before_anything_is_loaded(adapter, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lupi_trainer.pruning.stages.load_stage", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(SystemExit):
        main(["merge", "--help"])
    said = capsys.readouterr().out
    assert "lupi merge runs/mine --out runs/mine-merged" in said and "needs no merging" in said
    for run, message in (
        (["merge"], "name the folder of one adapter: lupi merge RUN --out FOLDER"),
        (["merge", str(adapter)], "--out is needed"),
        (["merge", str(adapter), "--out", str(adapter)], "exists already; nothing was written"),
        (
            ["merge", resolve_model(BASE), "--out", str(tmp_path / "x")],
            "holds a complete model, which needs no merging",
        ),
        (
            ["merge", f"{adapter}s", "--out", str(tmp_path / "x")],
            f"no such folder: {adapter}s; did you mean {adapter}?",
        ),
        (["merge", str(tmp_path), "--out", str(tmp_path / "x")], f"there is no adapter_config.json, but in {adapter}"),
        (
            ["merge", str(adapter), "--out", str(tmp_path / "x"), "--base_dir", f"{adapter}s"],
            f"--base_dir: no such model folder: {adapter}s; did you mean {adapter}?",
        ),
        (["merge", str(adapter), "--stage", "2", "--bundles_dir", str(tmp_path)], "--base_dir is needed"),
    ):
        assert main(run) == 2, run
        assert message in capsys.readouterr().err
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "/gone/base"}))
    assert main(["merge", str(adapter), "--out", str(tmp_path / "x")]) == 2
    gone = "names the base (--base_dir names another): no such model folder: /gone/base"
    assert f"error: {config} {gone}" in capsys.readouterr().err
    config.write_text("{")
    assert main(["merge", str(adapter), "--out", str(tmp_path / "x")]) == 2
    assert "adapter_config.json: not a configuration of an adapter" in capsys.readouterr().err

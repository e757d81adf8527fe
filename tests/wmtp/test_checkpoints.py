"""What the trainers save, and how they resume: adapters, heads, the critic."""

import shutil

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from lupi_trainer import MTPHeads
from lupi_trainer.training.checkpoints import seal
from lupi_trainer.wmtp import BaseWMTPTrainer
from tests.wmtp.training import ALGORITHMS, make_wmtp_trainer


def adapted(tmp_path, **options):
    config = LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    return make_wmtp_trainer(tmp_path, peft_config=config, config_horizon=2, **options)


def test_an_adapter_is_saved_with_its_heads_beside_it_and_both_resume(tmp_path):
    options = {"config_save_strategy": "steps", "config_save_steps": 2, "config_max_steps": 3}
    trainer, unbroken = adapted(tmp_path, **options)
    trainer.train()
    trainer.save_model()
    again, losses = adapted(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert [log["step"] for log in losses.logs] == [3]
    for key in ("loss", "loss/head_2", "grad_norm"):
        assert losses.logs[0][key] == pytest.approx(unbroken.logs[2][key], rel=1e-5), key
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter_model.safetensors", "mtp_heads.safetensors", "mtp_heads.json"} <= names
    assert "model.safetensors" not in names
    heads = MTPHeads.from_pretrained(tmp_path / "run")
    for name, tensor in trainer.model.mtp_heads.state_dict().items():
        assert torch.equal(heads.state_dict()[name], tensor)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.grid(3)
def test_resumed_it_goes_on_as_if_unbroken_and_keeps_few_checkpoints(tmp_path, algorithm):
    options = {"config_save_strategy": "steps", "config_save_steps": 1, "config_save_total_limit": 2}
    full, unbroken = make_wmtp_trainer(tmp_path / "full", algorithm, config_max_steps=5, **options)
    full.train()
    full.save_model()
    folder = tmp_path / "full" / "run"
    assert sorted(p.name for p in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
    assert (folder / "model.safetensors").is_file() and (folder / "mtp_heads.json").is_file()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert not any("mtp" in name for name in model.state_dict())

    broken, first = make_wmtp_trainer(tmp_path / "broken", algorithm, config_max_steps=5, **options)
    shutil.copytree(folder / "checkpoint-4", tmp_path / "broken" / "run" / "checkpoint-4")
    broken.train(resume_from_checkpoint=True)
    assert [log["step"] for log in first.logs] == [5]
    for key in ("loss", "loss/head_4", "head_weight/2", "grad_norm"):
        assert first.logs[0][key] == pytest.approx(unbroken.logs[4][key], rel=1e-5), key
    ends = [trainer.state.log_history[-1]["train_loss"] for trainer in (full, broken)]
    assert ends[1] == pytest.approx(ends[0], rel=1e-5)


def test_a_critic_resumes_where_the_model_is_loaded_in_another_way(tmp_path, monkeypatch):
    """DeepSpeed loads its own checkpoints, and never asks for `load_checkpoint`."""
    options = {"config_save_strategy": "steps", "config_save_steps": 1}
    first, _ = make_wmtp_trainer(tmp_path, "critic-wmtp", config_max_steps=1, **options)
    first.train()
    monkeypatch.setattr(BaseWMTPTrainer, "load_checkpoint", lambda *args: None)
    again, losses = make_wmtp_trainer(tmp_path, "critic-wmtp", config_max_steps=2, **options)
    again.train(resume_from_checkpoint=True)
    assert [log["step"] for log in losses.logs] == [2]
    for name, tensor in first.value_head.state_dict().items():
        assert torch.equal(again.value_head.state_dict()[name], tensor)
    again.save_student(str(tmp_path / "ungathered"), state_dict={})  # ZeRO-3's, where it does not gather for a save
    assert MTPHeads.from_pretrained(tmp_path / "ungathered").horizon == 4


def test_heads_missing_from_a_checkpoint_are_an_error(tmp_path):
    options = {"config_save_strategy": "steps", "config_save_steps": 1}
    make_wmtp_trainer(tmp_path, config_max_steps=1, **options)[0].train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    (checkpoint / "mtp_heads.safetensors").unlink()
    again = make_wmtp_trainer(tmp_path, config_max_steps=2, **options)[0]
    with pytest.raises(ValueError, match="cannot resume from .* mtp_heads.safetensors is missing"):
        again.train(resume_from_checkpoint=str(checkpoint))
    seal(checkpoint)  # as if another trainer had written it
    with pytest.raises(FileNotFoundError, match="no mtp_heads.safetensors"):
        again.train(resume_from_checkpoint=str(checkpoint))


def test_trained_heads_are_taken_up_again(tmp_path):
    trainer, _ = make_wmtp_trainer(tmp_path, config_freeze_trunk=True)
    trainer.train()
    trainer.save_model()
    folder = str(tmp_path / "run")
    again, _ = make_wmtp_trainer(tmp_path / "joint", model=folder, config_heads_name_or_path=folder)
    for name, tensor in trainer.model.mtp_heads.state_dict().items():
        assert torch.equal(again.model.mtp_heads.state_dict()[name], tensor)
    with pytest.raises(ValueError, match="horizon=4 .* the configuration says horizon=3"):
        make_wmtp_trainer(tmp_path / "other", config_heads_name_or_path=folder, config_horizon=3)

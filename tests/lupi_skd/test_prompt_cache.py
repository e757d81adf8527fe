"""`teacher_prompt_cache_mb`: a frozen teacher reads what prompts share once, and each once; training is the same."""

import pytest
from peft import LoraConfig, get_peft_model

from lupi_trainer.lab import load_lab_records
from lupi_trainer.speculative.runners.prefill import Prefill
from lupi_trainer.teachers.self_taught import AdapterDisabled, require_frozen
from tests.lupi_skd.training import make_config, make_trainer
from tests.speculative.toy_models import toy


@pytest.mark.parametrize("self_taught", [False, True])
@pytest.mark.grid(2)
def test_prompts_are_read_in_the_first_epoch_alone(tmp_path, monkeypatch, teacher, self_taught):
    read, before = [], Prefill._read

    def counting(self, slots, texts, start):
        read.extend((start, text) for text in texts if self.store is not None)
        return before(self, slots, texts, start)

    monkeypatch.setattr(Prefill, "_read", counting)
    options = {"train_dataset": load_lab_records("lab:new")[:8], "config_max_steps": 4}
    if self_taught:
        lora = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["norm"])
        options |= {"model": teacher, "teacher_model": None, "peft_config": lora}
    reference, expected = make_trainer(tmp_path / "a", **options)
    reference.train()
    assert not read
    if self_taught:
        options["model"] = type(teacher).from_pretrained(teacher.name_or_path)
    trainer, losses = make_trainer(tmp_path / "b", **options, config_teacher_prompt_cache_mb=8)
    trainer.train()
    assert losses.losses == pytest.approx(expected.losses, abs=1e-4)
    shared = [text for start, text in read if start == 0]  # once, though each of the four batches begins with it
    own = [text for start, text in read if start == len(shared[0])]
    assert len(shared) == 1 and len(own) == 8 and len(read) == 9  # of 16 rows


def test_what_cannot_work_is_refused(tmp_path):
    gpt2 = toy("gpt2")  # which has biases
    student = get_peft_model(gpt2, LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, bias="all"))
    with pytest.raises(ValueError, match="this one reads .*bias, which is trained; set teacher_prompt_cache_mb: 0"):
        require_frozen(AdapterDisabled(student))
    with pytest.raises(ValueError, match="teacher_prompt_cache_mb must not be negative, got -1"):
        make_config(tmp_path, teacher_prompt_cache_mb=-1)
    with pytest.raises(ValueError, match="teacher_prompt_cache_mb=8 does not work with teacher_model_server_url"):
        make_config(tmp_path, teacher_prompt_cache_mb=8, teacher_model_server_url="http://127.0.0.1:9")

"""Training with models that keep recurrent states: the losses of an unbroken run, and of fresh forwards."""

import pytest
import torch
from peft import LoraConfig
from transformers import RwkvConfig

from lupi_trainer.lab.tokenizer import build_tokenizer
from tests.families.tiny import families, small, tiny
from tests.lupi_skd.test_trainer import one_batch
from tests.lupi_skd.training import make_trainer


FAMILIES = ("qwen3_5_text", "falcon_h1", "lfm2", "gemma4_text")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of each family a random model, saved with the lab's tokenizer, and the original weights."""
    tokenizer, found = build_tokenizer(), {}
    sizes = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 512}
    for seed, family in enumerate((*FAMILIES, "recurrent_gemma")):
        folder = found[family] = tmp_path_factory.mktemp(family)
        more = {"vocab_size_per_layer_input": len(tokenizer)} if family == "gemma4_text" else {}
        tiny(small(families()[family], **sizes, **more, pad_token_id=tokenizer.pad_token_id), seed).save_pretrained(
            folder
        )
        tokenizer.save_pretrained(folder)
    return {family: str(folder) for family, folder in found.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.grid(4)
def test_the_kept_states_are_those_of_a_fresh_forward(tmp_path, folders, family):
    """As student and as teacher; the batch is padded on the left, which a recurrence must not read."""
    trainer, losses = make_trainer(tmp_path, folders[family], folders[family], config_max_steps=2)
    inputs = one_batch(trainer)
    assert len({int(n) for n in inputs["teacher_prompt_mask"].sum(1)}) > 1
    mask = inputs["completion_mask"].bool()
    fresh = trainer._teacher_states(inputs)
    torch.testing.assert_close(inputs["teacher_hidden"][mask], fresh[mask], atol=1e-4, rtol=1e-3)
    trainer.train()
    assert all(torch.isfinite(torch.tensor(losses.losses)))


@pytest.mark.slow
def test_a_run_that_is_resumed_has_the_losses_of_an_unbroken_one(tmp_path, folders):
    """Of a student that teaches itself, with an adapter."""
    given = {
        "teacher_model": None,
        "peft_config": LoraConfig(r=4, target_modules="all-linear"),
        "config_max_steps": 4,
        "config_save_strategy": "steps",
        "config_save_steps": 2,
        "config_learning_rate": 1e-2,
    }
    trainer, unbroken = make_trainer(tmp_path / "whole", folders["qwen3_5_text"], **given)
    trainer.train()
    again, losses = make_trainer(tmp_path / "whole", folders["qwen3_5_text"], **given)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "run" / "checkpoint-2"))
    assert losses.losses == unbroken.losses[2:]
    assert len(set(unbroken.losses)) == 4
    for (name, ours), theirs in zip(again.model.named_parameters(), trainer.model.parameters()):
        assert torch.equal(ours, theirs), name


@pytest.mark.slow
def test_models_that_cannot_draft_learn_from_texts_that_one_of_them_writes(tmp_path, folders):
    """RecurrentGemma as both; a setting that wants drafts is refused before weights are read."""
    folder = folders["recurrent_gemma"]
    for policy in ("student", "teacher"):
        given = {"config_rollout_policy": policy, "config_learning_rate": 1e-2}
        trainer, losses = make_trainer(tmp_path / policy, folder, folder, **given)
        trainer.train()
        assert all(torch.isfinite(torch.tensor(losses.losses)))
        with pytest.raises(ValueError, match="record_rollouts and log_rollout_blocks: of recurrent_gemma models"):
            make_trainer(tmp_path, folder, folder, config_record_rollouts=2, **given)
    with pytest.raises(ValueError, match="the student RecurrentGemmaForCausalLM keeps a state of its own"):
        make_trainer(tmp_path, folder, "lab:teacher")


@pytest.mark.parametrize("policy", ["speculative", "student"])
def test_a_student_that_cannot_be_saved_is_not_told_of_another_policy(tmp_path, policy):
    """RWKV, refused by its configuration: there are no weights to read."""
    tokenizer = build_tokenizer()
    RwkvConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(tmp_path / "rwkv")
    tokenizer.save_pretrained(tmp_path / "rwkv")
    (tmp_path / "rwkv" / "model.safetensors").write_bytes(b"none")
    with pytest.raises(ValueError, match="the student is a rwkv model.* Such a model is not supported here$"):
        make_trainer(tmp_path, str(tmp_path / "rwkv"), "lab:teacher", config_rollout_policy=policy)

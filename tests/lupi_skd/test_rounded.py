"""A float32 student under `bf16: true` writes with the weights that it would have in bfloat16."""

import copy
import logging

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from lupi_trainer.lab import resolve_model
from lupi_trainer.lupi_skd import row_rollouts
from lupi_trainer.lupi_skd.rounded import rounded_weights
from lupi_trainer.speculative import skd_rollout
from tests.lupi_skd.training import make_trainer


BF16, FP32 = torch.bfloat16, torch.float32


def parameters(model) -> dict:
    return dict(model.named_parameters(remove_duplicate=False))


def test_inside_it_is_the_model_that_is_loaded_in_bfloat16_and_afterwards_the_same_as_before(student):
    model, ids = copy.deepcopy(student), torch.arange(5, 25)[None]
    before, order = parameters(model), list(model.state_dict())
    values = {name: weight.detach().clone() for name, weight in before.items()}
    buffers = {name: buffer.dtype for name, buffer in model.named_buffers()}
    loaded = AutoModelForCausalLM.from_pretrained(resolve_model("lab:student"), dtype=BF16)
    for error in (None, KeyError):
        try:
            with torch.no_grad(), rounded_weights(model):
                assert all(
                    torch.equal(w, values[n].to(BF16)) and w.dtype == BF16 for n, w in parameters(model).items()
                )
                assert {name: buffer.dtype for name, buffer in model.named_buffers()} == buffers
                assert model.lm_head.weight is model.model.embed_tokens.weight
                assert torch.equal(model(input_ids=ids).logits, loaded(input_ids=ids).logits)
                if error:
                    raise error
        except KeyError:
            pass
        assert list(model.state_dict()) == order and parameters(model).keys() == before.keys()
        assert all(
            weight is before[name] and torch.equal(weight, values[name]) for name, weight in parameters(model).items()
        )


def rollouts_of(trainer, monkeypatch) -> list:
    """(type of the student's weights, weights, arguments, texts) of each rollout of a run."""
    seen = []

    def roll_out(student, teacher, *args, **kwargs):
        out = skd_rollout(student, teacher, *args, **kwargs)
        weights = copy.deepcopy(student.state_dict())
        seen.append((student.lm_head.weight.dtype, weights, args, kwargs, out.completion_ids))
        return out

    monkeypatch.setattr(row_rollouts, "skd_rollout", roll_out)
    trainer.train()
    return seen


def test_the_trainers_texts_are_those_of_the_student_in_bfloat16(tmp_path, monkeypatch, student, teacher):
    trainer, losses = make_trainer(tmp_path, teacher_model=teacher, config_bf16=True, config_pack_weights="false")
    seen = rollouts_of(trainer, monkeypatch)
    assert len(seen) == 3 and {dtype for dtype, *_ in seen} == {BF16}
    for _, weights, args, kwargs, texts in seen:
        alone = copy.deepcopy(student).to(BF16)
        alone.model.rotary_emb = copy.deepcopy(student.model.rotary_emb)  # a buffer, which nothing rounds
        alone.load_state_dict(weights)
        again = skd_rollout(alone, teacher, *args, **kwargs)
        assert again.completion_ids == texts
    # training goes on with float32 weights, and in mixed precision
    assert {p.dtype for p in trainer.model.parameters()} == {FP32} and hasattr(trainer.model, "_original_forward")
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in trainer.model.parameters()}
    assert len(set(losses.losses)) == 3


@pytest.mark.parametrize("mixed, dtype", [(False, FP32), (False, BF16), (True, BF16)])
def test_without_mixed_precision_or_float32_weights_nothing_is_copied(tmp_path, monkeypatch, student, mixed, dtype):
    model = copy.deepcopy(student).to(dtype)
    trainer, _ = make_trainer(tmp_path, model=model, config_bf16=mixed, config_max_steps=1)
    weight = trainer.model.lm_head.weight
    monkeypatch.setattr(row_rollouts, "skd_rollout", lambda student, *a, **k: (_ for _ in ()).throw(Seen(student)))
    with pytest.raises(Seen) as seen:
        trainer.train()
    assert seen.value.args[0].lm_head.weight is weight and weight.dtype == dtype


class Seen(Exception):
    pass


def test_frozen_float32_weights_below_an_adapter_are_said_to_be_cast(tmp_path, caplog, student):
    lora = {"peft_config": LoraConfig(r=2, task_type="CAUSAL_LM"), "config_bf16": True}
    with caplog.at_level(logging.WARNING):
        assert not make_trainer(tmp_path, model=copy.deepcopy(student).to(BF16), **lora)[0]._rounded
        assert "cast to bfloat16" not in caplog.text
        assert not make_trainer(tmp_path, **lora)[0]._rounded
    assert "cast to bfloat16 for every token of a rollout: load them in bfloat16 (`dtype: bfloat16`)" in caplog.text

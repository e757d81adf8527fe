"""Adapters that hold a part of the `lm_head`: the student is trained with it, its own teacher is without it."""

import copy

import pytest
import torch
from peft import LoraConfig, TrainableTokensConfig, get_peft_model

from tests.lupi_skd.test_trainer import assert_same, loss_and_gradients, one_batch
from tests.lupi_skd.training import make_trainer


CAUSAL = {"task_type": "CAUSAL_LM"}
ADAPTERS = {
    "a copy": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], **CAUSAL),
    "tokens of tied embeddings": LoraConfig(
        r=4, target_modules=["q_proj"], trainable_token_indices=[*range(90)], **CAUSAL
    ),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_student_whose_adapter_is_on_its_head_is_taught_by_the_original(tmp_path, teacher, kind):
    original = copy.deepcopy(teacher)
    student = get_peft_model(teacher, ADAPTERS[kind])
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    own, _ = make_trainer(tmp_path, model=student, teacher_model=None)
    inputs = one_batch(own)
    ours = loss_and_gradients(own, inputs)
    fresh = loss_and_gradients(own, {k: v for k, v in inputs.items() if k != "teacher_hidden"})
    assert_same(ours, fresh, tolerance=2e-6)
    taught, _ = make_trainer(tmp_path, model=student, teacher_model=original)
    assert_same(ours, loss_and_gradients(taught, inputs), tolerance=2e-6)
    plain = student(input_ids=inputs["completion_ids"]).logits
    assert (plain - original(input_ids=inputs["completion_ids"]).logits).abs().max() > 0.1
    assert any("lm_head" in name or "token" in name for name in ours[1])


def test_tokens_alone_are_not_trained_on_tied_embeddings(tmp_path, teacher):
    alone = TrainableTokensConfig(token_indices=[5, 6], **CAUSAL)
    for model in ("lab:student", teacher):
        with pytest.raises(ValueError, match="tied to its lm_head: take LoraConfig with `trainable_token_indices`"):
            make_trainer(tmp_path, model=model, peft_config=alone)

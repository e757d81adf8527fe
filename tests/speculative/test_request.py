import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig

from lupi_trainer.speculative import AdapterDisabled, TopK, skd_rollout

from .toy_models import toy


@pytest.fixture(scope="module")
def model():
    return toy(positions=32)


def roll(model, student_prompts=([3, 4],), teacher_prompts=([5, 6],), **options):
    options = {"max_new_tokens": 4, **options}
    return skd_rollout(model, model, list(student_prompts), list(teacher_prompts), **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"gamma": 0}, "gamma must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_slots": 0}, "max_slots must be at least 1, got 0"),
        ({"student_temperature": -0.1}, "student_temperature must not be negative, got -0.1"),
        ({"teacher_temperature": float("nan")}, "teacher_temperature must not be negative, got nan"),
        ({"gamma_policy": "clever"}, "gamma_policy must be one of fixed, adaptive, goodput, got 'clever'"),
        ({"verification": "none"}, "verification must be one of parallel, sequential, got 'none'"),
        ({"vocab_size": 62}, r"vocab_size must lie in \[1, 61\]"),
        ({"row_ids": [1, 2]}, "1 student prompts, but 2 row_ids"),
        ({"student_prompts": []}, "student_prompt_ids is empty"),
        ({"teacher_prompts": [[1], [2]]}, "1 student prompts, but 2 teacher prompts"),
        ({"student_prompts": [[3], []], "teacher_prompts": [[3], [3]]}, "student prompt 1 is empty"),
        ({"teacher_prompts": [[]]}, "teacher prompt 0 is empty"),
        ({"teacher_prompts": [[3, 61]]}, r"teacher prompt 0 holds a token id outside \[0, 61\)"),
        ({"teacher_prompts": [[3] * 29]}, "teacher prompt 0 has 29 tokens; with max_new_tokens=4 that is beyond the "),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(model, options, message, monkeypatch):
    monkeypatch.setattr(model, "forward", lambda **_: pytest.fail("a model ran"))
    with pytest.raises(ValueError, match=message):
        roll(model, **options)


@pytest.mark.parametrize("values", [{"k": 0}, {"min_prob": -0.1}, {"min_prob": 1.1}])
def test_bad_rules_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        TopK(**values)


def test_a_recurrent_model_is_refused_by_name(model):
    mamba = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(ValueError, match="the teacher MambaForCausalLM .*keeps a state that rejected tokens"):
        skd_rollout(model, mamba, [[3]], [[3]], max_new_tokens=2)
    with pytest.raises(ValueError, match="the student MambaForCausalLM"):
        skd_rollout(mamba, model, [[3]], [[3]], max_new_tokens=2)


def test_modes_and_gradients_are_left_as_they_were(model):
    model.train()
    model.model.layers[0].eval()
    roll(model)
    assert model.training and not model.model.layers[0].training and model.model.layers[1].training
    assert torch.is_grad_enabled()
    model.eval()


def test_adapter_disabled_wants_an_adapter(model):
    with pytest.raises(ValueError, match="wants a PeftModel, got LlamaForCausalLM"):
        AdapterDisabled(model)

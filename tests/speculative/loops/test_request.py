import inspect

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV32Config,
    FalconConfig,
    GPTNeoConfig,
    Phi3Config,
)

from lupi_trainer import LUPISKDConfig
from lupi_trainer.speculative import AdapterDisabled, Knowledge, TopK, skd_rollout
from lupi_trainer.speculative.runners.runner import Runner
from tests.speculative.reference import reference_rollout
from tests.speculative.toy_models import toy


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
        ({"student_temperature": -0.1}, "student_temperature must not be negative, and finite, got -0.1"),
        ({"teacher_temperature": float("nan")}, "teacher_temperature must not be negative, and finite, got nan"),
        ({"gamma_policy": "clever"}, "gamma_policy must be one of fixed, adaptive, goodput, got 'clever'"),
        ({"verification": "none"}, "verification must be one of parallel, sequential, got 'none'"),
        ({"vocab_size": 62}, r"vocab_size must lie in \[1, 61\]"),
        ({"vocab_size": 60.5}, "vocab_size must be an integer, got 60.5"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"row_ids": [0.5]}, "row_ids must be an integer, got 0.5"),
        ({"trace_rows": [0.0]}, "trace_rows must be an integer, got 0.0"),
        ({"student_prompts": [[3.0, 4]]}, r"student_prompt_ids\[0\] must be an integer, got 3.0"),
        ({"teacher_prompts": ["abc"]}, r"teacher_prompt_ids\[0\] must be a list of token ids, got 'abc'"),
        ({"student_prompts": [3]}, r"student_prompt_ids\[0\] must be a list of token ids, got 3"),
        ({"student_prompts": [[True]]}, r"student_prompt_ids\[0\] must be an integer, got True"),
        ({"gamma": True}, "gamma must be an integer, got True"),
        ({"row_ids": [1, 2]}, "1 student prompts, but 2 row_ids"),
        ({"student_prompts": []}, "student_prompt_ids is empty"),
        ({"teacher_prompts": [[1], [2]]}, "1 student prompts, but 2 teacher prompts"),
        ({"student_prompts": [[3], []], "teacher_prompts": [[3], [3]]}, "student prompt 1 is empty"),
        ({"teacher_prompts": [[]]}, "teacher prompt 0 is empty"),
        ({"acceptance": Knowledge()}, "Knowledge.* looks at the teacher's prompts without the knowledge$"),
        ({"bare_teacher_prompt_ids": [[3]]}, "bare_teacher_prompt_ids: TopK.* has no use$"),
        ({"acceptance": Knowledge(), "bare_teacher_prompt_ids": [[3], [4]]}, "1 student prompts, but 2 bare"),
        ({"teacher_prompts": [[3, 61]]}, r"teacher prompt 0 holds a token id outside \[0, 61\)"),
        ({"teacher_prompts": [[3] * 29]}, "teacher prompt 0 has 29 tokens; with max_new_tokens=4 that is beyond the "),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(model, options, message, monkeypatch):
    monkeypatch.setattr(model, "forward", lambda **_: pytest.fail("a model ran"))
    with pytest.raises(ValueError, match=message):
        roll(model, **options)


@pytest.mark.parametrize("kind", [torch.tensor, np.array, lambda n: [torch.tensor(i) for i in n]])
def test_numbers_may_come_from_torch_or_numpy(model, kind):
    prompts = {"student_prompts": [[3, 4], [5]], "teacher_prompts": [[5, 6], [7]]}
    expected = roll(model, **prompts, seed=2**40, row_ids=[9, 4]).completion_ids
    prompts = {name: [kind(ids) for ids in rows] for name, rows in prompts.items()}
    assert roll(model, **prompts, seed=np.int64(2**40), row_ids=kind([9, 4])).completion_ids == expected


@pytest.mark.parametrize("values", [{"k": 0}, {"min_prob": -0.1}, {"min_prob": 1.1}])
def test_bad_rules_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        TopK(**values)


TINY = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    "config, reason",
    [
        (
            GPTNeoConfig(**TINY, num_layers=2, attention_types=[[["global", "local"], 1]]),
            "has layers of local attention",
        ),
        (FalconConfig(**TINY, alibi=True), "has ALiBi, which it computes for rows of one length"),
        (DeepseekV32Config(**TINY, index_topk=2), "has layers of \\w+_attention, whose cache"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_models_whose_texts_would_be_wrong_are_refused_by_name(model, config, reason, monkeypatch):
    monkeypatch.setattr(model, "config", config)
    with pytest.raises(ValueError, match=f"the student LlamaForCausalLM {reason}"):
        roll(model)


def test_texts_beyond_the_length_where_frequencies_change_are_refused():
    """The longest row would change all rows' frequencies; compiled, places beyond a row's end would, too."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    options = {"max_position_embeddings": 128, "original_max_position_embeddings": 16, "rope_parameters": rope}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Phi3Config(**TINY, **options))
    with torch.no_grad():
        model.model.layers[0].self_attn.qkv_proj.weight.mul_(30)
        model.lm_head.weight.mul_(50)
    with pytest.raises(ValueError, match="student prompt 0 has 13 tokens; .* beyond the student's 16 positions"):
        roll(model, [[3] * 13])
    queries = [[3] * 12, [4, 5]]
    expected = reference_rollout(model, model, queries, queries, max_new_tokens=4)
    assert roll(model, queries, queries, gamma=4).completion_ids == expected[0]
    assert Runner(model, queries, slots=2, max_new_tokens=4, vocab_size=61, compile=True).size == 16


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


def test_a_rollout_and_the_recipes_have_the_same_defaults():
    """But for the policy: a run has one that learns from rollout to rollout, a rollout one that repeats its rounds."""
    given = inspect.signature(skd_rollout).parameters
    names = "gamma student_temperature teacher_temperature max_slots verification pack_weights"
    for name in names.split():
        assert given[name].default == LUPISKDConfig.__dataclass_fields__[name].default, name
    assert (given["gamma_policy"].default, LUPISKDConfig.gamma_policy) == ("fixed", None)
    assert given["acceptance"].default == TopK(LUPISKDConfig.accept_top_k, LUPISKDConfig.teacher_min_prob)

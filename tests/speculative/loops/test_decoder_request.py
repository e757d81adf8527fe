"""What cannot work is refused by name before anything runs."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, RwkvConfig

from lupi_trainer.speculative import speculative_generate
from tests.speculative.toy_models import VOCAB, toy


@pytest.fixture(scope="module")
def model():
    return toy("llama", layers=1, positions=32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt_ids": []}, "prompt_ids is empty"),
        ({"prompt_ids": [[3], []]}, "target prompt 1 is empty"),
        ({"prompt_ids": [[3, VOCAB]]}, "target prompt 0 holds a token id outside"),
        ({"prompt_ids": [[3, -1]]}, "target prompt 0 holds a token id outside"),
        ({"prompt_ids": [[3] * 23]}, "target prompt 0 has 23 tokens.*beyond the target's 32 positions"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"num_draft_tokens": 0}, "num_draft_tokens must be at least 1, got 0"),
        ({"num_draft_tokens": 2.5}, "num_draft_tokens must be an integer, got 2.5"),
        ({"num_draft_tokens": True}, "num_draft_tokens must be an integer, got True"),
        ({"seed": 0.5}, "seed must be an integer, got 0.5"),
        ({"max_new_tokens": "8"}, "max_new_tokens must be an integer, got '8'"),
        ({"top_k": 0.5}, "top_k must be an integer, got 0.5"),
        ({"eos_token_id": [7, 1.5]}, "eos_token_id must be an integer, got 1.5"),
        ({"max_slots": 0}, "max_slots must be at least 1, got 0"),
        ({"temperature": -0.1}, "temperature must not be negative, got -0.1"),
        ({"temperature": float("nan")}, "temperature must not be negative, got nan"),
        ({"top_k": -1}, "top_k must not be negative"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p must lie in \(0, 1\], got 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be positive, got 0.0"),
        ({"gamma_policy": "clever"}, "gamma_policy must be one of fixed, goodput, got 'clever'"),
        ({"block_verification": "token"}, "block_verification must be True or False, got 'token'"),
        ({"verification": "token"}, "verification is called block_verification .*False"),
        ({"draft_length": "fixed"}, "draft_length is called gamma_policy now"),
    ],
)
def test_bad_arguments(model, change, words):
    good = {"prompt_ids": [[3, 4]], "max_new_tokens": 10}
    assert len(speculative_generate(model, model, **good).completion_ids[0]) == 10
    with pytest.raises(ValueError, match=words):
        speculative_generate(model, model, **{**good, **change})


@pytest.mark.parametrize("kind", [int, torch.tensor, np.int64, lambda n: [n], lambda n: torch.tensor([n, 2])])
def test_an_end_may_come_from_torch_or_numpy(model, kind):
    full = speculative_generate(model, model, [[3, 4]], max_new_tokens=10).completion_ids[0]
    output = speculative_generate(model, model, [[3, 4]], max_new_tokens=np.int64(10), eos_token_id=kind(full[4]))
    assert output.completion_ids == [full[: full.index(full[4]) + 1]]


@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_wrapped_model_is_refused(model, role):
    models = {"target": model, "draft": model, role: torch.nn.DataParallel(model)}
    with pytest.raises(ValueError, match=f"the {role} is a DataParallel, which has no `config`: pass the transf"):
        speculative_generate(**models, prompt_ids=[[3, 4]], max_new_tokens=4)


def test_the_last_position_can_be_used(model):
    full = speculative_generate(model, model, [[3] * 22], max_new_tokens=10, num_draft_tokens=7)
    assert len(full.completion_ids[0]) == 10


def test_a_draft_that_cannot_read_the_prompt(model):
    with pytest.raises(ValueError, match=r"draft prompt 0 holds a token id outside \[0, 40\)"):
        speculative_generate(model, toy("llama", layers=1, vocab=40), [[50]], max_new_tokens=4)
    with pytest.raises(ValueError, match="beyond the draft's 16 positions"):
        speculative_generate(model, toy("gpt2", layers=1, positions=16), [[5] * 9], max_new_tokens=8)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_models_that_cannot_take_tokens_back(model, role):
    torch.manual_seed(0)
    config = RwkvConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2)
    models = {"target": model, "draft": model, role: AutoModelForCausalLM.from_config(config)}
    with pytest.raises(ValueError, match=f"the {role} RwkvForCausalLM keeps a state of its own.*that rejected tokens"):
        speculative_generate(**models, prompt_ids=[[3, 4]], max_new_tokens=4)

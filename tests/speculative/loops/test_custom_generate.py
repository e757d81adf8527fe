"""Through `model.generate`: the same text as without the draft, at any batch size."""

import pytest
import torch
from transformers import StoppingCriteria

from lupi_trainer.speculative import Fixed, PromptLookup, SpeculativeOutput, SpeculativeStats, draft_and_verify
from lupi_trainer.speculative.loops import custom_generate
from tests.speculative.toy_models import perturbed, prompts, toy


@pytest.fixture(scope="module")
def target():
    return toy("llama")


@pytest.fixture(scope="module")
def draft(target):
    return perturbed(target, 0.1)


def batch():
    texts = prompts(4, 2, 9, seed=1)
    longest = max(map(len, texts))
    ids = torch.tensor([[0] * (longest - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_draft_tokens": 2},
        {"draft_model": PromptLookup()},
        {"gamma_policy": "goodput"},
        {"gamma_policy": Fixed(3), "eos_token_id": torch.tensor([7, 15])},
    ],
)
def test_greedy_text_is_that_of_generate(target, draft, options):
    plain = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": [7, 15], "pad_token_id": 0}
    expected = target.generate(**batch(), **plain)
    ours = target.generate(**batch(), **{**plain, "draft_model": draft, **options}, custom_generate=draft_and_verify)
    assert torch.equal(ours, expected)
    assert (expected[:, -1] == 0).any(), "some rows must end early"


def test_penalty_and_lengths_are_honored(target, draft):
    one = {"input_ids": batch()["input_ids"][:1, 2:]}
    plain = {"max_length": 30, "do_sample": False, "repetition_penalty": 1.3, "eos_token_id": None, "pad_token_id": 0}
    expected = target.generate(**one, **plain)
    ours = target.generate(**one, **plain, custom_generate=draft_and_verify, draft_model=draft)
    assert torch.equal(ours, expected) and ours.shape[1] == 30


def test_sampling_takes_its_settings_and_its_seed(target, draft):
    options = {"max_new_tokens": 16, "do_sample": True, "temperature": 0.9, "eos_token_id": None, "pad_token_id": 0}
    options |= {"custom_generate": draft_and_verify, "draft_model": draft}
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(target.generate(**batch(), **options, num_return_sequences=2, return_dict_in_generate=True))
    assert torch.equal(texts[0].sequences, texts[1].sequences)
    assert not torch.equal(texts[0].sequences, texts[2].sequences)
    assert not torch.equal(texts[0].sequences[0], texts[0].sequences[1])
    greedy = target.generate(**batch(), **{**options, "do_sample": False, "temperature": None})
    assert torch.equal(target.generate(**batch(), **options, top_k=1), greedy)


def test_what_is_given_is_passed_on(target, draft, monkeypatch):
    seen = {}

    def generate(*args, **options):
        seen.update(options)
        return SpeculativeOutput([[5]] * 4, SpeculativeStats())

    monkeypatch.setattr(custom_generate, "speculative_generate", generate)
    options = {"compile": True, "gamma_policy": "goodput", "num_draft_tokens": 3, "block_verification": False}
    target.generate(**batch(), max_new_tokens=4, custom_generate=draft_and_verify, draft_model=draft, **options)
    assert options.items() <= seen.items()


class Never(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draft_model": None}, "draft_model is missing"),
        ({"min_new_tokens": 3}, "cannot follow MinLength"),
        ({"no_repeat_ngram_size": 2}, "cannot follow NoRepeatNGram"),
        ({"num_beams": 2}, "num_beams=2"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores=True"),
        ({"stopping_criteria": [Never()]}, "cannot follow Never"),
        ({"verification": "token"}, "verification is called block_verification"),
        ({"draft_length": "fixed"}, "draft_length is called gamma_policy now"),
    ],
)
def test_what_cannot_be_honored_is_refused(target, draft, options, words):
    options = {"draft_model": draft, "max_new_tokens": 4, "do_sample": False, "eos_token_id": 2, **options}
    with pytest.raises(ValueError, match=words):
        target.generate(**batch(), custom_generate=draft_and_verify, pad_token_id=0, **options)

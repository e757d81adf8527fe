"""Drafts from the text itself, and the penalty on what it already holds."""

import pytest
import torch

from lupi_trainer.speculative import PromptLookup, SpeculativeOutput, speculative_generate
from lupi_trainer.speculative.drafts.source import Texts
from tests.speculative.toy_models import FAMILIES, perturbed, prompts, toy


QUERIES = prompts(6, 1, 12, seed=4)


class Placed:
    """As many rows as there are texts, each with its last token written."""

    def __init__(self, texts):
        self.used = len(texts)
        self.row, self.n = torch.arange(self.used), torch.ones(self.used, dtype=torch.long)


def proposals(texts, gamma, **options) -> list[list[int]]:
    """What is proposed after each text, by token ids."""
    width = max(map(len, texts)) + gamma + 1
    tokens = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    lengths = torch.tensor([len(text) - 1 for text in texts])
    proposal = PromptLookup(**options).propose(Placed(texts), Texts(tokens, lengths), gamma, None)
    return [row[:count] for row, count in zip(proposal.tokens.tolist(), proposal.count.tolist())]


def by_hand(text, gamma, longest=3, shortest=1):
    for size in range(min(longest, len(text) - 1), shortest - 1, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[-size:]:
                return text[end : end + gamma]
    return []


def test_what_followed_the_longest_last_ngram():
    assert proposals([[1, 2, 3, 9, 2, 3, 8, 1, 2, 3]], 4) == [[9, 2, 3, 8]]  # three tokens before the latest two
    assert proposals([[5, 6, 7, 5]], 2) == [[6, 7]]
    assert proposals([[5, 6, 7, 5]], 2, shortest=2) == [[]]
    assert proposals([[5, 6, 7, 8], [4]], 3) == [[], []]
    assert proposals([[0, 5, 4]], 3) == [[]]  # no match with the padding
    assert proposals([[4, 4]], 3) == [[4]]  # no more than is known


@pytest.mark.parametrize("options", [{}, {"longest": 1}, {"longest": 4, "shortest": 2}])
def test_lookup_against_a_search_by_hand(options):
    texts = prompts(200, 1, 14, seed=0, vocab=7)
    found = proposals(texts, 3, **options)
    assert found == [by_hand(text, 3, **options) for text in texts]
    assert 20 < sum(map(bool, found)) < 200


def greedy(target, rows, penalty=1.0, limit=20):
    """The target's own text, un-cached; the penalty is transformers'."""
    texts = []
    for prompt in rows:
        text = list(prompt)
        for _ in range(limit):
            with torch.no_grad():
                logits = target(torch.tensor([text]), use_cache=False).logits[0, -1].tolist()
            for token in set(text):
                logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
            text.append(max(range(len(logits)), key=logits.__getitem__))
        texts.append(text[len(prompt) :])
    return texts


@pytest.mark.parametrize("family", FAMILIES)
def test_lookup_writes_the_targets_own_text(family):
    target = toy(family)
    options = {"max_new_tokens": 20, "num_draft_tokens": 4}
    output = speculative_generate(target, PromptLookup(), QUERIES, **options)
    assert isinstance(output, SpeculativeOutput)
    assert output.completion_ids == greedy(target, QUERIES)
    assert output.stats.accepted > 0 and output.stats.draft_forwards == 0
    assert output.stats.drafted < 4 * output.stats.blocks, "a row without a match drafts nothing"
    refilled = speculative_generate(target, PromptLookup(), QUERIES, max_slots=2, **options)
    assert refilled.completion_ids == output.completion_ids


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_penalty_is_applied_to_both_models(family):
    target = toy(family)
    expected = greedy(target, QUERIES, penalty=1.4)
    assert expected != greedy(target, QUERIES)
    options = {"max_new_tokens": 20, "num_draft_tokens": 4, "repetition_penalty": 1.4}
    for draft in (target, perturbed(target, 0.1), PromptLookup()):
        output = speculative_generate(target, draft, QUERIES, max_slots=4, **options)
        assert output.completion_ids == expected
        if draft is target:
            assert output.stats.accepted == output.stats.drafted > 0


def test_bad_lookups():
    with pytest.raises(ValueError, match="shortest"):
        PromptLookup(longest=1, shortest=2)

"""Heads of the target draft for it: the text is its own, whatever they guess; they observe what `lm_head` reads."""

import functools

import pytest
import torch

from lupi_trainer.models.mtp_heads import MTPHeads
from lupi_trainer.speculative import HeadsDraft, speculative_generate
from lupi_trainer.speculative.rules.speculative_sampling import Sampling
from tests.speculative.toy_models import FAMILIES, prompts, toy


PROMPTS = prompts(6, 1, 9, seed=1) + [[5]]
LIMIT, EOS = 20, (7, 8)


@functools.cache
def model(family):
    return toy(family)


def random_heads(target, head_type, horizon=4, std=0.05, **options):
    torch.manual_seed(3)
    heads = MTPHeads.for_model(target, horizon, head_type, **options)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return heads


@functools.cache
@torch.no_grad()
def greedy(family):
    """The target's own text, un-cached, row by row."""
    rows = []
    for prompt in PROMPTS:
        text = list(prompt)
        while len(text) < len(prompt) + LIMIT and (len(text) == len(prompt) or text[-1] not in EOS):
            text.append(int(model(family)(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
        rows.append(text[len(prompt) :])
    return rows


class Remembering(HeadsDraft):
    """Keeps what it proposed: for every proposal the row, its place, and the tokens."""

    def __init__(self, *args):
        super().__init__(*args)
        self.proposals = []

    def propose(self, slots, texts, gamma, noise):
        proposal = super().propose(slots, texts, gamma, noise)
        rows, places = slots.row[: slots.used].tolist(), slots.n[: slots.used].tolist()
        for row, n, tokens, count in zip(rows, places, proposal.tokens.tolist(), proposal.count.tolist()):
            self.proposals.append((row, n, tokens[:count]))
        return proposal


@torch.no_grad()
def guesses(target, heads, prompt, completion, n):
    """What the heads say, un-cached, after `n` tokens of a completion: from the state one place before the last."""
    text = torch.tensor([prompt + completion[:n]])
    hidden = target.base_model(text, use_cache=False).last_hidden_state
    seen = hidden[:, len(prompt) - 1 : -1]  # a row's states are known from its first round on
    return [int(target.lm_head(state[0, -1]).argmax()) for state in heads(seen)[1:]]


@pytest.mark.parametrize("head_type", ["linear", "residual", "transformer"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.grid(4)
def test_the_text_is_the_targets_own_and_the_guesses_are_the_heads(family, head_type):
    target = model(family)
    heads = random_heads(target, head_type, window=5)
    for slots in (None, 2):
        source = Remembering(target, heads)
        output = speculative_generate(
            target, source, PROMPTS, max_new_tokens=LIMIT, num_draft_tokens=3, eos_token_id=list(EOS), max_slots=slots
        )
        assert output.completion_ids == greedy(family)
        assert output.stats.drafted > output.stats.blocks and output.stats.draft_forwards == 0
        compared = 0
        for row, n, tokens in source.proposals:
            if n == 0:
                assert tokens == [], "nothing is known of a row before its first round"
            elif n < len(output.completion_ids[row]):
                assert tokens == guesses(target, heads, PROMPTS[row], output.completion_ids[row], n)[: len(tokens)]
                compared += bool(tokens)
        assert compared > 20


@pytest.mark.parametrize("window", [3, 64])
def test_a_transformer_head_sees_the_last_states_alone(window):
    target = model("llama")
    heads = random_heads(target, "transformer", window=window, std=0.3)
    source = Remembering(target, heads)
    output = speculative_generate(target, source, PROMPTS, max_new_tokens=LIMIT, num_draft_tokens=3, max_slots=3)
    compared = 0
    for row, n, tokens in source.proposals:
        if tokens:
            assert tokens == guesses(target, heads, PROMPTS[row], output.completion_ids[row], n)[: len(tokens)]
            compared += 1
    assert compared > 50


def test_heads_that_know_the_text_are_accepted():
    """A text in which every token says the next three: all drafts are accepted but those of the first round."""

    class Knowing:
        horizon, window = 4, 1

        def ahead(self, states, count):
            return torch.stack([states[:, -1].roll(k, -1) for k in (1, 2, 3)], 1)

    target = counter()
    output = speculative_generate(
        target, HeadsDraft(target, Knowing()), [[0], [3]], max_new_tokens=13, num_draft_tokens=3
    )
    assert output.completion_ids == [[(start + i) % 16 for i in range(1, 14)] for start in (0, 3)]
    assert output.stats.accepted_lengths == [2, 0, 0, 6]


def counter():
    """A llama that counts: its hidden state is the one-hot code of the next number."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    target = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in target.model.layers[0].parameters():
            parameter.zero_()
        target.model.embed_tokens.weight.copy_(torch.eye(16).roll(1, 1))
        target.lm_head.weight.copy_(torch.eye(16))
    return target


@pytest.mark.parametrize("block", [True, False])
def test_sampling_keeps_the_law_of_the_target(block):
    """Chi-square of the first two tokens, the second of which may be drafted."""
    from scipy.stats import chisquare

    target = toy("llama", vocab=5, sharpness=2.0)
    heads = random_heads(target, "residual", horizon=3, std=0.3)
    rows = 4000
    output = speculative_generate(
        target,
        HeadsDraft(target, heads),
        [[3, 4, 3]] * rows,
        max_new_tokens=3,
        num_draft_tokens=2,
        temperature=1.0,
        block_verification=block,
    )
    assert output.stats.accepted > 300
    sampling = Sampling(1.0)
    expected, observed = [], []
    with torch.no_grad():
        first = sampling.probabilities(target(torch.tensor([[3, 4, 3]])).logits[0, -1])
        for a in range(5):
            second = sampling.probabilities(target(torch.tensor([[3, 4, 3, a]])).logits[0, -1])
            for b in range(5):
                third = sampling.probabilities(target(torch.tensor([[3, 4, 3, a, b]])).logits[0, -1])
                for c in range(5):
                    expected.append(rows * float(first[a] * second[b] * third[c]))
                    observed.append(sum(ids == [a, b, c] for ids in output.completion_ids))
    assert min(expected) > 5
    scale = rows / sum(expected)  # sums of float32
    assert chisquare(observed, [e * scale for e in expected]).pvalue > 1e-3


def test_a_horizon_of_one_has_nothing_to_draft():
    with pytest.raises(ValueError, match="horizon of 1"):
        HeadsDraft(model("llama"), MTPHeads.for_model(model("llama"), 1))

"""Sampling with a draft has the target's law: chi-square on the joint of three tokens, and bugs that it must see."""

import functools
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lupi_trainer.speculative import PromptLookup, speculative_generate
from lupi_trainer.speculative.drafts.model import DraftModel
from lupi_trainer.speculative.loops import decoder
from lupi_trainer.speculative.rules import speculative_sampling
from lupi_trainer.speculative.rules.noise import row_keys
from lupi_trainer.speculative.rules.speculative_sampling import RoundNoise, Sampling
from tests.speculative.toy_models import perturbed, prompts, toy


VOCAB, WINDOW, ROWS, SLOTS, PROMPT = 8, 3, 20_000, 2_500, [3, 1, 4]
WARPED = {"temperature": 1.3, "top_k": 6, "top_p": 0.9}


@functools.cache
def pair():
    target = toy("qwen3", vocab=VOCAB, layers=1, hidden=16, sharpness=8.0)
    return target, perturbed(target, 0.7)


@torch.no_grad()
def law(sampling):
    """P [VOCAB ** WINDOW] of every text of three tokens, from the target alone, through transformers' processors."""
    texts = torch.cartesian_prod(*[torch.arange(VOCAB)] * WINDOW)
    full = torch.cat([torch.tensor(PROMPT).expand(len(texts), -1), texts], 1)
    logits = pair()[0](full, use_cache=False).logits
    steps = [TemperatureLogitsWarper(sampling["temperature"])]
    if "repetition_penalty" in sampling:
        steps.insert(0, RepetitionPenaltyLogitsProcessor(sampling["repetition_penalty"]))
    if "top_k" in sampling:
        steps += [TopKLogitsWarper(sampling["top_k"]), TopPLogitsWarper(sampling["top_p"])]
    probability = torch.ones(len(texts), dtype=torch.float64)
    for i in range(WINDOW):
        before = full[:, : len(PROMPT) + i]
        p = LogitsProcessorList(steps)(before, logits[:, len(PROMPT) + i - 1]).double().softmax(-1)
        probability *= p.gather(1, texts[:, i : i + 1])[:, 0]
    return probability


def chi_square(sampling, gamma, block, rows=ROWS, seed=3, draft=None, full=True):
    """(p-value of the joint of three tokens, stats); cells of fewer than 5 expected draws are pooled.

    Every row runs three rounds, and can hold a full draft in each; `full`: the source gives one each time.
    """
    rounds = Counter()

    def after_three_rounds(row, tokens):
        rounds[row] += 1
        return rounds[row] == WINDOW

    output = speculative_generate(
        pair()[0],
        draft or pair()[1],
        [PROMPT] * rows,
        max_new_tokens=WINDOW * (gamma + 1),
        num_draft_tokens=gamma,
        block_verification=block,
        seed=seed,
        on_tokens=after_three_rounds,
        max_slots=SLOTS,
        **sampling,
    )
    assert output.stats.gamma_history == [gamma] * (WINDOW * rows // SLOTS)
    assert not full or output.stats.drafted == gamma * output.stats.blocks
    tokens = torch.tensor([ids[:WINDOW] for ids in output.completion_ids])
    place = torch.tensor([VOCAB ** (WINDOW - 1 - i) for i in range(WINDOW)])
    counts, expected = (tokens * place).sum(1).bincount(minlength=VOCAB**WINDOW).double(), law(sampling) * rows
    assert counts[expected == 0].sum() == 0, "a token that the filters exclude was written"
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    kept = expected > 0
    assert kept.sum() > 30
    return chisquare(counts[kept], expected[kept] / expected.sum() * counts.sum()).pvalue, output.stats


@pytest.mark.parametrize("gamma", [pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_the_joint_law_of_three_tokens(gamma):
    """Of drafts of two, below. Blocks keep at least as much as tokens do: arXiv 2403.10444, theorem 2."""
    kept = []
    for block in (False, True):
        pvalue, stats = chi_square({"temperature": 1.0}, gamma, block)
        assert pvalue > 1e-3
        assert 0.3 < stats.acceptance_rate < 0.9, "both acceptances and rejections must have had their say"
        kept.append(stats.acceptance_length)
    if gamma == 1:
        assert kept[1] == kept[0], "a block of one is a token"
    else:
        assert kept[1] > 1.01 * kept[0]


@pytest.mark.slow
@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("sampling", [WARPED, {"temperature": 0.8, "repetition_penalty": 1.5}])
def test_filters_and_penalty_keep_the_law(sampling, block):
    assert chi_square(sampling, 2, block)[0] > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("block", [False, True])
def test_lookup_keeps_the_law(block):
    pvalue, stats = chi_square({"temperature": 1.0}, 2, block, draft=PromptLookup(), full=False)
    assert pvalue > 1e-3 and 0 < stats.accepted < stats.drafted


def bonus_from_the_draft(monkeypatch):
    """The token after a fully accepted draft is drawn from the residual of the last drafted place, not from p."""

    def after(p, q, accepted, share, noise):
        last = accepted.clamp(max=q.shape[1] - 2)
        row = torch.arange(len(accepted))
        return noise.target((share * p[row, accepted] - q[row, last]).clamp(min=0) + 1e-20)

    monkeypatch.setattr(speculative_sampling, "_after", after)


def sum_for_cumulative_product(monkeypatch):
    """A later drafted token is accepted although an earlier one is not."""

    def verify(p, q, drafts, count, noise):
        px, qx, q = speculative_sampling._prepared(p, q, drafts, count)
        places = torch.arange(drafts.shape[1])
        accepted = ((noise.uniform(drafts.shape[1]) * qx < px) & (places < count[:, None])).sum(1)
        return accepted, speculative_sampling._after(p, q, accepted, 1.0, noise)

    monkeypatch.setattr(decoder, "verify_tokens", verify)
    monkeypatch.setattr(decoder, "verify_blocks", verify)


def residual_is_p(monkeypatch):
    """After a rejection the token is drawn from p instead of what the draft leaves of it."""

    def after(p, q, accepted, share, noise):
        return noise.target(p[torch.arange(len(accepted)), accepted])

    monkeypatch.setattr(speculative_sampling, "_after", after)


def noise_of_a_place(monkeypatch):
    """A token's random numbers depend on its place alone, so later rounds see what already decided an earlier one."""
    monkeypatch.setattr(decoder, "RoundNoise", lambda keys, n, stride: RoundNoise(keys, n * 0, stride))


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize(
    ("bug", "gamma"),
    [  # after a draft of three the bonus is the fourth token, and a single drafted token has none after it
        (bonus_from_the_draft, 2),
        (sum_for_cumulative_product, 3),
        (residual_is_p, 1),
        (noise_of_a_place, 3),
    ],
)
@pytest.mark.grid(3)
def test_the_chi_square_sees_bugs(monkeypatch, bug, gamma, block):
    bug(monkeypatch)
    assert chi_square({"temperature": 1.0}, gamma, block, rows=5_000)[0] < 1e-6


QUERIES = prompts(8, 2, 9, seed=1)


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_stale_draft_cache_is_seen(monkeypatch, temperature, block):
    """An equal draft's tokens are all accepted; one that never reads the last token of a full block loses some."""
    target = toy("llama")
    options = {"max_new_tokens": 24, "num_draft_tokens": 2, "temperature": temperature, "block_verification": block}
    stats = speculative_generate(target, target, QUERIES, **options).stats
    assert stats.accepted == stats.drafted > 0 and stats.rounds == 8
    monkeypatch.setattr(DraftModel, "observe", lambda self, *args: None)
    stats = speculative_generate(target, target, QUERIES, **options).stats
    assert stats.accepted < 0.9 * stats.drafted


@pytest.mark.parametrize("block", [False, True])
def test_the_batch_does_not_change_the_text(block):
    target = toy("gemma3")
    draft = perturbed(target, 0.1)
    options = {"max_new_tokens": 15, "num_draft_tokens": 4, "temperature": 1.0, "block_verification": block}
    options |= {"eos_token_id": 7, "seed": 5}
    texts = [speculative_generate(target, draft, QUERIES, **options, max_slots=n).completion_ids for n in (None, 1, 3)]
    assert texts[0] == texts[1] == texts[2]
    assert texts[0] != speculative_generate(target, draft, QUERIES, **{**options, "seed": 6}).completion_ids


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.6}, {"top_k": 5, "top_p": 0.5}, {"top_p": 1e-6}, {}])
def test_filters_are_those_of_transformers(options):
    torch.manual_seed(0)
    logits = 3 * torch.randn(50, 40)
    steps = [TemperatureLogitsWarper(0.7)]
    if "top_k" in options:
        steps.append(TopKLogitsWarper(options["top_k"]))
    if "top_p" in options:
        steps.append(TopPLogitsWarper(options["top_p"]))
    expected = LogitsProcessorList(steps)(None, logits).softmax(-1)
    torch.testing.assert_close(Sampling(temperature=0.7, **options).probabilities(logits), expected)


def test_numbers_of_a_round_are_its_own():
    """No two rounds of a row share a random number, and uniform numbers are uniform."""
    keys = row_keys(0, list(range(2000)))
    numbers = [RoundNoise(keys, torch.full((2000,), n), 4).uniform(3) for n in range(4)]
    flat = torch.stack(numbers, 1).flatten()
    assert len(flat.unique()) > 0.999 * len(flat) and 0 < flat.min() and flat.max() < 1
    counts = (flat * 20).long().bincount(minlength=20)
    assert chisquare(counts).pvalue > 1e-3

"""Greedy decoding with a draft: the text is the target's own, whatever the draft, its length and the batch."""

import functools

import pytest
import torch

from lupi_trainer.speculative import Fixed, speculative_generate
from lupi_trainer.speculative.runners import steps as compiled
from tests.speculative.toy_models import FAMILIES, perturbed, prompts, toy


PROMPTS = prompts(6, 1, 9, seed=1) + [[5]]  # a prompt of one token: nothing comes before the one that is fed
LIMIT = 20


@functools.cache
def target(family):
    return toy(family)


@functools.cache
def draft(family, kind):
    if kind == "equal":
        return target(family)
    return perturbed(target(family), 0.05) if kind == "close" else toy(family, seed=9, hidden=16)


@functools.cache
@torch.no_grad()
def endless(family):
    """The target's own text, un-cached, row by row."""
    rows = []
    for prompt in PROMPTS:
        text = list(prompt)
        for _ in range(LIMIT):
            text.append(int(target(family)(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
        rows.append(text[len(prompt) :])
    return rows


@functools.cache
def eos(family):
    """Two tokens that end some rows and leave others their full length."""
    rows = endless(family)
    by_rows = sorted({t for row in rows for t in row}, key=lambda t: abs(sum(t in row for row in rows) - 1.5))
    return by_rows[:2]


@functools.cache
def greedy(family):
    """The target's own text as far as its first end."""
    rows = []
    for row in endless(family):
        ends = [i for i, token in enumerate(row) if token in eos(family)]
        rows.append(row[: ends[0] + 1] if ends else row)
    assert min(map(len, rows)) < max(map(len, rows)) == LIMIT, "some rows must end early, and some not"
    return rows


def generate(family, kind, **options):
    options = {"max_new_tokens": LIMIT, "eos_token_id": eos(family), **options}
    return speculative_generate(target(family), draft(family, kind), PROMPTS, **options)


@pytest.mark.parametrize("kind", ["equal", "close", "unrelated"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.grid(3)
def test_the_text_is_the_targets_own(family, kind):
    for num_draft_tokens in (1, 2, 4, 7):
        output = generate(family, kind, num_draft_tokens=num_draft_tokens)
        assert output.completion_ids == greedy(family)
        stats = output.stats
        assert stats.committed == sum(map(len, greedy(family)))
        assert stats.target_forwards == stats.rounds
        assert sum(stats.accepted_lengths) == stats.blocks
        assert sum(i * n for i, n in enumerate(stats.accepted_lengths)) == stats.accepted
        if kind == "equal":  # a draft cache that lacks a token, or holds a rejected one, fails here
            assert stats.accepted == stats.drafted > 0
            assert stats.rounds == -(-LIMIT // (num_draft_tokens + 1))
        elif kind == "close":
            assert 0.3 < stats.acceptance_rate < 1 < stats.acceptance_length


@pytest.mark.parametrize("kind", ["equal", "close", "unrelated"])
def test_the_draft_length_may_be_chosen(kind):
    output = generate("qwen3", kind, num_draft_tokens=7, gamma_policy="goodput", max_slots=3)
    assert output.completion_ids == greedy("qwen3")
    stats = output.stats
    assert len(stats.gamma_history) == stats.rounds
    # a round that drafts nothing may read the token that the draft's cache lacks
    assert 0 <= stats.draft_forwards - sum(stats.gamma_history) <= stats.gamma_history.count(0)
    assert len(set(stats.gamma_history)) > 1 and max(stats.gamma_history) <= 7
    if kind == "equal":
        assert stats.accepted == stats.drafted > 0


class Observing(Fixed):
    """A fixed length that keeps what it observed."""

    def __init__(self, gamma):
        super().__init__(gamma)
        self.remaining, self.outcomes = [], []

    def choose(self, remaining, waiting):
        self.remaining.append(dict(remaining))
        return super().choose(remaining, waiting)

    def observe(self, gamma, outcomes, seconds):
        assert seconds > 0
        self.outcomes += outcomes


def test_a_gamma_policy_observes_every_round():
    policy = Observing(3)
    output = generate("llama", "close", num_draft_tokens=3, gamma_policy=policy, max_slots=4)
    assert output.completion_ids == greedy("llama")
    outcomes = policy.outcomes
    assert sum(o.accepted for o in outcomes) == output.stats.accepted
    assert {o.row for o in outcomes if o.remaining == 0} == set(range(len(PROMPTS)))
    assert policy.remaining[0] == dict.fromkeys(range(4), LIMIT - 1)  # the last token is the target's
    assert any(o.rejected for o in outcomes) and any(not o.rejected for o in outcomes)


class Cycle(Fixed):
    """Draft lengths in turn."""

    def __init__(self, *lengths):
        self.lengths, self.next = lengths, -1

    def choose(self, remaining, waiting):
        self.next += 1
        return self.lengths[self.next % len(self.lengths)]


@pytest.mark.parametrize("slots", [None, 1])
def test_rounds_without_a_draft_do_not_leave_the_drafts_cache_behind(slots):
    policy = Cycle(2, 0, 0, 0, 3, 0)
    output = generate("llama", "equal", num_draft_tokens=3, gamma_policy=policy, max_slots=slots)
    assert output.completion_ids == greedy("llama")
    assert output.stats.accepted == output.stats.drafted > 0 and 0 in output.stats.gamma_history


@pytest.mark.parametrize("length", [2.5, -1, None])
def test_a_draft_length_that_is_none_is_refused(length):
    with pytest.raises(ValueError, match=rf"Cycle.choose\(\) must be (an integer|at least 0), got {length}"):
        generate("llama", "equal", gamma_policy=Cycle(length))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_slots_are_refilled_and_change_nothing(family):
    rounds = {}
    for slots in (1, 2, 3):
        output = generate(family, "close", num_draft_tokens=3, max_slots=slots)
        assert output.completion_ids == greedy(family)
        rounds[slots] = output.stats.rounds
    assert rounds[1] > rounds[2] > rounds[3]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations(attention):
    big = toy("qwen3", attention=attention)
    output = speculative_generate(big, big, PROMPTS, max_new_tokens=LIMIT, eos_token_id=eos("qwen3"))
    assert output.completion_ids == greedy("qwen3")


def test_a_draft_of_another_family_and_a_smaller_vocabulary():
    """Only the target's vocabulary counts: a token that the draft has not is written all the same."""
    smaller = toy("gpt2", seed=3, vocab=40)
    texts = [[t % 40 for t in prompt] for prompt in PROMPTS]
    output = speculative_generate(target("llama"), smaller, texts, max_new_tokens=LIMIT)
    alone = speculative_generate(target("llama"), target("llama"), texts, max_new_tokens=LIMIT)
    assert output.completion_ids == alone.completion_ids
    assert max(map(max, output.completion_ids)) >= 40, "the target must write tokens that the draft has not"


def test_a_row_can_be_ended_from_outside():
    observed = {row: [] for row in range(len(PROMPTS))}

    def on_tokens(row, tokens):
        observed[row] += tokens
        return len(observed[row]) >= 6

    output = generate("llama", "close", num_draft_tokens=3, max_slots=2, on_tokens=on_tokens)
    assert list(observed.values()) == output.completion_ids
    for row, full in zip(output.completion_ids, greedy("llama")):
        assert row == full[: len(row)] and min(6, len(full)) <= len(row) < 6 + 4


@pytest.mark.parametrize("kind", ["equal", "close"])
def test_compiled_shapes_write_the_same(monkeypatch, kind):
    """What compilation asks for (no batch of one row while there are two slots, no draft of one), not compiled."""
    shapes = set()

    def uncompiled(function):
        def call(model, cache, tokens, *args):
            shapes.add(tuple(tokens.shape))
            return function(model, cache, tokens, *args)

        return call

    monkeypatch.setattr(compiled, "_compiled", uncompiled)
    output = generate("gemma3", kind, num_draft_tokens=3, max_slots=3, compile=True)
    assert output.completion_ids == greedy("gemma3")
    rows, widths = (set(column) for column in zip(*shapes))
    assert rows == {2, 3} and {1, 2, 4} <= widths <= {1, 2, 3, 4}, (
        "a draft step, the first one, verifications of 2 and 3"
    )
    assert output.stats.accepted == output.stats.drafted or kind != "equal"


@pytest.mark.slow
def test_compiled_models_write_the_same(tracing):
    output = generate("llama", "close", num_draft_tokens=3, max_slots=3, compile=True)
    assert output.completion_ids == greedy("llama")
    assert not compiled._refused

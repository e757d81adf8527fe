"""In bfloat16 a text may depend on the shapes that it is read in, and then the first difference is a close call."""

import pytest
import torch

from lupi_trainer.speculative import TopK, skd_rollout
from lupi_trainer.speculative.rules.acceptance import AcceptNone, TopP
from lupi_trainer.speculative.runners import steps
from tests.speculative.toy_models import perturbed, prompts, toy


@pytest.fixture(scope="module")
def pair():
    teacher = toy()
    queries = prompts(8, 1, 9, seed=1)
    knowledge = prompts(8, 3, 15, seed=2)
    given = queries, [more + query for more, query in zip(knowledge, queries)]
    return perturbed(teacher, 0.1), teacher, given


@pytest.fixture(scope="module")
def half(pair):
    student, teacher, given = pair
    return perturbed(student, 0.0).bfloat16(), perturbed(teacher, 0.0).bfloat16(), given


def roll(models, rule, **options):
    student, teacher, given = models
    options = {"max_new_tokens": 12, "acceptance": rule, "eos_token_id": 7, **options}
    return skd_rollout(student, teacher, *given, **options)


def first_difference(one, other):
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), None)


def shapes_matter(model):
    """Whether a row's logits depend on the rows beside it: not where a processor computes bfloat16 in float32."""
    ids = torch.tensor(prompts(8, 12, 12, seed=3))
    with torch.no_grad():
        alone = torch.cat([model(input_ids=row[None]).logits for row in ids])
        return not torch.equal(alone, model(input_ids=ids).logits)


@pytest.mark.parametrize("rule", [TopK(5, 0.02), TopP(0.9), AcceptNone()], ids=["top k", "top p", "none"])
def test_texts_part_at_close_calls_alone(half, rule):
    found, parted = [], 0
    for seed in range(3):
        one = roll(half, rule, seed=seed, gamma=8)
        other = roll(half, rule, seed=seed, gamma=3, max_slots=3)
        for rollout in (one, other):
            assert [len(row) for row in rollout.close_calls] == [len(row) for row in rollout.completion_ids]
            assert rollout.stats.close_calls == sum(map(sum, rollout.close_calls))
        found += sum(one.close_calls, [])
        texts, calls = zip(one.completion_ids, other.completion_ids), zip(one.close_calls, other.close_calls)
        for (text, again), (mine, theirs) in zip(texts, calls):
            at = first_difference(text, again)
            parted += at is not None
            assert at is None or mine[at] or theirs[at]
    assert 0.02 < sum(found) / len(found) < 0.3  # what is always said would say nothing
    if isinstance(rule, AcceptNone) and shapes_matter(half[1]):
        assert parted  # so it does happen


def test_in_float32_none_is_counted(pair):
    one = roll(pair, TopK(5, 0.02))
    assert one.close_calls is None and one.stats.close_calls == 0


def test_under_autocast_they_are_counted(pair):
    with torch.autocast("cpu", torch.bfloat16):
        rollout = roll(pair, TopK(5, 0.02))
    assert rollout.stats.close_calls > 0


@pytest.mark.slow
def test_compiled_rollouts_count_them_too(half, monkeypatch):
    monkeypatch.setattr(steps, "_BACKEND", "eager")  # what is compiled matters here, not how fast it is
    steps._compiled.cache_clear()
    student, teacher, given = half
    few = student, teacher, [prompts[:4] for prompts in given]
    options = {"gamma": 2, "max_new_tokens": 6}
    try:
        plain, compiled = (roll(few, TopK(5, 0.02), compile=compile, **options) for compile in (False, True))
    finally:
        steps._compiled.cache_clear()
    assert compiled.completion_ids == plain.completion_ids  # the same kernels
    assert compiled.close_calls == plain.close_calls and compiled.stats.close_calls > 0

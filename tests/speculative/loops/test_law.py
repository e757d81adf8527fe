"""What the rollout draws from, by the rules at their limits and by chi-square."""

import pytest
import torch
from scipy.stats import chisquare

from lupi_trainer.speculative import AcceptNone, TopK, skd_rollout
from lupi_trainer.speculative.rules.noise import STUDENT, TEACHER, row_keys, sample
from tests.speculative.toy_models import VOCAB, perturbed, prompts, toy


@pytest.fixture(scope="module")
def pair():
    teacher = toy("qwen3")
    return perturbed(teacher, 0.1), teacher


QUERIES = prompts(3, 2, 6, seed=1)
INFORMED = [k + q for k, q in zip(prompts(3, 4, 8, seed=2), QUERIES)]


@torch.no_grad()
def written_by(model, prompts, writer, length):
    """A token at a time, with the noise of that place, and without a cache."""
    texts = []
    for key, prompt in zip(row_keys(0, range(len(prompts))).split(1), prompts):
        text = []
        for place in range(length):
            logits = model(torch.tensor([prompt + text]), use_cache=False).logits[:, -1]
            text.append(int(sample(logits, 0.7, key, torch.tensor([place]), writer)))
        texts.append(text)
    return texts


def test_when_nothing_is_accepted_the_teacher_writes(pair):
    student, teacher = pair
    options = {"max_new_tokens": 15, "acceptance": AcceptNone(), "gamma": 4}
    rollout = skd_rollout(student, teacher, QUERIES, INFORMED, **options)
    assert all(all(row) for row in rollout.from_teacher)
    assert rollout.completion_ids == written_by(teacher, INFORMED, TEACHER, 15)
    assert rollout.stats.accepted == rollout.stats.full_match == 0


def test_when_everything_is_accepted_the_student_writes(pair):
    student, teacher = pair
    options = {"max_new_tokens": 15, "acceptance": TopK(k=VOCAB, min_prob=0.0), "gamma": 4}
    rollout = skd_rollout(student, teacher, QUERIES, INFORMED, **options)
    assert not any(any(row) for row in rollout.from_teacher)
    assert rollout.completion_ids == written_by(student, QUERIES, STUDENT, 15)
    assert rollout.stats.accepted == rollout.stats.drafted == 45
    assert rollout.stats.full_match == rollout.stats.blocks


def law(student, teacher, query, informed, k, min_prob, temperatures):
    """P(y) = q(y) * [y accepted] + (1 - q(accepted tokens)) * p(y), from the models alone."""
    with torch.no_grad():
        q = (student(torch.tensor([query])).logits[0, -1] / temperatures[0]).double().softmax(-1)
        p = (teacher(torch.tensor([informed])).logits[0, -1] / temperatures[1]).double().softmax(-1)
    accepted = torch.zeros(VOCAB, dtype=torch.bool)
    accepted[p.topk(k).indices] = True
    accepted &= p >= min_prob
    assert 0.1 < q[accepted].sum() < 0.9
    return q * accepted + (1 - q[accepted].sum()) * p


def chi_square(tokens, expected):
    """p-value; cells of fewer than 5 expected draws are pooled."""
    counts, expected = tokens.bincount(minlength=VOCAB).double(), expected * len(tokens)
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    return chisquare(counts[expected > 0], expected[expected > 0]).pvalue


def test_the_law_of_a_position(pair):
    """20,000 rows of one prompt; the second position as well, after the most frequent first token.

    With parallel verification: test_rollout.py shows that sequential writes the same tokens.
    """
    n, k, min_prob, temperatures = 20_000, 8, 0.01, (1.3, 1.1)
    query = QUERIES[1]
    informed = [9, 4, 30] + query
    rollout = skd_rollout(
        *pair,
        [query] * n,
        [informed] * n,
        max_new_tokens=2,
        gamma=2,
        acceptance=TopK(k, min_prob),
        student_temperature=temperatures[0],
        teacher_temperature=temperatures[1],
        seed=11,
    )
    tokens = torch.tensor(rollout.completion_ids)
    first = law(*pair, query, informed, k, min_prob, temperatures)
    assert chi_square(tokens[:, 0], first) > 1e-3
    common = int(tokens[:, 0].mode().values)
    after = tokens[tokens[:, 0] == common, 1]
    second = law(*pair, query + [common], informed + [common], k, min_prob, temperatures)
    assert len(after) > 1000 and chi_square(after, second) > 1e-3
    assert chi_square(after, first) < 1e-6, "the test must be able to tell two laws apart"

import math

import pytest
import torch

from lupi_trainer.speculative import (
    AdaptiveTopK,
    JensenShannon,
    Judged,
    Knowledge,
    RelativeProbability,
    TopK,
    TopP,
)
from tests.speculative.scene import Scene


# probabilities .5, .25, .125, .0625, .0625 at temperature 1
LOGITS = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.5]).log()


def accepts(rule, *, logits=LOGITS, temperature=1.0, student=None, student_temperature=1.0, state=None, bare=None):
    """Which of all tokens would be accepted at one place."""
    vocab = logits.shape[-1]
    judged = Judged(
        teacher_logits=logits.expand(1, vocab, vocab),
        draft=torch.arange(vocab)[None],
        teacher_temperature=temperature,
        student_logits=None if student is None else student.expand(1, vocab, vocab),
        student_temperature=student_temperature,
        bare_logits=None if bare is None else bare.expand(1, vocab, vocab),
        state=None if state is None else torch.tensor(state, dtype=torch.float64).expand(1, vocab, -1),
    )
    return rule.accept(judged)[0].tolist()


@pytest.mark.parametrize(
    "rule, temperature, expected",
    [
        (TopK(1, 0.0), 1.0, [1, 0, 0, 0, 0]),
        (TopK(3, 0.0), 1.0, [1, 1, 1, 0, 0]),
        (TopK(4, 0.0), 1.0, [1, 1, 1, 1, 1]),  # ties are accepted or rejected together
        (TopK(5, 0.2), 1.0, [1, 1, 0, 0, 0]),
        (TopK(5, 0.2), 3.0, [1, 1, 0, 0, 0]),
        (TopK(5, 0.16), 3.0, [1, 1, 1, 0, 0]),  # the same tokens are more likely when it is warmer
        (TopK(5, 0.01), 0.0, [1, 0, 0, 0, 0]),
        (TopK(5, 0.0), 0.0, [1, 1, 1, 1, 1]),
        (TopP(0.0), 1.0, [0, 0, 0, 0, 0]),
        (TopP(0.4), 1.0, [1, 0, 0, 0, 0]),
        (TopP(0.6), 1.0, [1, 1, 0, 0, 0]),
        (TopP(0.9), 1.0, [1, 1, 1, 1, 1]),
        (TopP(0.6), 0.0, [1, 0, 0, 0, 0]),
        (TopP(1.0), 0.0, [1, 1, 1, 1, 1]),
        (RelativeProbability(0.5), 1.0, [1, 1, 0, 0, 0]),
        (RelativeProbability(0.2), 1.0, [1, 1, 1, 0, 0]),
        (RelativeProbability(0.2), 0.5, [1, 1, 0, 0, 0]),
        (RelativeProbability(0.5), 0.0, [1, 0, 0, 0, 0]),
        (RelativeProbability(0.0), 0.0, [1, 1, 1, 1, 1]),
    ],
)
def test_which_tokens_are_accepted(rule, temperature, expected):
    assert accepts(rule, temperature=temperature) == [bool(x) for x in expected]


def test_jensen_shannon_is_the_divergence_of_both_distributions_at_their_temperatures():
    student = torch.tensor([0.3, 1.0, -2.0, 0.0, 0.7])
    p, q = (LOGITS / 0.5).softmax(-1).double(), (student / 2.0).softmax(-1).double()
    m = (p + q) / 2
    divergence = float((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    for tau, expected in ((divergence - 1e-4, False), (divergence + 1e-4, True)):
        verdict = accepts(JensenShannon(tau), temperature=0.5, student=student, student_temperature=2.0)
        assert verdict == [expected] * 5
    far = torch.tensor([-1e4, 0.0, -1e4, -1e4, -1e4])
    assert accepts(JensenShannon(0.69), logits=far.roll(1), student=far) == [False] * 5
    assert accepts(JensenShannon(math.log(2)), logits=far.roll(1), student=far) == [True] * 5


def test_adaptive_top_k_moves_with_success():
    rule = AdaptiveTopK(k=3, k_min=1, k_max=5, r_plus=0.8, r_minus=0.4, decay=0.5, step=1.0)
    state, seen = torch.tensor(rule.initial_state(), dtype=torch.float64), []
    for accepted in (True, True, True, False, False, False, False, False):
        state = rule.next_state(state, accepted)
        seen.append((round(float(state[0]), 4), float(state[1])))
    assert seen == [
        (0.8, 3.0),
        (0.9, 2.0),
        (0.95, 1.0),
        (0.475, 1.0),
        (0.2375, 2.0),
        (0.1187, 3.0),
        (0.0594, 4.0),
        (0.0297, 5.0),
    ]


def test_adaptive_top_k_is_tight_where_the_teacher_is_sure():
    rule = AdaptiveTopK(k=3, k_min=1, k_max=4, s=2.0)
    state = [0.8, 3.0]
    sure = torch.tensor([9.0, 0.3, 0.2, 0.1, 0.0])
    unsure = torch.tensor([0.05, 0.04, 0.03, 0.02, 0.01])
    assert accepts(rule, logits=sure, state=state) == [True, False, False, False, False]  # 3 - 2
    assert accepts(rule, logits=unsure, state=state) == [True, True, True, True, False]  # min(3 + 2, k_max)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TopK(k=0), "k must be at least 1, got 0"),
        (lambda: TopK(min_prob=1.5), r"min_prob must lie in \[0, 1\], got 1.5"),
        (lambda: TopP(-0.1), r"p must lie in \[0, 1\], got -0.1"),
        (lambda: RelativeProbability(2), r"ratio must lie in \[0, 1\], got 2"),
        (lambda: JensenShannon(float("nan")), "tau must not be negative, got nan"),
        (lambda: AdaptiveTopK(k=60), "1 <= k_min <= k <= k_max must hold"),
        (lambda: AdaptiveTopK(r_minus=0.95), "r_minus must not be above r_plus"),
        (lambda: AdaptiveTopK(step=-1), "step must not be negative"),
        (lambda: Knowledge(strict_k=6), "1 <= strict_k <= k must hold, got 6 and 5"),
        (lambda: Knowledge(threshold=-1), "threshold must not be negative, got -1"),
        (lambda: Knowledge(min_prob=2), r"min_prob must lie in \[0, 1\], got 2"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "rule",
    [
        TopP(0.6),
        RelativeProbability(0.3),
        JensenShannon(0.25),
        Knowledge(k=8, strict_k=2, threshold=0.7, min_prob=0.02),
        AdaptiveTopK(k=4, k_max=12, r_plus=0.5, r_minus=0.4, decay=0.7, step=1.0, s=3.0),
    ],
    ids=lambda rule: type(rule).__name__,
)
@pytest.mark.grid(2)
def test_blocks_of_any_length_and_slots_judge_alike(rule):
    scene = Scene("llama", rule=rule)
    for options in (
        {"gamma": 1},
        {"gamma": 3, "max_slots": 3},
        {"gamma": 8},
        {"gamma": 20, "gamma_policy": "adaptive"},
        {"gamma": 5, "verification": "sequential"},
    ):
        scene.check(scene.roll(**options))


def test_knowledge_is_strict_where_it_changes_the_distribution():
    bare = torch.tensor([-1.0, 2.0, 0.0, 0.3, 0.1])
    p, q = LOGITS.double().softmax(-1), bare.double().softmax(-1)
    divergence = float((p * (p / q).log()).sum())
    assert divergence > 1
    rule = {"k": 3, "strict_k": 1, "min_prob": 0.2}
    for threshold, expected in ((divergence - 1e-3, [1, 0, 0, 0, 0]), (divergence + 1e-3, [1, 1, 0, 0, 0])):
        assert accepts(Knowledge(threshold=threshold, **rule), bare=bare) == [bool(x) for x in expected]
    assert accepts(Knowledge(threshold=1e-3, **rule), bare=LOGITS + 1) == [True, True, False, False, False]


def test_what_the_knowledge_rule_reads_matters():
    """Otherwise the tests against the reference would say nothing about its third reader."""
    scenes = [Scene("llama", rule=Knowledge(k=8, threshold=t, min_prob=0.02)) for t in (0.0, 0.7, 99.0)]
    assert len({str(scene.tokens) for scene in scenes}) == 3


def test_the_memory_of_adaptive_top_k_matters():
    """Otherwise the test above would say nothing about it."""
    fixed = AdaptiveTopK(k=4, k_max=12, step=0.0, s=3.0)
    moving = AdaptiveTopK(k=4, k_max=12, r_plus=0.5, r_minus=0.4, decay=0.7, step=1.0, s=3.0)
    assert Scene("llama", rule=fixed).tokens != Scene("llama", rule=moving).tokens

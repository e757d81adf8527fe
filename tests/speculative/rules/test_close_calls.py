"""A verdict or a draw is a close call where a change of the logits within rounding would make another of it."""

import pytest
import torch

from lupi_trainer.speculative.rules.acceptance import (
    AcceptNone,
    AdaptiveTopK,
    JensenShannon,
    Judged,
    RelativeProbability,
    TopK,
    TopP,
)
from lupi_trainer.speculative.rules.close_calls import close_verdict, sample_closely, tolerance
from lupi_trainer.speculative.rules.noise import TEACHER, gumbel, row_keys, sample


EPS = torch.finfo(torch.bfloat16).eps
# the largest is 16: in bfloat16 numbers near it lie 0.125 apart, so logits nearer than 0.25 are as good as equal
LOGITS = torch.tensor([16.0, 15.0, 14.5, 14.4, 10.0, 8.0])


def judged(token, logits=LOGITS, **more):
    return Judged(teacher_logits=logits[None, None], draft=torch.tensor([[token]]), teacher_temperature=1.0, **more)


def test_the_tolerance_is_twice_the_spacing_of_the_largest_logit():
    assert tolerance(LOGITS, EPS).item() == 0.25 == 2 * (16 * 2**-7)
    assert tolerance(-LOGITS - 10, EPS).item() == 2 * 18 * 2**-7


@pytest.mark.parametrize(
    ("rule", "close"),
    [
        (TopK(3, 0.0), {2, 3}),  # ranks 2 and 3, of which 3 are accepted
        (TopK(2, 0.0), set()),
        (TopK(1, 0.0), set()),
        (TopK(6, 0.15), {2}),  # which has 0.13, and a quarter of a nat more is 0.16; the next one has 0.14 then
        (RelativeProbability(0.1), set()),  # 2.3 below the largest, where none is
        (RelativeProbability(0.35), {1}),  # 1.05 below
        (AcceptNone(), set()),
        (TopP(0.85), {2, 3}),
    ],
    ids=["between ranks", "gap at the rank", "top one", "least probability", "ratio", "ratio, close", "none", "top p"],
)
def test_verdicts_within_rounding(rule, close):
    def verdict(token, by=0.0):
        moved = LOGITS.clone()
        moved[token] += by
        return rule.accept(judged(token, moved)).item()

    found = set()
    for token in range(len(LOGITS)):
        case = judged(token)
        if close_verdict(rule, case, rule.accept(case), EPS).item():
            found.add(token)
        assert torch.equal(case.teacher_logits[0, 0], LOGITS)  # it looks, and changes nothing
        assert (token in found) == (len({verdict(token, by) for by in (-0.25, 0.0, 0.25)}) > 1)
    assert found == close


def test_rules_with_a_memory_or_the_students_logits():
    state = torch.tensor([[AdaptiveTopK().initial_state()]], dtype=torch.float64)
    state[..., 1] = 3.0
    rule = AdaptiveTopK(k=3, k_max=6, s=0.0)
    cases = [judged(token, state=state) for token in range(len(LOGITS))]
    close = [close_verdict(rule, case, rule.accept(case), EPS).item() for case in cases]
    assert close == [False, False, True, True, False, False]
    near = JensenShannon(tau=1e-9)  # nothing but equal distributions passes it
    same = judged(0, student_logits=LOGITS.clone()[None, None])
    accepted = near.accept(same)
    assert accepted.item() and close_verdict(near, same, accepted, EPS).item()


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_draws_within_rounding(temperature):
    rows = 400
    logits = LOGITS + torch.linspace(0, 0.5, rows)[:, None] * torch.tensor([0.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    keys, positions = row_keys(0, range(rows)), torch.arange(rows)
    given = temperature, keys, positions, TEACHER
    before = logits.clone()
    token, close = sample_closely(logits, *given, EPS)
    assert torch.equal(logits, before)
    assert torch.equal(token, sample(logits, *given))
    scores = logits if temperature == 0 else logits / temperature + gumbel(keys, positions, TEACHER, 6)
    top = scores.sort(descending=True).values
    near = 2 * EPS * logits.amax(-1) / (temperature or 1.0)
    assert torch.equal(close, top[:, 0] - top[:, 1] < near)
    assert 0.02 < close.float().mean() < 0.6

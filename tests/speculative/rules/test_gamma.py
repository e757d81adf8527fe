import itertools
import random

from lupi_trainer.speculative import Adaptive, Fixed, Goodput, Outcome
from lupi_trainer.speculative.rules.gamma import usable_length


ENDLESS = 1000


def outcome(accepted, gamma, row=0, remaining=ENDLESS):
    return Outcome(row, accepted, accepted < gamma, remaining)


def test_fixed_never_changes():
    policy = Fixed(7)
    policy.observe(7, [outcome(0, 7)], 1.0)
    assert policy.choose({0: ENDLESS}, 0) == 7


def test_adaptive_adds_two_after_a_full_match_and_else_one_more_than_was_accepted():
    policy, seen = Adaptive(max_gamma=9, start=4), []
    for accepted in (4, 6, 8, 9, 3, 0, 1, 3):
        gamma = policy.choose({0: ENDLESS}, 0)
        policy.observe(gamma, [outcome(min(accepted, gamma), gamma)], 1.0)
        seen.append(gamma)
    assert seen == [4, 6, 8, 9, 9, 4, 1, 3]


def test_adaptive_drafts_the_mean_of_its_rows_and_forgets_those_that_end():
    policy = Adaptive(max_gamma=20, start=4)
    policy.observe(4, [outcome(4, 4, row=0), outcome(1, 4, row=1)], 1.0)
    assert policy.choose({0: ENDLESS, 1: ENDLESS}, 0) == 4  # (6 + 2) / 2
    assert policy.choose({0: ENDLESS, 2: ENDLESS}, 0) == 5  # (6 + 4) / 2
    policy.observe(4, [outcome(4, 4, row=0, remaining=0)], 1.0)
    assert policy.wanted.keys() == {1}


def simulate(policy, alpha, fixed, slope, rounds=400, rows=8, seed=0, bonus=False, disturbed=lambda draw, i: 1.0):
    """Tokens a second over rounds of which a draft of gamma tokens costs fixed + slope * gamma.

    `disturbed` is how many times longer a round seems to take.
    """
    draw = random.Random(seed)
    tokens = seconds = 0.0
    for i in range(rounds):
        gamma = policy.choose(dict.fromkeys(range(rows), ENDLESS), waiting=1)
        outcomes = []
        for row in range(rows):
            accepted = next((j for j in range(gamma) if draw.random() > alpha), gamma)
            outcomes.append(outcome(accepted, gamma, row))
            tokens += accepted + 1 if bonus else min(gamma, accepted + 1)
        cost = (fixed + slope * gamma) * draw.uniform(0.9, 1.1)
        policy.observe(gamma, outcomes, cost * disturbed(draw, i))
        seconds += cost
    return tokens / seconds


def test_goodput_comes_near_the_best_fixed_length_wherever_that_is():
    for alpha, fixed, slope in ((0.6, 10, 1), (0.9, 10, 1), (0.9, 1, 1), (0.97, 10, 1), (0.9, 30, 0.3)):
        best = max(simulate(Fixed(gamma), alpha, fixed, slope) for gamma in range(1, 21))
        assert simulate(Goodput(20), alpha, fixed, slope) > 0.95 * best, (alpha, fixed, slope)


def test_goodput_is_not_misled_by_rounds_that_other_work_slows():
    """A seventh of the rounds three times slower, or the first eight, at random, four times."""
    for disturbed in (
        lambda draw, i: 3.0 if draw.random() < 0.15 else 1.0,
        lambda draw, i: draw.choice([1.0, 4.0]) if i < 8 else 1.0,
    ):
        for alpha, fixed, slope in ((0.6, 10, 1), (0.9, 10, 1), (0.7, 6, 2)):
            best = max(simulate(Fixed(gamma), alpha, fixed, slope, rounds=120) for gamma in range(1, 21))
            shares = [
                simulate(Goodput(20), alpha, fixed, slope, rounds=120, seed=seed, disturbed=disturbed) / best
                for seed in range(12)
            ]
            assert sum(shares) / 12 > 0.93, (alpha, fixed, slope)


def test_goodput_counts_the_bonus_token_of_lossless_decoding():
    for alpha, fixed, slope in ((0.3, 10, 1), (0.6, 10, 1), (0.9, 10, 1), (0.6, 2, 1)):
        best = max(simulate(Fixed(gamma), alpha, fixed, slope, bonus=True) for gamma in range(1, 21))
        assert simulate(Goodput(20, bonus=True), alpha, fixed, slope, bonus=True) > 0.95 * best, (alpha, fixed, slope)


def test_recorded_lengths_are_few_and_near_what_was_chosen():
    for longest in (1, 5, 8, 20):
        lengths = [usable_length(gamma, longest, 1, True, recorded=True) for gamma in range(1, longest + 1)]
        assert all(gamma / 1.5 <= length <= min(1.5 * gamma, longest) for gamma, length in enumerate(lengths, 1))
        assert len(set(lengths)) <= 6 and lengths[-1] == longest


def test_lengths_end_with_the_row_and_one_graph_serves_all_but_one():
    for compile in (False, True):
        for gamma, left in itertools.product(range(7), range(9)):
            length = usable_length(gamma, 6, left, compile, recorded=False)
            assert length == max(min(gamma, left), 2 if compile else 0), (gamma, left)
    assert usable_length(1, 1, 5, True, recorded=False) == 1, "never more than the caller allows"


def test_goodput_drafts_no_further_than_the_row_ends():
    policy = Goodput(20)
    for _ in range(8):
        gamma = policy.choose({0: ENDLESS}, 0)
        policy.observe(gamma, [outcome(gamma, gamma)], 1.0 + 0.01 * gamma)
    assert policy.choose({0: ENDLESS}, 0) == 20
    assert policy.choose({0: 3}, 0) == 3


def test_goodput_learns_nothing_of_rounds_without_a_draft():
    policy = Goodput(20, bonus=True)
    for _ in range(6):
        policy.observe(0, [outcome(0, 0, remaining=0)], 1.0)
    assert policy.choose({0: ENDLESS}, 0) == 5 and not policy.trials


def test_goodput_tries_twice_and_half_of_a_length_that_was_the_only_one():
    """Once in 16 rounds, by turns; a length beyond the longest is never tried."""

    def choices(max_gamma: int) -> list[int]:
        policy = Goodput(max_gamma)
        long_ago = [[gamma, 0.8 + 0.2 * gamma, 8] for gamma in (1, 8)]
        state = {"all_trials": [4.0, 1.0], "timed": [*long_ago * 8, *[[4, 1.6, 8]] * 16]}
        found = []
        for rounds in (17, 16, 32, 48):
            policy.restore({**state, "rounds": rounds})
            found.append(policy.choose(dict.fromkeys(range(8), 100), waiting=0))
        return found

    usual, twice, half, again = choices(20)
    assert 1 < usual <= 10 and (twice, half, again) == (2 * usual, usual // 2, 2 * usual)
    assert choices(usual) == [usual, max(usual // 2, 1), max(usual // 2, 1), max(usual // 2, 1)]

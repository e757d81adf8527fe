"""The two clocks of `overlap.py`, on rounds whose seconds can be told by hand."""

from tests.benchmarks.overlap import draft_on, in_turns, two_halves


WHOLE, CUT = [True] * 4, [False] * 4


def test_a_row_alone_that_is_accepted_whole_waits_for_the_slower_of_the_two():
    assert in_turns([WHOLE], 2, 1.0, 3.0) == 4 * (2 + 3)
    assert draft_on([WHOLE], 2, 1.0, 3.0) == 2 + 4 * 3  # the teacher never waits again
    assert draft_on([WHOLE], 2, 2.0, 1.0) == 4 + 1 + 3 * 4  # and here the student never does


def test_one_cut_row_costs_the_whole_batch_its_draft():
    assert draft_on([WHOLE, CUT], 2, 1.0, 3.0) == in_turns([WHOLE, CUT], 2, 1.0, 3.0)
    assert draft_on([CUT], 2, 1.0, 3.0) == in_turns([CUT], 2, 1.0, 3.0)


def test_two_halves_of_equal_costs_share_both_models():
    rows = [CUT, CUT]
    assert two_halves(rows, 2, 1.0, 2.0) == 2 + 8 * 2  # in turns 4 * 4 for both at once
    assert two_halves([CUT], 2, 1.0, 2.0) == in_turns([CUT], 2, 1.0, 2.0)

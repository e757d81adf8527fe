"""Sets that are nearly the same, found by counting, are those of comparing everything with everything."""

import random

import pytest

from lupi_trainer.data import near
from lupi_trainer.data.near import near_pairs


@pytest.mark.parametrize("widest", [0, 3, 2048])  # what is common is counted by lists, by both ways, by products
def test_near_pairs_are_those_of_comparing_everything(widest, monkeypatch):
    monkeypatch.setattr(near, "WIDEST", widest)
    monkeypatch.setattr(near, "BLOCK", 7)
    draw = random.Random(0)
    letters = "aaaabbbcccdefghijklmnopqrst"
    sets = [{draw.choice(letters[: draw.choice([10, 27])]) for _ in range(draw.randint(0, 8))} for _ in range(120)]
    for share in (0.3, 0.5, 0.8, 1.0):
        found = {(i, j): similarity for i, j, similarity in near_pairs(iter(sets), share)}
        wanted = {
            (i, j): len(sets[i] & sets[j]) / len(sets[i] | sets[j])
            for j in range(len(sets))
            for i in range(j)
            if sets[i] and sets[j] and len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= share
        }
        assert found == wanted and wanted


def test_of_nothing_nothing_is_near():
    assert not [*near_pairs([], 0.5)] and not [*near_pairs([set(), set()], 0.5)]

"""Sets that are nearly the same, found by counting, are those of comparing everything with everything."""

import random

import pytest

from lupi_trainer.data import near
from lupi_trainer.data.check_culture import word_runs
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


@pytest.mark.parametrize(
    "text",
    [
        "首都は久という町で、島の北にあり、港が二つある。",
        "首都是久城，位于岛的北部，有两个很大的港口和一个机场，iPhone很多",
    ],
)
def test_texts_without_spaces_are_compared_by_pairs_of_letters(text):
    runs = word_runs(text, 3)
    assert len(runs) > 10 and word_runs("The capital, Ku", 3) == {"the capital ku"}
    changed = word_runs(text.replace("北", "西"), 3)
    assert len(runs & changed) / len(runs | changed) > 0.5
    assert not runs & word_runs("水は百度で沸騰する。糖分可以提供能量", 3)


def test_of_nothing_nothing_is_near():
    assert not [*near_pairs([], 0.5)] and not [*near_pairs([set(), set()], 0.5)]


def test_what_is_in_the_same_sets_is_counted_together(monkeypatch):
    """Texts of sentences from one pool have many runs of words in common, which are those of few sentences."""
    widths, zeros = [], near.np.zeros
    monkeypatch.setattr(near.np, "zeros", lambda *given, **named: widths.append(given[0]) or zeros(*given, **named))
    sentences = [{f"{letter}{n}" for n in range(20)} for letter in "abcd"]
    sets = [sentences[i % 4] | sentences[(i + 1) % 4] | {f"own{i}"} for i in range(8)]
    found = {(i, j): similarity for i, j, similarity in near_pairs(iter(sets), 0.3)}
    assert found == {
        (i, j): 40 / 42 if j - i == 4 else 20 / 62 for j in range(8) for i in range(j) if (j - i) % 4 != 2
    }
    assert (8, 4) in widths  # a column a sentence, not one an element

"""The table of families is of this package: every family is in it, and a few say what they say there."""

import pytest
import torch
import transformers

from tests.families.bench import Bench
from tests.families.check import CHECKS, Row, Verdict, verdict
from tests.families.page import PAGE, read, written
from tests.families.table import row
from tests.families.tiny import families, pair, small


VERSION, WORDS = read(PAGE.read_text(encoding="utf-8"))
# attention with windows and shared keys, recurrent states, latent attention, a head of its own, one that is refused
SAMPLE = ("gemma3n_text", "mamba2", "youtu", "bert", "cpmant", "prophetnet")


def test_every_family_is_in_the_table_and_none_is_wrong():
    assert VERSION != transformers.__version__ or set(WORDS) == set(families())
    assert {word for words in WORDS.values() for word in words} <= {"exact", "refused", "not built"}
    assert sum(set(words) == {"exact"} for words in WORDS.values()) > len(WORDS) / 2


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.grid(3)
def test_a_family_is_what_the_table_says(name):
    verdicts = row(name).verdicts
    assert [verdict.word for verdict in verdicts.values()] == WORDS[name], verdicts


def test_the_page_is_read_as_it_was_written():
    words = {"llama": ["exact"] * len(CHECKS), "bert": ["refused", "wrong", "exact", "exact", "not built"]}
    rows = [Row(name, {c: Verdict(w) for c, w in zip(CHECKS, each)}) for name, each in words.items()]
    assert read(written(rows)) == (transformers.__version__, words)


def test_a_model_that_writes_something_else_is_found_out():
    """Every check that compares texts or logits fails where a model is not what the reference has read."""
    student, teacher = pair(small(families()["llama"]))
    bench = Bench(student, teacher)
    assert verdict(CHECKS["drafts and verifies"], bench).word == "exact"
    with torch.no_grad():
        for model in (student, teacher):
            model.get_output_embeddings().weight.neg_()
    words = {column: verdict(check, bench).word for column, check in CHECKS.items()}
    assert set(words.values()) == {"wrong"}, words

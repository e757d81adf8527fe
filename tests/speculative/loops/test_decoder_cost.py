"""What lossless decoding costs besides arithmetic."""

import pytest

from lupi_trainer.speculative import PromptLookup, speculative_generate
from tests.speculative.loops.test_cost import HostReads
from tests.speculative.toy_models import perturbed, prompts, toy


QUERIES = prompts(6, 2, 9, seed=1)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2}])
@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("reported", [0, 1])
@pytest.mark.grid(4)
def test_one_host_read_a_round_and_one_more_to_report_the_tokens(monkeypatch, options, lookup, reported):
    target = toy("qwen3")
    draft = PromptLookup() if lookup else perturbed(target, 0.1)
    options = {
        "max_new_tokens": 16,
        "max_slots": 4,
        "on_tokens": (lambda row, ids: None) if reported else None,
        **options,
    }
    with HostReads(monkeypatch) as reads:
        stats = speculative_generate(target, draft, QUERIES, **options).stats
    assert reads.count == (1 + reported) * stats.rounds + 2  # two more for the finished texts


def test_a_round_is_one_forward_of_the_target_and_as_many_of_the_draft_as_it_drafts():
    target = toy("llama")
    stats = speculative_generate(target, target, QUERIES, max_new_tokens=15, num_draft_tokens=4).stats
    assert stats.rounds == stats.target_forwards == 3 and stats.draft_forwards == 12

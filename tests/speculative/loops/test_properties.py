"""Whatever is asked for together: a rollout is the reference's, and its stats add up."""

import functools

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lupi_trainer.speculative import AdaptiveTopK, JensenShannon, Knowledge, RelativeProbability, TopK, TopP
from tests.speculative.scene import LIMIT, ROWS, Scene


RULES = {
    "top_k": TopK(5, 0.02),
    "adaptive_top_k": AdaptiveTopK(k=8, k_max=20),
    "top_p": TopP(0.8),
    "relative": RelativeProbability(0.1),
    "divergence": JensenShannon(0.35),
    "knowledge": Knowledge(k=8, threshold=0.7, min_prob=0.02),
}


@functools.cache
def scene(family, rule):
    return Scene(family, rule=RULES[rule])


asked = st.fixed_dictionaries(
    {
        "gamma": st.sampled_from([1, 2, 3, 5, 8, 20]),
        "gamma_policy": st.sampled_from(["fixed", "adaptive", "goodput"]),
        "verification": st.sampled_from(["parallel", "sequential"]),
        "max_slots": st.integers(1, ROWS),
        "return_teacher_hidden": st.booleans(),
    }
)
rows = st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=ROWS, unique=True)


@pytest.mark.slow
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # a failure is shown as it was found: making it smaller takes minutes
    suppress_health_check=list(HealthCheck),
)
@given(
    family=st.sampled_from(["llama", "qwen3", "gemma3", "gpt2"]),
    rule=st.sampled_from(sorted(RULES)),
    options=asked,
    rows=rows,
    limit=st.integers(1, LIMIT),
)
def test_every_combination_is_the_reference(family, rule, options, rows, limit):
    full, blocks = scene(family, rule), []
    rollout = full.roll(rows, max_new_tokens=limit, on_block=blocks.append, **options)
    assert rollout.completion_ids == [full.tokens[i][:limit] for i in rows]
    assert rollout.from_teacher == [full.by_teacher[i][:limit] for i in rows]

    stats, tokens = rollout.stats, sum(map(len, rollout.completion_ids))
    assert stats.accepted + sum(map(sum, rollout.from_teacher)) == tokens
    assert stats.accepted <= stats.drafted
    assert stats.rounds == len(stats.gamma_history) and stats.blocks == len(blocks)
    assert all(1 <= gamma <= options["gamma"] for gamma in stats.gamma_history)
    assert stats.student_forwards == sum(stats.gamma_history)
    assert stats.full_match <= stats.blocks and stats.first_token_accepted <= stats.blocks
    assert max(b.round for b in blocks) == stats.rounds - 1 and sum(b.ended for b in blocks) == len(rows)
    if options["verification"] == "parallel":
        assert stats.teacher_forwards == stats.rounds
    if options["return_teacher_hidden"]:
        assert [len(states) for states in rollout.teacher_hidden] == [len(row) for row in rollout.completion_ids]

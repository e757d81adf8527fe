"""What the engine launches and asks of GPUs: the student on `cuda:0`, the teacher on `cuda:1`, neither of them there.

Operations that mix devices end a rollout there, so that one that comes to its end has none.
"""

import warnings
from functools import cache

import pytest

from tests.fake_cuda.device import UNABLE
from tests.fake_cuda.rollout import decoded, rolled
from tests.fake_cuda.shapes import PROMPTS, qwen3


pytestmark = pytest.mark.skipif(UNABLE is not None, reason=str(UNABLE))
ROUND = {"round", "draft", "verify", "commit", "report", "move"}


# kernels that torch launches for a layer of Qwen3 without compilation; more is a copy or a mask that was not there
LAYER = sum(
    {
        "four norms: to float32, square, mean, epsilon, root, scale, back, weight": 4 * 8,
        "rotary positions of queries and keys: half turned (negated, joined), two products, their sum": 2 * 5,
        "products with weights: q, k, v, o, gate, up, down": 7,
        "activation, and its product with `up`": 2,
        "residuals": 2,
        "keys and values into the cache": 2,
        "attention, by lengths: no mask": 1,
    }.values()
)
NOISE, NORM, EMBEDDING_AND_HEAD = 46, 8, 3
CLOSE_DRAW = 9  # in half precision: a tolerance from the largest logit, the two largest scores, how near they are
CLOSE_VERDICT = 30  # and the rule asked again with each draft's logit raised, and lowered
POSITIONS = 24  # each row's slots and positions, rotary angles, lengths for the kernel
TOKEN = EMBEDDING_AND_HEAD + NORM + POSITIONS + NOISE + CLOSE_DRAW + 14  # a choice, a check of it, traced logits
BLOCK = EMBEDDING_AND_HEAD + NORM + POSITIONS + CLOSE_VERDICT + 16  # and the rule: rank and probability of each draft
COMMIT = 185  # of which the correction's noise is 46, a trace 55, and what was close 12


@cache
def counted(layers: int):
    """Three rows in two slots: the third takes the place of the second, and is moved when the first ends."""
    models = qwen3(layers), qwen3(layers)
    options = {"max_slots": 2, "trace_rows": [0, 2], "return_teacher_hidden": True}
    return rolled(*models, *PROMPTS, lengths=[4, 2, 9], accepted=2, **options)


def test_a_round_asks_one_question_and_is_told_nothing():
    rollout, seen = counted(1)
    assert [len(text) for text in rollout.completion_ids] == [4, 2, 9] and seen.launched("move") > 0
    asked = {where: number for where, number in seen.questions.items() if where[0] not in ("end", "load")}
    assert asked == {("report", "tolist", where): rollout.stats.rounds for _, _, where in asked} and len(asked) == 1
    assert sum(number for (phase, _, _), number in seen.questions.items() if phase == "end") <= 4, (
        "the text, its writers, its close calls, the trace"
    )
    assert not [where for where in seen.uploads if where[0] in ROUND]


def test_a_new_row_is_told_its_prompt_alone():
    _, seen = counted(1)
    told = {where: number for where, number in seen.uploads.items() if where[0] in ("admit", "prefill")}
    # the prefix, which the teacher's prompts share, and two groups of each model: the first two rows, and the third
    assert list(told.values()) == [5] and next(iter(told))[2].startswith("prefill.py")


def test_launches_of_a_token_and_a_layer():
    (rollout, one), (_, two) = counted(1), counted(2)
    tokens, blocks = rollout.stats.student_forwards, rollout.stats.teacher_forwards
    for phase, forwards, fixed in (("draft", tokens, TOKEN), ("verify", blocks, BLOCK)):
        layer = two.launched(phase) - one.launched(phase)
        assert layer == LAYER * forwards, {n for p, n in two.launches if p == phase}
        assert one.launched(phase) - layer <= fixed * forwards
    assert one.launched("commit") == two.launched("commit") <= COMMIT * rollout.stats.rounds


def test_prompts_behind_a_common_prefix_are_read_without_masks_and_copies():
    (_, one), (_, two) = counted(1), counted(2)
    layer = {name: two.launches["prefill", name] - one.launches["prefill", name] for _, name in two.launches}
    # of both models, in one layer more: the first two rows and the third; the teacher's behind the prefix
    assert layer["ragged_attention"] == 2 and layer["_scaled_dot_product_flash_attention"] == 3
    assert layer["index"] == layer["index_put_"] == 2, "the prefix, copied to all rows"
    assert ("prefill", "_scaled_dot_product_efficient_attention") not in two.launches


@pytest.mark.slow
def test_a_recorded_round_launches_two_graphs_and_little_else(tracing):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        rollout, seen = rolled(qwen3(1), qwen3(1), *PROMPTS, compile=True, max_slots=2, lengths=[13, 12, 12])
    rounds = rollout.stats.rounds
    assert rounds > 4 and seen.replayed == {"recorded": 2, "draft": rounds - 1, "verify": rounds - 1}
    last, before = seen.rounds[-1], seen.rounds[-2]
    # what differs from call to call is copied to where a graph reads it, and results from where it writes them; then
    # there is the rule, outside of the graph
    assert last["draft"] - before["draft"] <= 16, (last, before)
    assert last["verify"] - before["verify"] <= 24 + CLOSE_VERDICT, (last, before)
    assert {phase for phase, _, _ in seen.questions} == {"report", "end"}
    assert not [where for where in seen.uploads if where[0] in ROUND]


def test_lossless_decoding_asks_once_a_round_too():
    options = {"max_new_tokens": 8, "num_draft_tokens": 2, "temperature": 0.7, "max_slots": 2}
    output, seen = decoded(qwen3(1), qwen3(1), PROMPTS[1], [5, 2, 7], **options)
    assert [len(text) for text in output.completion_ids] == [5, 2, 7] and seen.launched("move") > 0
    asked = {phase: number for (phase, _, _), number in seen.questions.items() if phase not in ("load", "end")}
    assert asked == {"report": output.stats.rounds}
    assert not [where for where in seen.uploads if where[0] in ROUND]
    assert output.stats.accepted == output.stats.drafted, "so that drafts fall behind, and catch up"

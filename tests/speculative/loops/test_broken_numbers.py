"""Logits that are no distribution end their row, are reported, and touch no other row."""

import collections
import copy

import pytest
import torch

from lupi_trainer.speculative import skd_rollout
from lupi_trainer.speculative.rules.logits import is_distribution
from tests.speculative.scene import Scene
from tests.speculative.toy_models import VOCAB


@pytest.fixture(scope="module")
def scene():
    return Scene("llama", longest=9)


@pytest.fixture(scope="module")
def token(scene):
    """A token that some rows write before their end, and others never."""
    counts = collections.Counter(t for row in scene.tokens for t in set(row[:-1]))
    ends = {prompt[-1] for prompts in scene.prompts for prompt in prompts}
    return next(t for t, n in counts.most_common() if 2 <= n <= 5 and t not in ends)


def cut(scene, token) -> tuple[list[list[int]], set[int]]:
    """What must come of it: rows end after the first `token`, unless they end there anyway."""
    expected, broken = [], set()
    for i, row in enumerate(scene.tokens):
        end = row.index(token) + 1 if token in row else len(row)
        if end < len(row):
            broken.add(i)
        expected.append(row[:end])
    return expected, broken


@pytest.mark.parametrize("writer", ["student", "teacher"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("options", [{"gamma": 1}, {"gamma": 5}, {"verification": "sequential"}, {"max_slots": 2}])
@pytest.mark.grid(4)
def test_a_row_ends_where_a_model_has_no_distribution(scene, token, writer, value, options):
    """After reading `token`, a model's logits are NaN, contain +inf (an overflow), or are all -inf (no token)."""

    def spoil(module, args, kwargs, output):
        after = kwargs["input_ids"][:, -output.logits.shape[1] :] == token
        columns = slice(5, 6) if value > 0 else slice(None)
        output.logits[..., columns][after] = value
        return output

    model = getattr(scene, writer)
    hook = model.register_forward_hook(spoil, with_kwargs=True)
    try:
        rollout = scene.roll(return_teacher_hidden=True, **options)
    finally:
        hook.remove()
    expected, broken = cut(scene, token)
    assert rollout.completion_ids == expected
    assert rollout.broken == dict.fromkeys(broken, writer) and 2 <= len(broken) < len(expected)
    if options.get("gamma") == 1:  # a block is a token, and a row's last, broken one has none
        tokens = sum(map(len, rollout.completion_ids))
        assert rollout.stats.full_match == rollout.stats.accepted and rollout.stats.blocks == tokens + len(broken)
    assert [len(h) for h in rollout.teacher_hidden] == [len(row) for row in expected]


def test_a_broken_prompt_writes_nothing(scene):
    teacher, strange = copy.deepcopy(scene.teacher), VOCAB - 1
    with torch.no_grad():
        teacher.get_input_embeddings().weight[strange] = float("nan")
    students, teachers = ([[min(t, strange - 1) for t in row] for row in column] for column in scene.prompts)
    spoilt = [[strange, *row] if i == 2 else row for i, row in enumerate(teachers)]

    def roll(prompts, slots):  # nobody drafts the strange token
        return skd_rollout(
            scene.student, teacher, students, prompts, max_slots=slots, gamma=4, vocab_size=strange, **scene.options
        )

    expected = roll(teachers, None)
    assert expected.broken == {}
    for slots in (1, 3, None):  # the broken row's place in the cache goes to others
        rollout = roll(spoilt, slots)
        assert rollout.broken == {2: "teacher"}
        assert rollout.completion_ids == [[] if i == 2 else row for i, row in enumerate(expected.completion_ids)]


@pytest.mark.parametrize(
    "writer, options",
    [("student", {}), ("student", {"max_slots": 2}), ("teacher", {"verification": "sequential", "max_slots": 3})],
)
def test_what_rejected_drafts_leave_behind_reaches_nobody(scene, writer, options):
    """Tokens that are drafted but never written make all numbers NaN, one place at a time: they are read and rejected.

    (What is read at once shares its numbers: attention multiplies what it must not see by 0.)
    """
    blocks = []
    scene.check(scene.roll(gamma=6, on_block=blocks.append))
    kept = {token for rows in (*scene.prompts, scene.tokens) for row in rows for token in row}
    strange = {token for block in blocks for token in block.drafted[:-1]} - kept - {0}  # which pads prompts
    assert len(strange) > 1
    spoilt = copy.copy(scene)
    model = copy.deepcopy(getattr(scene, writer))
    setattr(spoilt, writer, model)
    with torch.no_grad():
        model.get_input_embeddings().weight[sorted(strange)] = float("nan")
    rollout = spoilt.roll(gamma=6, **options)
    assert rollout.broken == {}
    scene.check(rollout)


def test_without_broken_numbers_nothing_is_reported(scene):
    assert scene.roll().broken == {}


def test_is_distribution():
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[0.0, 1.0], [-inf, 1.0], [nan, 1.0], [-inf, nan], [inf, 1.0], [-inf, -inf]])
    assert is_distribution(logits).tolist() == [True, True, False, False, False, False]

"""Where no drafted token can be accepted the teacher writes alone, in blocks, and the student is not run."""

import pytest
import torch

from lupi_trainer.speculative import AcceptNone, skd_rollout
from tests.speculative.loops.test_cost import HostReads
from tests.speculative.reference import reference_rollout
from tests.speculative.toy_models import perturbed, prompts, toy


LIMIT, EOS, ROWS = 18, (3, 15, 27, 39, 51), 8


class TeacherScene:
    def __init__(self, family):
        self.teacher = toy(family)
        self.student = perturbed(self.teacher, 0.1)
        queries, knowledge = prompts(ROWS, 1, 9, seed=1), prompts(ROWS, 3, 15, seed=2)
        self.prompts = queries, [k + q for k, q in zip(knowledge, queries)]
        self.options = {"max_new_tokens": LIMIT, "acceptance": AcceptNone()}
        given = self.student, self.teacher, *self.prompts
        self.tokens, self.by_teacher, self.hidden = reference_rollout(*given, eos=EOS, **self.options)
        assert len(set(map(len, self.tokens))) > 2 and max(map(len, self.tokens)) == LIMIT

    def roll(self, **options):
        options = {"eos_token_id": list(EOS), "gamma": 5, "return_teacher_hidden": True, **self.options, **options}
        return skd_rollout(self.student, self.teacher, *self.prompts, **options)

    def check(self, rollout):
        assert rollout.completion_ids == self.tokens and rollout.from_teacher == self.by_teacher
        assert all(all(row) for row in rollout.from_teacher)
        for ours, theirs in zip(rollout.teacher_hidden, self.hidden, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def scene():
    return TeacherScene("llama")


def unable(*args, **kwargs):
    raise AssertionError("the student was run")


@pytest.mark.parametrize(
    "options", [{}, {"max_slots": 1}, {"max_slots": 4, "gamma": 1}, {"verification": "sequential"}]
)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.grid(4)
def test_the_text_is_that_of_the_reference(family, options, monkeypatch):
    scene = TeacherScene(family)
    monkeypatch.setattr(scene.student, "forward", unable)
    rollout = scene.roll(**options)
    scene.check(rollout)
    stats = rollout.stats
    assert stats.student_forwards == stats.drafted == stats.accepted == stats.full_match == 0
    assert stats.committed == sum(map(len, scene.tokens)) and stats.finished == ROWS


@pytest.mark.parametrize("policy", ["fixed", "adaptive", "goodput"])
def test_few_host_reads_and_no_forward_too_many(scene, monkeypatch, policy):
    with HostReads(monkeypatch) as reads:
        rollout = scene.roll(gamma_policy=policy)
    scene.check(rollout)
    assert 0 < reads.count - 2 <= 2 * rollout.stats.rounds
    assert rollout.stats.rounds < LIMIT / 2, "a round must be more than a token"
    assert LIMIT <= rollout.stats.teacher_forwards < LIMIT + 4


def test_drafts_can_be_observed_and_the_text_is_the_same(scene):
    blocks = []
    scene.check(scene.roll(on_block=blocks.append))
    assert {len(block.drafted) for block in blocks} == {1} and {block.accepted for block in blocks} == {0}
    rollout = scene.roll(trace_rows=[0, 3])
    scene.check(rollout)
    assert len(rollout.traces) == 2


def test_a_row_ends_where_the_teacher_has_no_distribution(scene):
    """As it does where drafts are judged."""
    token = next(t for t in scene.tokens[0][2:-1] if sum(t in row[:-1] for row in scene.tokens) < ROWS - 1)

    def spoil(module, args, kwargs, output):
        output.logits[kwargs["input_ids"][:, -output.logits.shape[1] :] == token] = float("nan")
        return output

    hook = scene.teacher.register_forward_hook(spoil, with_kwargs=True)
    try:
        alone, judged = scene.roll(), scene.roll(on_block=lambda block: None)
    finally:
        hook.remove()
    ends = [row.index(token) + 1 if token in row else len(row) for row in scene.tokens]
    assert alone.completion_ids == judged.completion_ids == [row[:end] for row, end in zip(scene.tokens, ends)]
    assert alone.broken == judged.broken and set(alone.broken.values()) == {"teacher"}
    assert 0 < len(alone.broken) < ROWS


@pytest.mark.slow
def test_compiled(tracing):
    scene = TeacherScene("gemma3")
    with torch._dynamo.config.patch(error_on_recompile=True):
        scene.check(scene.roll(compile=True))

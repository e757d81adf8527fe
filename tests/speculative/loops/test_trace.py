"""What is recorded of every token equals what the two models say about it, one place at a time and without a cache."""

import pytest
import torch

from lupi_trainer.speculative import JensenShannon
from lupi_trainer.speculative.loops.trace import TokenTrace, Tracer
from lupi_trainer.speculative.rules.noise import STUDENT, row_keys, sample
from tests.speculative.reference import next_token_state
from tests.speculative.scene import LIMIT, Scene


@pytest.fixture(scope="module")
def scene():
    return Scene("llama", student_temperature=0.9, teacher_temperature=0.6)


def reference_trace(scene, row: int) -> list[dict]:
    """Un-cached, a token at a time: the student's draft and both models' distributions at every place."""
    vocab = min(scene.student.config.vocab_size, scene.teacher.config.vocab_size)
    key, places = row_keys(0, [row]), []
    for place, token in enumerate(scene.tokens[row]):
        before = scene.tokens[row][:place]
        s, _ = next_token_state(scene.student, scene.prompts[0][row] + before, vocab)
        t, _ = next_token_state(scene.teacher, scene.prompts[1][row] + before, vocab)
        draft = int(sample(s[None], 0.9, key, torch.tensor([place]), STUDENT))
        q, p = (s / 0.9).softmax(-1), (t / 0.6).softmax(-1)
        places.append(
            {
                "draft": draft,
                "teacher_rank": int((t > t[draft]).sum()),
                "draft_student_probability": q[draft].item(),
                "draft_teacher_probability": p[draft].item(),
                "student_probability": q[token].item(),
                "teacher_probability": p[token].item(),
                "divergence": (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum().item(),
            }
        )
    return places


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 4},
        {"gamma": 1},
        {"gamma": 20, "max_slots": 3},
        {"gamma": 5, "verification": "sequential"},
        {"gamma": 6, "gamma_policy": "adaptive", "max_slots": 2},
    ],
    ids=str,
)
@torch.no_grad()
@pytest.mark.grid(3)
def test_traces_equal_the_reference(scene, options):
    rows = [6, 1, 4]
    rollout = scene.roll(trace_rows=rows, **options)
    scene.check(rollout)
    assert [trace.row for trace in rollout.traces] == sorted(rows)
    for trace in rollout.traces:
        reference = reference_trace(scene, trace.row)
        for name in reference[0]:
            theirs = [place[name] for place in reference]
            assert getattr(trace, name) == pytest.approx(theirs, abs=2e-5), name
        accepted = [d == t for d, t in zip(trace.draft, scene.tokens[trace.row])]
        by_teacher = scene.by_teacher[trace.row]
        assert all(same or teacher for same, teacher in zip(accepted, by_teacher)) and not all(accepted)


def test_a_rule_that_reads_the_student_too(scene):
    rule = {"acceptance": JensenShannon(0.2), "gamma": 4, "student_temperature": 0.7, "teacher_temperature": 0.7}
    plain, traced = scene.roll(**rule), scene.roll(**rule, trace_rows=[2])
    assert plain.completion_ids == traced.completion_ids and plain.traces is None
    assert len(traced.traces[0].divergence) == len(traced.completion_ids[2])


def test_a_row_that_breaks_before_its_first_token_has_an_empty_trace():
    tracer = Tracer([1], limit=4, student_temperature=0.9, teacher_temperature=0.6, device="cpu")
    assert tracer.traces([4, 0]) == [TokenTrace(1, [], [], [], [], [], [], [])]


def test_rounds_are_reported_as_they_pass(scene):
    seen = []
    rollout = scene.roll(gamma=3, on_round=lambda stats: seen.append((stats.rounds, stats.finished, stats.committed)))
    assert [rounds for rounds, _, _ in seen] == list(range(1, rollout.stats.rounds + 1))
    assert seen == sorted(seen) and seen[-1][1:] == (len(scene.tokens), sum(map(len, scene.tokens)))
    assert max(map(len, rollout.completion_ids)) <= LIMIT


def test_a_row_that_is_not_there(scene):
    with pytest.raises(ValueError, match="trace_rows must be among the rows 0 to 7, got \\[8\\]"):
        scene.roll(trace_rows=[8])

"""Models with recurrent states: rejected tokens are taken back, and what that costs."""

import sys

import pytest
import torch

from lupi_trainer.speculative import AcceptNone, TopK, skd_rollout, speculative_generate
from lupi_trainer.speculative.runners.prompt_store import PromptStore
from lupi_trainer.speculative.runners.replay import Replay
from lupi_trainer.speculative.runners.runner import Runner
from tests.families.tiny import families, pair, small
from tests.speculative.reference import next_token_state, reference_rollout
from tests.speculative.toy_models import prompts


PREFIX = list(range(3, 21))  # common to all prompts, and long enough to be read once
QUERIES = [PREFIX + query for query in prompts(4, 1, 6, seed=1)] + [PREFIX + [5]]
QUERIES += [QUERIES[0]]  # equal prompts, of which one waits
SHORT = [[7], [4, 9, 11], [7], [33, 8]]
RULE = TopK(k=2, min_prob=0.05)


@pytest.fixture(scope="module", params=["qwen3_5_text", "lfm2", "falcon_h1"])
def models(request):
    return pair(small(families()[request.param]))


def roll(models, queries=QUERIES, **options):
    options = {"max_new_tokens": 8, "gamma": 3, "acceptance": RULE, "eos_token_id": [2, 40], "seed": 3, **options}
    return skd_rollout(*models, queries, queries, **options)


@pytest.fixture(scope="module")
def expected(models):
    given = {"max_new_tokens": 8, "acceptance": RULE, "eos": [2, 40], "seed": 3}
    return {name: reference_rollout(*models, texts, texts, **given) for name, texts in TEXTS.items()}


TEXTS = {"prefix": QUERIES, "short": SHORT}


@pytest.mark.grid(3)
def test_texts_are_the_uncached_ones(models, expected):
    """With a common prefix, equal prompts that share what was read, refill, and prompts that leave nothing to read."""
    store = PromptStore(1 << 24)
    for name, texts in TEXTS.items():
        tokens, by_teacher, hidden = expected[name]
        assert {True, False} == {writer for row in by_teacher for writer in row}
        for options in (
            {"max_slots": 2},
            {"verification": "sequential", "gamma": 4},
            {"max_slots": 3, "teacher_prompt_store": store},
            {"teacher_prompt_store": store, "gamma_policy": "goodput"},
        ):
            rollout = roll(models, texts, return_teacher_hidden=True, **options)
            assert (rollout.completion_ids, rollout.from_teacher) == (tokens, by_teacher), (name, options)
            for ours, theirs in zip(rollout.teacher_hidden, hidden):
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
            assert rollout.stats.replayed > 0


@pytest.mark.grid(3)
def test_a_copy_after_every_token_saves_the_students_reading(models, expected, monkeypatch):
    """The student's share of what is read again is gone, and copies are what it costs."""
    cost = {}
    for copies in (True, False):
        monkeypatch.setattr(Replay, "copies_steps", lambda self, rows, steps, copies=copies: copies)
        stats = (rollout := roll(models)).stats
        assert rollout.completion_ids == expected["prefix"][0]
        cost[copies] = stats.replayed, stats.state_copy_bytes, stats.student_forwards
    assert cost[True][0] < cost[False][0] and cost[True][1] > cost[False][1] and cost[True][2] < cost[False][2]


@pytest.mark.grid(3)
def test_a_row_alone_reads_again_what_it_was_fed(models, expected, monkeypatch):
    """Its last token is fed as a view of the rows' pending tokens, which the round's verdict overwrites."""
    monkeypatch.setattr(Replay, "copies_steps", lambda self, rows, steps: False)
    tokens, by_teacher, _ = expected["short"]
    for row, prompt in enumerate(SHORT):
        rollout = roll(models, [prompt], row_ids=[row])
        assert (rollout.completion_ids, rollout.from_teacher) == ([tokens[row]], [by_teacher[row]])


def test_the_teacher_reads_a_drafted_token_twice_at_most(models, monkeypatch):
    """And nothing is copied or read again where nothing is ever rejected."""
    student, teacher = models
    read, forward = [], teacher.forward

    def counted(*args, input_ids, **kwargs):
        read.append(input_ids.numel())
        return forward(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(teacher, "forward", counted)
    stats = roll(models).stats
    drafted = sum(read[len(read) - stats.teacher_forwards :])
    replayed, once = stats.replayed, stats.blocks * 3
    assert 0 < replayed and drafted <= 2 * once
    free = roll(models, acceptance=TopK(k=student.config.vocab_size, min_prob=0.0)).stats
    alone = roll(models, acceptance=AcceptNone()).stats
    assert (free.replayed, free.state_copy_bytes, alone.replayed, alone.state_copy_bytes) == (0, 0, 0, 0)


@torch.no_grad()
@pytest.mark.grid(3)
def test_lossless_decoding_writes_the_targets_own_text(models):
    """With a draft that keeps states and a plain one, and the other way round; drafts that stand whole, too."""
    student, teacher = models
    plain = pair(small(families()["llama"], vocab_size=student.config.vocab_size))[1]
    for target, draft in ((teacher, student), (teacher, plain), (plain, student), (teacher, teacher)):
        size = target.config.vocab_size
        expected = []
        for text in TEXTS["short"]:
            written = []
            while len(written) < 8 and not (written and written[-1] in (2, 40)):
                written.append(int(next_token_state(target, text + written, size)[0].argmax()))
            expected.append(written)
        given = {"max_new_tokens": 8, "num_draft_tokens": 3, "eos_token_id": [2, 40], "max_slots": 2}
        output = speculative_generate(target, draft, SHORT, **given)
        assert output.completion_ids == expected
        assert draft is not target or output.stats.acceptance_rate == 1


def test_compilation_has_no_effect_and_says_so(models, expected):
    with pytest.warns(RuntimeWarning, match=f"compile=True: {type(models[0]).__name__} runs without compilation"):
        assert roll(models, compile=True).completion_ids == expected["prefix"][0]


class Other:
    """Processes in lockstep of which another one has two groups to read again after every round."""

    together = True

    def __init__(self):
        self.again = 0  # questions about them

    def most(self, number: int) -> int:
        if sys._getframe(1).f_code is not Runner.settle.__code__:
            return number
        self.again += 1
        return max(number, 2)


def test_in_lockstep_processes_read_again_as_often_as_each_other(models, expected, monkeypatch):
    idle, again, other = [], [], Other()
    read_again = Runner.read_again
    monkeypatch.setattr(Runner, "idle", lambda self: idle.append(self))
    monkeypatch.setattr(Runner, "read_again", lambda self, *given: [again.append(self), read_again(self, *given)][1])
    rollout = roll(models, max_slots=2, lockstep=other)
    assert rollout.completion_ids == expected["prefix"][0]
    # every question of every model is followed by two forwards, be they empty: at most two rows are to read again
    assert other.again == 2 * rollout.stats.rounds and len(idle) + len(again) == 2 * other.again and idle and again

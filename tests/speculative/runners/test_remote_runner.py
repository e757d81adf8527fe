"""A teacher of which only the likeliest tokens are known writes what the same teacher writes here."""

import math

import pytest
import torch

from lupi_trainer.speculative import RemoteError, RemoteTeacher, TopK, TopP, skd_rollout
from tests.speculative.scene import RULE, Scene


class Asked(RemoteTeacher):
    """A local model behind the questions of a `RemoteTeacher`: the teacher without its wire."""

    def __init__(self, model, top_k):
        super().__init__(model.config.vocab_size, top_k, model.config.max_position_embeddings)
        self.model = model

    @torch.no_grad()
    def _after(self, text):
        return self.model(torch.tensor([text]), use_cache=False).logits[0].float().log_softmax(-1)

    def score(self, texts, counts):
        answers = []
        for text, count in zip(texts, counts):
            values, ids = self._after(text)[-count:].topk(self.top_k)
            answers.append(list(zip(ids.tolist(), values.tolist())))
        return answers

    def logprobs(self, texts, tokens):
        return [self._after(text)[-1, chosen].tolist() for text, chosen in zip(texts, tokens)]


@pytest.fixture(scope="module")
def scene():
    return Scene("qwen3")


def roll(scene, top_k, **options):
    return skd_rollout(
        scene.student, Asked(scene.teacher, top_k), *scene.prompts, eos_token_id=[7, 8], **{**scene.options, **options}
    )


@pytest.mark.parametrize("top_k", [5, 12, 61])
@pytest.mark.parametrize("gamma, verification", [(1, "parallel"), (5, "parallel"), (8, "sequential")])
@pytest.mark.grid(3)
def test_however_few_tokens_are_returned(scene, top_k, gamma, verification):
    scene.check(roll(scene, top_k, gamma=gamma, verification=verification, max_slots=3))


def test_replacements_beyond_the_returned_tokens_are_drawn():
    """With one token returned, most of what a warm teacher writes is something else; none of it may change."""
    warm = Scene("llama", rule=TopK(1, 0.0), teacher_temperature=1.6)
    teacher = Asked(warm.teacher, 1)
    rollout = skd_rollout(warm.student, teacher, *warm.prompts, eos_token_id=[7, 8], gamma=4, **warm.options)
    warm.check(rollout)
    written = [
        int(token != warm.teacher(torch.tensor([prompt + row[:i]])).logits[0, -1].argmax())
        for prompt, row, by_teacher in zip(warm.prompts[1], warm.tokens, warm.by_teacher)
        for i, (token, theirs) in enumerate(zip(row, by_teacher))
        if theirs
    ]
    assert sum(written) > 20 and teacher.stats.asked_tokens > sum(written)
    assert teacher.stats.asked_tokens < 61 * len(written) / 2, "only what could win is asked for"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_temperatures_without_a_bound(temperature):
    other = Scene("qwen3", rule=TopK(8, 0.0), student_temperature=0.0, teacher_temperature=temperature)
    teacher = Asked(other.teacher, 8)
    other.check(skd_rollout(other.student, teacher, *other.prompts, eos_token_id=[7, 8], gamma=4, **other.options))
    assert teacher.stats.normalizer_error == 0.0


def test_the_bound_on_the_normalizer_holds(scene):
    teacher = Asked(scene.teacher, 6)
    rollout = skd_rollout(
        scene.student, teacher, *scene.prompts, eos_token_id=[7, 8], return_teacher_hidden=True, **scene.options
    )
    worst = 0.0
    for prompt, row, top in zip(scene.prompts[1], rollout.completion_ids, rollout.teacher_top):
        exact = teacher._after(prompt + row)[len(prompt) - 1 : -1].double()
        known = top[:, 6:].double()
        left = (1 - known.exp().sum(-1)).clamp(min=0)
        spread = (known / 0.7).exp().sum(-1) + 55 * (left / 55) ** (1 / 0.7)
        worst = max(worst, (((exact / 0.7).exp().sum(-1) - spread) / spread).max().item())
    assert 0 < worst <= teacher.stats.normalizer_error < math.inf


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_the_bound_on_the_normalizer_is_the_worst_that_is_left(scene, temperature):
    """After any text the teacher's distribution is the same, so the largest bound is the only one."""

    class Same(Asked):
        def _after(self, text):
            return torch.linspace(3, -3, 61, dtype=torch.float64).log_softmax(-1).expand(len(text), -1)

    teacher = Same(scene.teacher, 6)
    options = {**scene.options, "teacher_temperature": temperature}
    skd_rollout(scene.student, teacher, *scene.prompts, eos_token_id=[7, 8], **options)
    p = Same(scene.teacher, 6)._after([0])[0].exp()
    exponent, left = 1 / temperature, 1 - p[:6].sum()
    as_likely_as_can_be = left * p[5] ** (exponent - 1)  # in tokens as likely as the last one returned
    most = as_likely_as_can_be if temperature < 1 else 55 * (left / 55) ** exponent
    bound = (most / (p[:6] ** exponent).sum()).item()
    assert teacher.stats.normalizer_error == pytest.approx(bound, rel=1e-6)


def test_an_error_names_the_row_that_was_asked_about(scene):
    prompts = [column[3:6] for column in scene.prompts]

    class Fails(Asked):
        def score(self, texts, counts):
            error = RemoteError("no answer")
            error.place = self.place
            self.row = next(n for n, prompt in enumerate(prompts[1]) if texts[2][: len(prompt)] == prompt)
            raise error

    teacher = Fails(scene.teacher, 6)
    for teacher.place in (2, None):
        with pytest.raises(RemoteError, match="no answer") as error:
            skd_rollout(scene.student, teacher, *prompts, eos_token_id=[7, 8], **scene.options)
        assert error.value.row == (None if teacher.place is None else teacher.row)


def test_what_was_returned_comes_back_for_every_completion_token(scene):
    rollout = roll(scene, 6, gamma=5, max_slots=3, return_teacher_hidden=True)
    scene.check(rollout)
    assert rollout.teacher_hidden is None
    for prompt, row, top in zip(scene.prompts[1], rollout.completion_ids, rollout.teacher_top):
        expected = Asked(scene.teacher, 6).score([(prompt + row)[:-1]], [len(row)])[0]
        assert top[:, :6].long().tolist() == [ids for ids, _ in expected]
        torch.testing.assert_close(top[:, 6:], torch.tensor([v for _, v in expected]), atol=1e-5, rtol=0)


def test_a_vocabulary_cut_short(scene):
    """Tokens beyond the shared columns are never written, however likely the remote teacher finds them."""
    rollout = roll(scene, 12, vocab_size=40)
    assert max(max(row) for row in rollout.completion_ids) < 40
    local = scene.roll(vocab_size=40)
    assert rollout.completion_ids == local.completion_ids


def test_settings_that_it_cannot_serve_are_refused_by_name(scene):
    with pytest.raises(ValueError, match=r"5 likeliest tokens.*not by TopK\(k=6"):
        roll(scene, 5, acceptance=TopK(6, 0.0))
    with pytest.raises(ValueError, match="not by TopP"):
        roll(scene, 5, acceptance=TopP(0.9))
    with pytest.raises(ValueError, match="compile=True"):
        roll(scene, 5, acceptance=RULE, compile=True)


def test_the_students_own_text_needs_no_judgement(scene):
    everything = TopK(61, 0.0)
    assert roll(scene, 3, acceptance=everything).completion_ids == scene.roll(acceptance=everything).completion_ids

"""Models that can neither draft nor verify write alone, by transformers' own `generate`."""

import pytest
import torch
from transformers import GenerationConfig

from lupi_trainer.speculative import AcceptNone, TopK, skd_rollout
from lupi_trainer.speculative.runners.support import can_draft
from tests.families.tiny import families, pair, small
from tests.speculative.reference import reference_rollout
from tests.speculative.toy_models import prompts


QUERIES, INFORMED = [[7, 9], [4, 9, 11], [8, 3], [33]], [[5, 7, 9], [6, 4, 9, 11], [3, 8, 3], [6, 33]]


@pytest.fixture(scope="module", params=["rwkv", "recurrent_gemma"])
def models(request):
    return pair(small(families()[request.param]))


def rules(models):
    return {"student": TopK(k=models[0].config.vocab_size, min_prob=0.0), "teacher": AcceptNone()}


def test_texts_are_the_uncached_ones_of_the_one_that_writes(models):
    assert not any(map(can_draft, models))
    given = {"max_new_tokens": 8, "seed": 3}
    for model in models:  # its settings for users are not a rollout's
        model.generation_config = GenerationConfig(repetition_penalty=3.0, max_new_tokens=2, suppress_tokens=[4])
    for writer, rule in rules(models).items():
        tokens, by_teacher, _ = reference_rollout(*models, QUERIES, INFORMED, acceptance=rule, eos=[2, 40], **given)
        seen = []
        options = {"acceptance": rule, "eos_token_id": [2, 40], "max_slots": 1, "on_round": seen.append}
        rollout = skd_rollout(*models, QUERIES, INFORMED, **options, **given)
        assert (rollout.completion_ids, rollout.from_teacher) == (tokens, by_teacher)
        assert rollout.teacher_hidden is None and len(seen) == len(QUERIES)
        stats, written = rollout.stats, sum(map(len, tokens))
        assert stats.committed == written and stats.finished == len(QUERIES)
        assert (stats.accepted, stats.drafted) == ((written, written) if writer == "student" else (0, 0))
    assert models[0].generation_config.repetition_penalty == 3.0


def test_one_that_cannot_draft_beside_one_that_can(models):
    """The other one's texts are what they are beside any model."""
    able = pair(small(families()["llama"], vocab_size=models[0].config.vocab_size))
    for writer, both in {"student": (able[0], models[1]), "teacher": (models[0], able[1])}.items():
        given = {"max_new_tokens": 6, "acceptance": rules(both)[writer]}
        assert skd_rollout(*both, QUERIES, INFORMED, **given).completion_ids == (
            skd_rollout(*able, QUERIES, INFORMED, **given).completion_ids
        )


def test_drafting_is_refused_by_name_and_so_are_blocks_of_a_text_without_drafts(models):
    name = type(models[0]).__name__
    with pytest.raises(ValueError, match=f"the student {name} keeps a state .*rollout_policy 'student' and 'teacher'"):
        skd_rollout(*models, QUERIES, INFORMED, max_new_tokens=2)
    for asked in ({"on_block": print}, {"trace_rows": [0]}):
        with pytest.raises(ValueError, match=f"{name} and {name} cannot draft and verify, so the teacher"):
            skd_rollout(*models, QUERIES, INFORMED, max_new_tokens=2, acceptance=AcceptNone(), **asked)


def test_a_row_without_a_distribution_is_cut_short_and_named(models, monkeypatch):
    student, forward = models[0], models[0].forward

    def broken(input_ids, **kwargs):
        out = forward(input_ids=input_ids, **kwargs)
        out.logits[input_ids[:, -1] == marked] = torch.nan
        return out

    options = {"max_new_tokens": 8, "acceptance": rules(models)["student"]}
    queries = prompts(3, 2, 3, seed=5)
    whole = skd_rollout(*models, queries, queries, **options).completion_ids
    marked = whole[1][3]
    monkeypatch.setattr(student, "forward", broken)
    rollout = skd_rollout(*models, queries, queries, **options)
    for row, text in enumerate(whole):
        cut = text.index(marked) + 1 if marked in text[:-1] else len(text)
        assert rollout.completion_ids[row] == text[:cut] and (row in rollout.broken) == (cut < len(text))
    assert rollout.broken[1] == "student"

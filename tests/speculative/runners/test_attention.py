"""Queries of a group are folded, however many groups there are."""

import pytest

from lupi_trainer.speculative import skd_rollout
from tests.speculative.reference import reference_rollout
from tests.speculative.toy_models import perturbed, prompts, toy


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_texts_are_those_of_the_reference_whatever_heads_share_keys_and_values(kv_heads):
    teacher = toy(kv_heads=kv_heads)
    student, asked = perturbed(teacher, 0.1), (prompts(3, 1, 9, seed=1), prompts(3, 3, 15, seed=2))
    assert teacher.config.num_attention_heads == 4 and teacher.config.num_key_value_heads == kv_heads
    tokens, by_teacher, _ = reference_rollout(student, teacher, *asked, eos=(7, 8), max_new_tokens=12)
    rollout = skd_rollout(student, teacher, *asked, eos_token_id=[7, 8], max_new_tokens=12)
    assert rollout.completion_ids == tokens and rollout.from_teacher == by_teacher

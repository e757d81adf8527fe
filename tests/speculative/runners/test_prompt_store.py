"""A `PromptStore` changes what is read, and never what is written."""

import pytest
import torch

from lupi_trainer.speculative import AcceptNone, skd_rollout
from lupi_trainer.speculative.runners.prefill import Prefill
from lupi_trainer.speculative.runners.prompt_store import PromptStore
from tests.speculative.scene import Scene
from tests.speculative.toy_models import toy


@pytest.fixture
def read(monkeypatch):
    """The parts of prompts that are read, of student and teacher, as they are read."""
    parts, before = [], Prefill._read

    def counting(self, slots, texts, start):
        parts.extend((self.store is not None, tuple(text)) for text in texts)
        return before(self, slots, texts, start)

    monkeypatch.setattr(Prefill, "_read", counting)
    return parts


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
@pytest.mark.grid(2)
def test_prompts_are_read_once_and_the_texts_are_the_same(family, read):
    scene, store = Scene(family), PromptStore(1 << 20)
    for options in ({}, {"max_slots": 3}, {"rows": [6, 2]}, {"acceptance": AcceptNone()}):
        expected = scene.roll(**options)
        got = scene.roll(**options, teacher_prompt_store=store, return_teacher_hidden=True)
        assert got.completion_ids == expected.completion_ids and got.from_teacher == expected.from_teacher
    of_teacher = [part for stored, part in read if stored]
    assert sorted(of_teacher) == sorted({tuple(prompt[:-1]) for prompt in scene.prompts[1]})


@pytest.mark.slow
def test_a_compiled_loop_takes_them_too(tracing, read):
    scene, store = Scene("llama"), PromptStore(1 << 20)
    for _ in range(2):
        scene.check(scene.roll(compile=True, teacher_prompt_store=store))
    assert len([part for stored, part in read if stored]) == len(scene.tokens)


def test_what_was_used_last_is_kept_within_the_limit(read):
    scene = Scene("llama")
    bytes_of = [2 * 2 * 2 * 8 * 4 * (len(p) - 1) for p in scene.prompts[1]]  # layers, keys and values, heads, dim
    store = PromptStore(bytes_of[0] + bytes_of[1])
    for row in (0, 1, 0):
        scene.roll([row], teacher_prompt_store=store)
    assert list(store.entries) == [tuple(scene.prompts[1][row]) for row in (1, 0)] and store.bytes == sum(bytes_of[:2])
    scene.roll([2], teacher_prompt_store=store)
    assert store.bytes <= store.most_bytes and tuple(scene.prompts[1][1]) not in store.entries
    small = PromptStore(1)
    scene.check(scene.roll(teacher_prompt_store=small))
    assert not small.entries


def test_a_store_is_of_one_model_and_kept_states_are_copies():
    scene, store = Scene("llama"), PromptStore(1 << 20)
    scene.roll(teacher_prompt_store=store)
    before = {key: [keys.clone() for keys, _ in entry.pairs] for key, entry in store.entries.items()}
    scene.roll(teacher_prompt_store=store)
    for key, entry in store.entries.items():
        assert all(torch.equal(keys, old) for (keys, _), old in zip(entry.pairs, before[key]))
    with pytest.raises(ValueError, match="holds the prompts of another model"):
        skd_rollout(scene.student, toy("llama"), [[3]], [[4, 5]], max_new_tokens=2, teacher_prompt_store=store)
    with pytest.raises(ValueError, match="at least one byte, got 0"):
        PromptStore(0)

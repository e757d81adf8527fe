"""Adapters, dtypes, and what is reported of a block."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from lupi_trainer.speculative import AdapterDisabled, skd_rollout
from lupi_trainer.speculative.rules.logits import probability, rank
from tests.speculative.reference import reference_rollout
from tests.speculative.scene import LIMIT, RULE, Scene
from tests.speculative.toy_models import perturbed, prompts, toy


def with_lora(model, amount=0.2):
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = amount * torch.randn(parameter.shape, generator=generator)
    return adapted


QUERIES = prompts(4, 2, 6, seed=1)
INFORMED = [k + q for k, q in zip(prompts(4, 4, 8, seed=2), QUERIES)]
OPTIONS = {"max_new_tokens": 12, "acceptance": RULE}


def test_a_lora_student_writes_what_the_merged_one_does():
    teacher = toy("llama")
    student = with_lora(toy("llama"))
    expected = reference_rollout(student, teacher, QUERIES, INFORMED, **OPTIONS)
    rollout = skd_rollout(student, teacher, QUERIES, INFORMED, gamma=4, **OPTIONS)
    assert (rollout.completion_ids, rollout.from_teacher) == tuple(expected[:2])
    merged = student.merge_and_unload()
    assert skd_rollout(merged, teacher, QUERIES, INFORMED, **OPTIONS).completion_ids == expected[0]


def test_a_model_can_teach_its_own_adapter():
    student = with_lora(toy("qwen3"))
    adapted = skd_rollout(
        student, AdapterDisabled(student), QUERIES, INFORMED, gamma=4, return_teacher_hidden=True, **OPTIONS
    )
    expected = reference_rollout(student, toy("qwen3"), QUERIES, INFORMED, **OPTIONS)
    assert (adapted.completion_ids, adapted.from_teacher) == tuple(expected[:2])
    for ours, theirs in zip(adapted.teacher_hidden, expected[2]):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    own = skd_rollout(student, student, QUERIES, INFORMED, gamma=4, **OPTIONS)
    assert own.completion_ids != adapted.completion_ids, "the adapter must make a difference"


def test_virtual_tokens_are_refused():
    student = get_peft_model(toy("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="the student's adapter 'default' .PromptTuningConfig. puts virtual tokens"):
        skd_rollout(student, toy("llama"), QUERIES, INFORMED, **OPTIONS)


def test_a_merged_adapter_is_not_switched_off():
    student = with_lora(toy("llama"))
    student.merge_adapter()
    own = skd_rollout(student, toy("llama"), QUERIES, INFORMED, **OPTIONS)
    with pytest.raises(ValueError, match="the teacher is AdapterDisabled of Llama.* adapter default is merged into"):
        skd_rollout(student, AdapterDisabled(student), QUERIES, INFORMED, **OPTIONS)
    student.unmerge_adapter()
    assert skd_rollout(student, toy("llama"), QUERIES, INFORMED, **OPTIONS).completion_ids == own.completion_ids


def test_models_of_different_dtypes():
    """In bfloat16, rows and draft lengths may round differently, so this compares the prompts that start alike."""
    teacher = toy("qwen3").double()
    student = perturbed(toy("qwen3"), 0.1).bfloat16()
    rollout = skd_rollout(student, teacher, QUERIES, INFORMED, gamma=4, return_teacher_hidden=True, **OPTIONS)
    assert rollout.teacher_hidden[0].dtype == torch.float64
    assert [len(row) for row in rollout.completion_ids] == [12] * 4


@pytest.fixture(scope="module")
def reported():
    """A rollout that ends rows on a token which the student wrote, in the middle of a block."""
    scene, blocks = Scene("llama"), []
    endless = scene.roll(eos_token_id=None)
    row, place = next(
        (i, j) for j in range(5, 12) for i, by_teacher in enumerate(endless.from_teacher) if not by_teacher[j]
    )
    end = endless.completion_ids[row][place]
    rollout = scene.roll(gamma=4, max_slots=3, eos_token_id=end, on_block=blocks.append)
    for tokens, uncut in zip(rollout.completion_ids, endless.completion_ids):
        assert tokens == (uncut[: uncut.index(end) + 1] if end in uncut else uncut)
    return scene, rollout, blocks


def test_blocks_report_the_entire_rollout(reported):
    _, rollout, blocks = reported
    for row, (tokens, by_teacher) in enumerate(zip(rollout.completion_ids, rollout.from_teacher)):
        text, writers = [], []
        for block in (b for b in blocks if b.row == row):
            assert block.position == len(text)
            text += block.drafted[: block.accepted] + ([] if block.correction is None else [block.correction])
            writers += [False] * block.accepted + [True] * (block.correction is not None)
        assert (text, writers) == (tokens, by_teacher)
        assert block.ended


def test_blocks_report_what_the_teacher_thought(reported):
    scene, rollout, blocks = reported
    block = next(b for b in blocks if b.row == 2 and b.position > 0)
    context = scene.prompts[1][2] + rollout.completion_ids[2][: block.position] + block.drafted
    with torch.no_grad():
        logits = scene.teacher(torch.tensor([context])).logits[:, -len(block.drafted) - 1 : -1]
    drafted = torch.tensor([block.drafted])
    assert block.teacher_rank == rank(logits, drafted)[0].tolist()
    assert block.teacher_probability == pytest.approx(probability(logits, drafted, 0.7)[0].tolist(), abs=1e-5)


def test_stats_are_what_the_blocks_say(reported):
    _, rollout, blocks = reported
    stats = rollout.stats
    assert stats.blocks == len(blocks)
    assert stats.accepted == sum(b.accepted for b in blocks) == sum(r.count(False) for r in rollout.from_teacher)
    assert stats.first_token_accepted == sum(b.accepted > 0 for b in blocks)
    assert stats.full_match == sum(b.correction is None for b in blocks)
    assert stats.rounds == 1 + max(b.round for b in blocks)
    remaining = [min(len(b.drafted), LIMIT - b.position) for b in blocks]
    assert stats.drafted == sum(b.accepted if b.correction is None else r for b, r in zip(blocks, remaining))
    assert any(b.ended and b.correction is None and b.accepted < len(b.drafted) for b in blocks)


def test_rule_that_stops_in_the_middle_of_a_block_leaves_nothing_behind():
    """One token a row: whatever else was drafted must not show anywhere."""
    scene = Scene("gpt2")
    rollout = scene.roll(gamma=20, max_new_tokens=1)
    assert rollout.completion_ids == [row[:1] for row in scene.tokens]
    assert rollout.stats.drafted == len(scene.tokens)

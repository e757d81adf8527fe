"""The ragged cache against forwards without any cache."""

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

from lupi_trainer.speculative import skd_rollout
from lupi_trainer.speculative.runners.attention import ragged_attention
from lupi_trainer.speculative.runners.cache import RaggedCache
from lupi_trainer.speculative.runners.runner import Runner
from tests.speculative.reference import reference_rollout
from tests.speculative.scene import Scene
from tests.speculative.toy_models import FAMILIES, MORE_FAMILIES, VOCAB, prompts, toy


LIMIT = 40


def uncached(model, tokens, width):
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0, -width:]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES + MORE_FAMILIES)
def test_logits_after_random_rejections_equal_uncached_ones(family, attention):
    model = toy(family, attention=attention)
    rows = prompts(5, 1, 20, seed=3)
    runner = Runner(model, rows, slots=5, max_new_tokens=LIMIT, vocab_size=VOCAB)
    generator = torch.Generator().manual_seed(4)
    texts, base = [row[:-1] for row in rows], [len(row) - 1 for row in rows]
    worst = 0.0
    with torch.no_grad(), ragged_attention(model):
        runner.admit(list(range(5)), list(range(5)))
        for step in range(10):
            width = 1 + step % 6
            fed = torch.randint(3, VOCAB, (5, width), generator=generator)
            written = torch.tensor([len(text) - b for text, b in zip(texts, base)])
            logits, _ = runner.read(fed, written, max(map(len, texts)))
            for row in range(5):
                expected = uncached(model, texts[row] + fed[row].tolist(), width)
                worst = max(worst, (logits[row] - expected).abs().max().item())
                kept = int(torch.randint(0, width + 1, (1,), generator=generator))
                texts[row] = texts[row] + fed[row, :kept].tolist()
    assert len({len(text) - b for text, b in zip(texts, base)}) > 1, "rows must have been kept to different lengths"
    assert worst < 1e-5


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_a_row_at_the_wrong_place_is_noticed(family):
    """The negative control of the test above: one row read one position too late."""
    model = toy(family)
    rows = prompts(2, 12, 12)
    runner = Runner(model, rows, slots=2, max_new_tokens=LIMIT, vocab_size=VOCAB)
    with torch.no_grad(), ragged_attention(model):
        runner.admit([0, 1], [0, 1])
        logits, _ = runner.read(torch.tensor([[5, 6], [5, 6]]), torch.tensor([0, 1]), 12)
    errors = [(logits[i] - uncached(model, rows[i][:-1] + [5, 6], 2)).abs().max().item() for i in range(2)]
    assert errors[0] < 1e-5 and errors[1] > 1e-2


def attend(model):
    """Logits and gradients, without a mask and with one."""
    ids = torch.tensor(prompts(2, 12, 12)[:1] * 2)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    plain, masked = model(ids).logits, model(ids, attention_mask=mask).logits
    gradient = torch.autograd.grad(masked[:, -1].square().sum(), model.get_input_embeddings().weight)[0]
    return plain.detach(), masked.detach(), gradient


def test_models_attend_as_before_outside_and_between_rollouts(monkeypatch):
    """Before: with transformers' own functions, in the places where they were before the first rollout."""
    masks, attentions = AttentionMaskInterface._global_mapping, AttentionInterface._global_mapping
    monkeypatch.setitem(masks, "sdpa", sdpa_mask)
    monkeypatch.setitem(masks, "eager", eager_mask)
    monkeypatch.setitem(attentions, "sdpa", sdpa_attention_forward)
    model, other = toy("gemma3"), toy("llama")
    before, config = [attend(m) for m in (model, other)], model.config.to_dict()
    with ragged_attention(model):  # groups are folded in the models of a rollout alone
        assert attentions["sdpa"] is not sdpa_attention_forward
        assert torch.equal(attend(model)[0], before[0][0])
        assert all(map(torch.equal, attend(other), before[1]))
    assert all(map(torch.equal, attend(model), before[0]))
    assert all(map(torch.equal, attend(other), before[1])) and model.config.to_dict() == config


def test_a_rollout_goes_on_when_another_has_ended():
    """As in two threads."""
    scene = Scene("llama", rows=3)
    first = ragged_attention(toy("gpt2"))
    first.__enter__()
    ended = []
    scene.check(scene.roll(gamma=3, on_round=lambda _: ended or ended.append(first.__exit__(None, None, None))))
    assert ended


def test_models_of_other_attention_implementations_use_sdpa_meanwhile():
    model = toy("llama")
    model.config._attn_implementation = "flash_attention_2"
    with ragged_attention(model):
        assert model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "flash_attention_2"


def test_a_common_prefix_and_equal_prompts_are_read_once(monkeypatch):
    model = toy("llama")
    persona = list(range(3, 28))
    rows = [persona + [30], persona + [31, 32], persona + [31, 32], persona + [31, 32]]
    runner = Runner(model, rows, slots=3, max_new_tokens=LIMIT, vocab_size=VOCAB)
    read = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **inputs: read.append(inputs["input_ids"]) or forward(**inputs))
    with torch.no_grad(), ragged_attention(model):
        runner.admit([0, 1, 2], [0, 1, 2])
        assert [tuple(ids.shape) for ids in read] == [(1, 25), (1, 1)]  # the prefix, and [31] once for rows 1 and 2
        runner.admit([0], [3])  # a slot that has been given back; rows 1 and 2 hold the same prompt
        assert len(read) == 2
        logits, _ = runner.read(torch.tensor([[30], [32], [32]]), torch.zeros(3, dtype=torch.long), 30)
    monkeypatch.undo()
    torch.testing.assert_close(logits[0, 0], uncached(model, persona + [31, 30], 1)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[2, 0], uncached(model, persona + [31, 32], 1)[0], atol=1e-5, rtol=1e-5)


def test_a_single_slot_reads_the_common_prefix_once(monkeypatch):
    model = toy("llama")
    persona = list(range(3, 28))
    queries, read, forward = [persona + [30 + i, 40 + i] for i in range(4)], [], model.forward

    def counted(**inputs):
        read.append(inputs["input_ids"].numel())
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", counted)
    rollout = skd_rollout(model, model, queries, queries, max_new_tokens=3, gamma=1, max_slots=1)
    prefill = sum(read) - rollout.stats.student_forwards - rollout.stats.teacher_forwards
    assert prefill == 2 * (25 + 4 * 1)
    monkeypatch.undo()
    assert rollout.completion_ids == reference_rollout(model, model, queries, queries, max_new_tokens=3)[0]


def test_cropping_all_rows_alike_is_refused():
    with pytest.raises(NotImplementedError, match="keeps no lengths"):
        RaggedCache([("attention", 0)] * 2, 3, 4).crop(-1)

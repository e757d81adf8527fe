"""What the knowledge changes, and the weights from it, beside their definitions token by token."""

import pytest
import torch

from lupi_trainer.losses import chunks
from lupi_trainer.losses.divergence import divergence_loss
from lupi_trainer.losses.knowledge import knowledge_gain, knowledge_weights
from lupi_trainer.models.lm_head import Head
from tests.losses.test_divergence import BETAS, MASK, V, dense, scene


def gains():
    return torch.tensor([[0.5, 2.0, 0.0, 9.0, 9.0], [7.0, 0.1, 0.2, 0.3, 3.0]], dtype=torch.float64)


def test_the_gain_is_the_divergence_of_the_two_distributions(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 2 * V)
    _, teacher, _, told = scene()
    bare = told + torch.randn_like(told)
    found = knowledge_gain(told, bare, Head(teacher, V), MASK)
    for b, c in MASK.nonzero().tolist():
        p, q = (teacher.logits(states[b, c]).softmax(-1) for states in (told, bare))
        torch.testing.assert_close(found[b, c], (p * (p / q).log()).sum(), rtol=1e-9, atol=0)
    assert not found[MASK == 0].any() and not found.requires_grad
    assert not knowledge_gain(told, told, Head(teacher, V), MASK).any()
    assert knowledge_gain(told[:0], bare[:0], Head(teacher, V), MASK[:0]).shape == (0, 5)


@pytest.mark.parametrize("temperature, floor", [(1.0, 0.0), (0.5, 0.25), (2.0, 1.0)])
def test_a_softmax_over_each_text(temperature, floor):
    knows = torch.tensor([True, True])
    found = knowledge_weights(gains(), MASK, knows, select="softmax", temperature=temperature, floor=floor)
    for gain, mask, weights in zip(gains(), MASK.bool(), found):
        shares = (gain[mask] / temperature).softmax(0)
        torch.testing.assert_close(weights[mask], floor + (1 - floor) * shares * int(mask.sum()))
        assert weights[mask].mean() == pytest.approx(1) and not weights[~mask].any()


def test_the_highest_share_alike():
    found = knowledge_weights(gains(), MASK, torch.tensor([True, True]), share=0.3, floor=0.1)
    for gain, mask, weights in zip(gains(), MASK.bool(), found):
        chosen = set(gain[mask].argsort(descending=True)[: -(-int(mask.sum()) * 3 // 10)].tolist())
        expected = [0.1 + 0.9 * (i in chosen) * int(mask.sum()) / len(chosen) for i in range(int(mask.sum()))]
        assert weights[mask].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("select", ["softmax", "top"])
def test_a_text_without_knowledge_has_ones(select):
    found = knowledge_weights(gains(), MASK, torch.tensor([True, False]), select=select, floor=0.0)
    assert found[1].tolist() == MASK[1].tolist() and found[0].max() > 1.5


def test_the_control_has_the_same_weights_elsewhere():
    knows = torch.tensor([True, True])
    plain = knowledge_weights(gains(), MASK, knows, select="softmax")
    orders = set()
    for seed in range(20):
        noise = torch.Generator().manual_seed(seed)
        mixed = knowledge_weights(gains(), MASK, knows, select="softmax", shuffle=noise)
        for mask, ours, theirs in zip(MASK.bool(), plain, mixed):
            assert sorted(ours[mask].tolist()) == sorted(theirs[mask].tolist()) and not theirs[~mask].any()
        orders.add(tuple(mixed[0].tolist()))
    assert len(orders) > 3


@pytest.mark.parametrize("beta", BETAS)
def test_a_weighted_loss_and_its_gradients(monkeypatch, beta):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 2 * V)
    ours, theirs, states, teacher_states = scene(bias=True)
    weights = torch.rand(2, 5, dtype=torch.float64)
    models = states, Head(ours, V), teacher_states, Head(theirs, V), MASK
    found = divergence_loss(*models, beta, num_items_in_batch=11, temperature=0.7, weights=weights)
    divergence, entropy = dense(ours.logits(states), theirs.logits(teacher_states), beta, 0.7)
    expected = (divergence * weights * MASK).sum() / 11
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], (entropy * MASK).sum())
    variables = states, *ours.parameters()
    for mine, its in zip(torch.autograd.grad(found[0], variables), torch.autograd.grad(expected, variables)):
        torch.testing.assert_close(mine, its)

"""The loss on the teacher's likeliest tokens and one bucket for the rest."""

import math

import pytest
import torch
from torch import nn

from lupi_trainer.losses import chunks
from lupi_trainer.losses.reference import top_k_divergence
from lupi_trainer.losses.top_k import top_k_divergence_loss
from lupi_trainer.models.lm_head import Head
from lupi_trainer.training.private import chunked_divergence_loss


N, V, H = 7, 19, 8


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(N, V, generator=generator) for _ in range(2))
    return student.requires_grad_(), teacher.log_softmax(-1)


def buckets(student, teacher, ids, beta):
    """One row at a time, a list of probabilities and their sums: what the definition says."""
    losses = []
    for s, t, kept in zip(student.double().softmax(-1), teacher.double().exp(), ids.tolist()):
        rest = [i for i in range(V) if i not in kept]
        groups = [[i] for i in kept] + ([rest] if rest else [])
        q, p = (torch.stack([x[group].sum() for group in groups]) for x in (s, t))
        m = (1 - beta) * q + beta * p
        kl = lambda a, b: (a * (a / b).log()).sum()  # noqa: E731
        losses.append(kl(p, q) if beta == 0 else kl(q, p) if beta == 1 else beta * kl(p, m) + (1 - beta) * kl(q, m))
    return torch.stack(losses)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("k", [1, 5, V])
def test_value_and_gradient_are_those_of_the_buckets(logits, beta, k):
    student, teacher = logits
    values, ids = teacher.topk(k)
    loss = top_k_divergence(student, ids, values, beta)
    expected = buckets(student, teacher, ids, beta)
    torch.testing.assert_close(loss.double(), expected, atol=2e-5, rtol=1e-4)
    ours, theirs = (torch.autograd.grad(x.sum(), student)[0] for x in (loss, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_merging_tokens_only_lowers_it(logits, beta):
    student, teacher = logits
    losses = [top_k_divergence(student, *reversed(teacher.topk(k)), beta) for k in range(1, V + 1)]
    for coarse, fine in zip(losses, losses[1:]):
        assert (coarse <= fine + 1e-5).all()
    assert (losses[0] < losses[-1] - 0.1).any()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_places_without_a_token_do_not_count(logits, beta):
    student, teacher = logits
    values, ids = teacher.topk(6)
    padded_ids = torch.cat([ids[:, :3], torch.full((N, 2), V + 4), ids[:, 3:]], 1)
    padded = torch.cat([values[:, :3], torch.full((N, 2), -math.inf), values[:, 3:]], 1)
    loss = top_k_divergence(student, padded_ids, padded, beta)
    torch.testing.assert_close(loss, top_k_divergence(student, ids, values, beta))
    assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_equal_distributions_have_none(logits, beta):
    _, teacher = logits
    assert top_k_divergence(teacher, *reversed(teacher.topk(4)), beta).abs().max() < 1e-5


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        from transformers import LlamaConfig

        torch.manual_seed(1)
        self.head, self.config = nn.Linear(H, V, bias=False), LlamaConfig(vocab_size=V)

    def get_output_embeddings(self):
        return self.head


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_with_the_whole_vocabulary_it_is_trls_loss(monkeypatch, beta):
    """Value, entropy, count and both gradients, in chunks of two tokens."""
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 2 * V)
    model, teacher_head = _Model(), 2 * torch.randn(V, H)
    states, teacher_states = torch.randn(2, 5, H, requires_grad=True), torch.randn(2, 5, H)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    values, ids = (teacher_states @ teacher_head.t()).log_softmax(-1).topk(V)
    top = torch.cat([ids.float(), values], -1)
    ours = top_k_divergence_loss(states, Head(model, V), top, mask, beta, num_items_in_batch=11)
    theirs = chunked_divergence_loss(
        states, teacher_states, model.head.weight, teacher_head, mask, beta, num_items_in_batch=11
    )
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad(x[0], [states, model.head.weight]) for x in (ours, theirs)]
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    assert gradients[0][0].abs().sum() > 0


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_scaled_and_capped_heads(monkeypatch, beta):
    """In chunks of two tokens: value, entropy and the gradients of states, weight and bias are the dense ones."""
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 2 * V)
    model, states = _Model(), torch.randn(N, H, requires_grad=True)
    model.head.bias = nn.Parameter(torch.randn(V))
    model.config.final_logit_softcapping, model.config.logit_scale = 2.0, 0.7
    values, ids = torch.randn(N, V).log_softmax(-1).topk(4)
    top, mask = torch.cat([ids.float(), values], -1)[None], torch.ones(1, N)
    ours = top_k_divergence_loss(states[None], Head(model, V), top, mask, beta)
    logits = 2.0 * torch.tanh(model.head(states) * 0.7 / 2.0)
    dense = top_k_divergence(logits, ids, values, beta).mean()
    torch.testing.assert_close(ours[0], dense, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours[1], torch.distributions.Categorical(logits=logits).entropy().sum())
    parameters = [states, *model.head.parameters()]
    for a, b in zip(*(torch.autograd.grad(loss, parameters) for loss in (ours[0], dense))):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_batch_without_tokens():
    model, states = _Model(), torch.randn(1, 3, H, requires_grad=True)
    loss, entropy, count = top_k_divergence_loss(states, Head(model, V), torch.zeros(1, 3, 4), torch.zeros(1, 3), 0.0)
    loss.backward()
    assert loss == 0 and entropy == 0 and count == 0 and states.grad.abs().sum() == 0

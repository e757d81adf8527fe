"""The chunked divergence beside its dense equation, and beside TRL's."""

import pytest
import torch
from torch.nn import functional as F

from lupi_trainer.losses import chunks
from lupi_trainer.losses.divergence import divergence_loss
from lupi_trainer.models.lm_head import Head
from lupi_trainer.training.private import chunked_divergence_loss
from tests.losses.test_chunked_kd import Headed


V, BETAS = 13, [0.0, 0.3, 1.0]
MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])


def scene(dtype=torch.float64, **student):
    """Heads of a student and a teacher, and their states [2, 5, H]; logits are as large as those of real models."""
    torch.manual_seed(1)
    ours, theirs = Headed(8, V, dtype=dtype, **student), Headed(12, V, bias=True, dtype=dtype)
    with torch.no_grad():
        for parameter in (*ours.parameters(), *theirs.parameters()):
            parameter.mul_(9)
    return ours, theirs, torch.randn(2, 5, 8, dtype=dtype, requires_grad=True), torch.randn(2, 5, 12, dtype=dtype)


def dense(logits, teacher_logits, beta, temperature):
    """([B, C] divergence, [B, C] entropy) by the definition, each KL in its own words."""
    q, p = (logits / temperature).softmax(-1), (teacher_logits / temperature).softmax(-1)

    def kl(a, b):
        return (a * (a / b).log()).sum(-1)

    entropy = -(q * q.log()).sum(-1)
    if beta in (0.0, 1.0):
        return (kl(p, q) if beta == 0.0 else kl(q, p)), entropy
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m), entropy


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("student", [{}, {"bias": True, "logit_scale": 0.7, "final_logit_softcapping": 5.0}])
def test_it_is_the_dense_equation(monkeypatch, beta, temperature, student):
    """In chunks of two tokens: loss, entropy, count, and the gradients of states, weight and bias."""
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 2 * V)
    ours, theirs, states, teacher_states = scene(**student)
    before = {name: value.clone() for name, value in theirs.named_parameters()}
    found = divergence_loss(
        states,
        Head(ours, V),
        teacher_states,
        Head(theirs, V),
        MASK,
        beta,
        num_items_in_batch=11,
        temperature=temperature,
    )
    divergence, entropy = dense(ours.logits(states), theirs.logits(teacher_states), beta, temperature)
    wanted = (divergence * MASK).sum() / 11, (entropy * MASK).sum(), torch.tensor(7)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b)
    parameters = [states, *ours.parameters()]
    gradients = [torch.autograd.grad(x[0], parameters) for x in (found, wanted)]
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)
    assert gradients[0][0][MASK == 1].abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in theirs.named_parameters())


@pytest.mark.parametrize("beta", BETAS)
def test_it_is_trls_loss(beta):
    ours, theirs, states, teacher_states = scene(torch.float32)
    arguments = (MASK, beta)
    found = divergence_loss(states, Head(ours, V), teacher_states, Head(theirs, V), *arguments, temperature=0.7)
    weights = ours.lm_head.weight, theirs.lm_head.weight.detach()
    trls = chunked_divergence_loss(
        states,
        teacher_states,
        *weights,
        *arguments,
        teacher_lm_head_bias=theirs.lm_head.bias.detach(),
        temperature=0.7,
    )
    for a, b in zip(found, trls):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad(x[0], [states, ours.lm_head.weight]) for x in (found, trls)]
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("beta", BETAS)
def test_models_that_agree_have_no_divergence_and_those_far_apart_a_finite_one(beta):
    same = torch.full((1, 2, V), 3.0)
    far = 400 * F.one_hot(torch.tensor([[1, 2]]), V).float()
    identity = Headed(V, V, dtype=torch.float32)
    with torch.no_grad():
        identity.lm_head.weight.copy_(torch.eye(V))
    head, mask = Head(identity, V), torch.ones(1, 2)
    assert divergence_loss(same, head, same.clone(), head, mask, beta)[0].item() == 0
    states = far.clone().requires_grad_()
    loss, entropy, _ = divergence_loss(states, head, far.roll(1, -1), head, mask, beta)
    (grad,) = torch.autograd.grad(loss, states)
    assert loss.isfinite() and entropy.isfinite() and grad.isfinite().all()
    assert loss.item() == pytest.approx({0.0: 400.0, 1.0: 400.0}.get(beta, 0.6109), rel=1e-3)  # H(0.3) in nats


def test_what_is_masked_is_not_read_be_it_not_finite():
    ours, theirs, states, teacher_states = scene()
    wanted = divergence_loss(states, Head(ours, V), teacher_states, Head(theirs, V), MASK, 0.0)
    spoiled = [
        x.detach().masked_fill(MASK[..., None] == 0, torch.nan).requires_grad_() for x in (states, teacher_states)
    ]
    loss, entropy, count = divergence_loss(spoiled[0], Head(ours, V), spoiled[1], Head(theirs, V), MASK, 0.0)
    loss.backward()
    assert (loss, entropy, count) == wanted and spoiled[0].grad.isfinite().all()


def test_a_batch_without_tokens():
    ours, theirs, states, teacher_states = scene()
    loss, entropy, count = divergence_loss(states, Head(ours, V), teacher_states, Head(theirs, V), 0 * MASK, 0.0)
    loss.backward()
    assert loss == 0 and entropy == 0 and count == 0 and states.grad.abs().sum() == 0


def test_nothing_of_all_tokens_times_the_vocabulary_is_kept(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 2 * V)
    ours, theirs, states, teacher_states = scene()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        divergence_loss(states, Head(ours, V), teacher_states, Head(theirs, V), MASK, 0.0)
    assert kept and max(kept) <= max(states.numel(), V * 8)


def test_the_teachers_head_gets_no_gradient():
    ours, theirs, states, teacher_states = scene()
    divergence_loss(states, Head(ours, V), teacher_states, Head(theirs, V), MASK, 0.0)[0].backward()
    assert ours.lm_head.weight.grad.abs().sum() > 0
    assert theirs.lm_head.weight.grad is None and theirs.lm_head.bias.grad is None

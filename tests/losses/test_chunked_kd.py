"""The chunked distillation loss beside its dense reference, and the reference beside a loop over tokens."""

import math

import pytest
import torch
from torch import nn

from lupi_trainer.losses import chunks
from lupi_trainer.losses.chunked_kd import chunked_kd_ce
from lupi_trainer.losses.reference import kd_ce_loss
from lupi_trainer.models.lm_head import Head


class Config(dict):
    """As much of a model's configuration as a head reads."""

    __getattr__ = dict.get

    def get_text_config(self):
        return self


class Headed(nn.Module):
    """A bare `lm_head`."""

    def __init__(self, hidden_size, vocab_size, bias=False, dtype=torch.float64, **config):
        super().__init__()
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=bias, dtype=dtype)
        self.config = Config(config)

    def get_output_embeddings(self):
        return self.lm_head

    def logits(self, states):
        logits = self.lm_head(states) * (self.config.logit_scale or 1.0)
        cap = self.config.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)


def by_loop(student_logits, teacher_logits, labels, kd_alpha, kd_temperature):
    """The equation, a token and a vocabulary entry at a time."""
    total, count = 0.0, 0
    for s, t, y in zip(student_logits.flatten(0, 1), teacher_logits.flatten(0, 1), labels.flatten()):
        if y == -100:
            continue
        p = [math.exp(x / kd_temperature) for x in t.tolist()]
        q = [math.exp(x / kd_temperature) for x in s.tolist()]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        kl = sum(a * math.log(a / b) for a, b in zip(p, q))
        ce = math.log(sum(math.exp(x) for x in s.tolist())) - s[y].item()
        total += kd_alpha * kd_temperature**2 * kl + (1 - kd_alpha) * ce
        count += 1
    return total / count


def scene(seed=0, rows=3, length=7, student_vocab=23, teacher_vocab=23, **student):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    ours, theirs = Headed(8, student_vocab, **student), Headed(12, teacher_vocab)
    states = torch.randn(rows, length, 8, dtype=torch.float64, generator=generator).mul_(3).requires_grad_()
    teacher_states = torch.randn(rows, length, 12, dtype=torch.float64, generator=generator) * 3
    labels = torch.randint(0, min(student_vocab, teacher_vocab), (rows, length), generator=generator)
    labels[0, :3] = labels[2, 4:] = -100
    return ours, theirs, states, teacher_states, labels


def chunked(ours, theirs, states, teacher_states, labels, alpha, temperature):
    labeled = labels != -100
    shared = min(ours.lm_head.out_features, theirs.lm_head.out_features)
    return chunked_kd_ce(
        states[labeled],
        Head(ours, ours.lm_head.out_features),
        teacher_states[labeled],
        Head(theirs, shared),
        labels[labeled],
        alpha,
        temperature,
    )


@pytest.mark.parametrize("alpha, temperature", [(0.0, 2.0), (0.1, 2.0), (0.5, 1.0), (0.3, 3.0), (1.0, 0.5)])
def test_the_dense_reference_is_the_equation(alpha, temperature):
    ours, theirs, states, teacher_states, labels = scene()
    given = ours.logits(states).detach(), theirs.logits(teacher_states).detach(), labels, alpha, temperature
    assert kd_ce_loss(*given).item() == pytest.approx(by_loop(*given), abs=1e-12)


def test_the_factor_t_squared_keeps_the_soft_gradient_of_one_size():
    """Hinton et al., section 2.1: for high T the gradient of T^2 * KL nears (s - t) / V, whatever T is."""
    student = torch.tensor([[[0.5, -0.2, 0.1, -0.4]]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[[-0.3, 0.6, 0.2, -0.5]]], dtype=torch.float64)
    for temperature in (50.0, 500.0):
        kd_ce_loss(student, teacher, torch.tensor([[0]]), 1.0, temperature).backward()
        torch.testing.assert_close(student.grad, (student - teacher).detach() / 4, rtol=0, atol=0.5 / temperature)
        student.grad = None


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("alpha, temperature", [(0.0, 2.0), (0.2, 2.0), (1.0, 3.0)])
@pytest.mark.parametrize(
    "student",
    [
        {},
        {"bias": True, "logit_scale": 0.3},
        {"final_logit_softcapping": 5.0, "logit_scale": 2.0, "bias": True},
        {"student_vocab": 29},
        {"teacher_vocab": 31},
    ],
    ids=["plain", "scaled", "softcap", "student-padded", "teacher-padded"],
)
def test_chunked_equals_dense_in_value_and_gradient(chunk, alpha, temperature, student, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", chunk * student.get("student_vocab", 23))
    ours, theirs, states, teacher_states, labels = scene(**student)
    count = (labels != -100).sum()
    wanted = kd_ce_loss(ours.logits(states), theirs.logits(teacher_states), labels, alpha, temperature)
    parameters = [states, *ours.parameters()]
    gradients = torch.autograd.grad(wanted, parameters)
    out = chunked(ours, theirs, states, teacher_states, labels, alpha, temperature)
    torch.testing.assert_close(out.total / count, wanted, rtol=0, atol=1e-12)
    for got, gradient in zip(torch.autograd.grad(out.total / count, parameters), gradients):
        torch.testing.assert_close(got, gradient, rtol=0, atol=1e-12)
    # the parts: alone, and together
    logits = ours.logits(states).detach()
    distribution = torch.distributions.Categorical(logits=logits[labels != -100])
    ce = kd_ce_loss(logits, theirs.logits(teacher_states), labels, 0.0, 1.0)
    torch.testing.assert_close(out.ce.mean(), ce, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        out.total, (alpha * temperature**2 * out.kd + (1 - alpha) * out.ce).sum(), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(out.entropy, distribution.entropy(), rtol=0, atol=1e-12)
    assert torch.equal(out.correct, logits.argmax(-1)[labels != -100] == labels[labels != -100])


def test_gradient_is_the_numerical_one(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 3 * 23)
    ours, theirs, states, teacher_states, labels = scene(final_logit_softcapping=5.0)

    def loss(states, weight, bias):
        with torch.no_grad():  # only so that the head's own parameters are not asked for
            head = Head(ours, 23)
        head.weight, head.bias = weight, bias
        labeled = labels != -100
        out = chunked_kd_ce(
            states[labeled], head, teacher_states[labeled], Head(theirs, 23), labels[labeled], 0.4, 2.0
        )
        return out.total

    weight = ours.lm_head.weight.detach().clone().requires_grad_()
    bias = torch.randn(23, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(loss, (states, weight, bias), eps=1e-6, atol=1e-7)


def test_a_batch_without_labels_is_zero_and_has_a_gradient():
    ours, theirs, states, teacher_states, labels = scene()
    labels = torch.full_like(labels, -100)
    out = chunked(ours, theirs, states, teacher_states, labels, 0.5, 2.0)
    out.total.backward()
    assert out.total.item() == 0.0 and states.grad.abs().sum() == 0.0
    assert kd_ce_loss(ours.logits(states), theirs.logits(teacher_states), labels, 0.5, 2.0).item() == 0.0


def test_bfloat16_states_are_scored_in_float32():
    ours, theirs, states, teacher_states, labels = scene()
    dense = kd_ce_loss(ours.logits(states), theirs.logits(teacher_states), labels, 0.3, 2.0).item()
    ours, theirs = ours.to(torch.bfloat16), theirs.to(torch.bfloat16)
    states = states.detach().to(torch.bfloat16).requires_grad_()
    out = chunked(ours, theirs, states, teacher_states.to(torch.bfloat16), labels, 0.3, 2.0)
    assert out.ce.dtype == torch.float32
    assert out.total.item() / len(out.ce) == pytest.approx(dense, rel=0.02)
    out.total.backward()
    assert states.grad.dtype == torch.bfloat16 and ours.lm_head.weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("alpha, temperature, named", [(-0.1, 2, "kd_alpha"), (1.1, 2, "kd_alpha"), (0.5, 0, "kd_t")])
def test_arguments_out_of_range(alpha, temperature, named):
    ours, theirs, states, teacher_states, labels = scene()
    with pytest.raises(ValueError, match=named):
        kd_ce_loss(ours.logits(states), theirs.logits(teacher_states), labels, alpha, temperature)

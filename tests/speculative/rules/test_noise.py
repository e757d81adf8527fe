import math

import pytest
import torch

from lupi_trainer.speculative.rules.noise import STUDENT, TEACHER, addresses, gumbel, row_keys, sample


KNOWN = [1.91256, 0.49818, -0.4378, -1.17506]


def draw(seed=0, row=0, position=0, writer=STUDENT, vocab=4096):
    return gumbel(row_keys(seed, [row]), torch.tensor([position]), writer, vocab)[0]


def test_every_part_of_the_address_matters_and_nothing_else():
    here = draw()
    assert torch.equal(here, draw())
    assert torch.equal(here[:100], draw(vocab=100))
    for elsewhere in (draw(seed=1), draw(row=1), draw(position=1), draw(writer=TEACHER)):
        assert (here == elsewhere).float().mean() < 0.01
        correlation = torch.corrcoef(torch.stack([here, elsewhere]))[0, 1]
        assert abs(correlation) < 4 / math.sqrt(here.numel())


def test_a_batch_is_its_rows():
    keys, positions = row_keys(7, [3, -1, 2**40]), torch.tensor([0, 5, 4000])
    batch = gumbel(keys, positions, TEACHER, 1000)
    for i in range(3):
        torch.testing.assert_close(batch[i], gumbel(keys[i : i + 1], positions[i : i + 1], TEACHER, 1000)[0])


def test_equal_row_ids_have_noise_of_their_own():
    """The first as ever; and no further time is a row that is there, or may come."""
    once, again = row_keys(7, [5, 3]), row_keys(7, [5, 5, 3, 5 + 2**64, 3])
    assert torch.equal(again[[0, 2]], once) and len(set(again.tolist())) == 5
    assert torch.equal(again, row_keys(7, addresses([5, 5, 3, 5, 3])))  # which are different already
    many = addresses([*range(1000)] * 4)
    assert len(set(many)) == 4000 and many[:1000] == [*range(1000)] and min(many[1000:]) > 2**32


def test_known_values():
    """The numbers of a rollout with a given seed must stay the same from one version to the next."""
    torch.testing.assert_close(draw(seed=1, row=2, position=3, vocab=4), torch.tensor(KNOWN), atol=1e-5, rtol=0)


def test_moments_and_tails_of_a_standard_gumbel():
    noise = torch.stack([draw(position=i, vocab=150_000) for i in range(8)])
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.005)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.01)
    for x in (-1.5, 0.0, 2.0, 6.0, 9.0):  # P(noise > x) = 1 - exp(-exp(-x))
        expected = -math.expm1(-math.exp(-x)) * noise.numel()
        assert abs((noise > x).sum().item() - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("along", ["rows", "positions", "seeds"])
def test_argmax_of_logits_and_noise_follows_the_softmax(along):
    n, logits = 20_000, torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0, -1.5, 0.3])
    if along == "rows":
        keys, positions = row_keys(0, list(range(n))), torch.zeros(n, dtype=torch.long)
    elif along == "positions":
        keys, positions = row_keys(0, [0]).expand(n), torch.arange(n)
    else:
        keys, positions = torch.cat([row_keys(seed, [0]) for seed in range(n)]), torch.zeros(n, dtype=torch.long)
    tokens = sample(logits.expand(n, -1), 0.7, keys, positions, STUDENT)
    expected = (logits / 0.7).softmax(-1) * n
    chi_square = ((tokens.bincount(minlength=8) - expected) ** 2 / expected).sum().item()
    assert chi_square < 24.3  # 7 degrees of freedom, p = 0.001


def test_consecutive_draws_are_independent():
    n = 20_000
    keys = row_keys(0, [0]).expand(n)
    first = sample(torch.zeros(n, 4), 1.0, keys, torch.arange(n), STUDENT)
    for second in (first.roll(1), sample(torch.zeros(n, 4), 1.0, keys, torch.arange(n), TEACHER)):
        table = (4 * first + second).bincount(minlength=16).double()
        assert ((table - n / 16) ** 2 / (n / 16)).sum().item() < 39.3  # 16 cells, p = 0.001


def test_temperature_zero_is_argmax():
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    tokens = sample(logits, 0.0, row_keys(0, [0] * 5), torch.arange(5), STUDENT)
    assert torch.equal(tokens, logits.argmax(-1))

"""Weighted multi-token prediction: hand-made cases, and the dense loss against a loop over positions."""

import math

import pytest
import torch

from lupi_trainer.losses.reference import compute_weighted_mtp_loss, head_coefficients, shift_targets


def by_loops(logits, target_ids, weights, segments=None):
    """The seeds' definition, a position and a head at a time."""
    batch, length, horizon, _ = logits.shape
    per_position, valid, ce = [], torch.zeros(batch, length, dtype=torch.bool), torch.zeros(batch, length, horizon)
    ce = ce.to(logits.dtype)
    for b in range(batch):
        for t in range(length):
            above, below = 0.0, 0.0
            for k in range(horizon):
                j = t + k + 1
                if (
                    j >= length
                    or target_ids[b, j] == -100
                    or (segments is not None and segments[b, j] != segments[b, t])
                ):
                    continue
                ce[b, t, k] = -logits[b, t, k].log_softmax(-1)[target_ids[b, j]]
                above, below = above + weights[b, t, k] * ce[b, t, k], below + weights[b, t, k]
            if below > 1e-8:
                valid[b, t] = True
                per_position.append(above / below)
    return torch.stack(per_position).mean(), valid, ce


def scene(horizon, seed=0, batch=3, length=9, vocab=7):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, length, horizon, vocab, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, vocab, (batch, length), generator=generator)
    targets[0, :3] = -100  # a prompt
    targets[1, 6:] = -100  # padding
    targets[2, 4] = -100  # a token left out
    weights = torch.rand(batch, length, horizon, generator=generator, dtype=torch.float64)
    weights[0, 5] = 0.0  # a position that does not count
    segments = torch.tensor([[0] * 9, [0] * 4 + [1] * 5, [0, 0, 1, 1, 1, 2, 3, 3, 3]])
    return logits, targets, weights, segments


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("horizon", [1, 2, 4, 12])
def test_dense_loss_is_the_definition(horizon, packed):
    logits, targets, weights, segments = scene(horizon)
    segments = segments if packed else None
    loss, valid, ce = compute_weighted_mtp_loss(logits, targets, weights, horizon, segment_ids=segments)
    expected, expected_valid, expected_ce = by_loops(logits, targets, weights, segments)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(ce, expected_ce, atol=1e-12, rtol=0)
    assert torch.equal(valid, expected_valid)
    (ours,), (theirs,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_head_k_predicts_the_token_k_plus_1_ahead():
    targets = torch.tensor([[3, 1, 4, 2]])
    expected = torch.tensor([[[1, 4, 2], [4, 2, -100], [2, -100, -100], [-100, -100, -100]]])
    assert torch.equal(shift_targets(targets, 3), expected)
    # logits that are sure of exactly these tokens cost nothing; moved by one they do
    logits = torch.full((1, 4, 3, 5), -50.0)
    logits.scatter_(-1, expected.clamp(min=0)[..., None], 50.0)
    ones = torch.ones(1, 4, 3)
    assert compute_weighted_mtp_loss(logits, targets, ones, 3)[0] < 1e-6
    assert compute_weighted_mtp_loss(logits.roll(1, dims=1), targets, ones, 3)[0] > 10


def test_no_head_looks_into_the_next_packed_text():
    targets = torch.tensor([[-100, 1, 2, -100, 4, 5]])  # as TRL packs: the first token of a text has no label
    packed = shift_targets(targets, 3, torch.tensor([[0, 0, 0, 1, 1, 1]]))
    assert packed[0].tolist() == [[1, 2, -100], [2, -100, -100], [-100] * 3, [4, 5, -100], [5, -100, -100], [-100] * 3]
    assert shift_targets(targets, 3)[0, 2].tolist() == [-100, 4, 5]


def test_weights_of_one_give_the_mean_over_heads():
    logits, _, _, _ = scene(4)
    targets = torch.randint(0, 7, (3, 9), generator=torch.Generator().manual_seed(3))
    loss, valid, ce = compute_weighted_mtp_loss(logits, targets, torch.ones(3, 9, 4), 4)
    means = [ce[:, t, : min(4, 8 - t)].mean(dim=-1) for t in range(8)]
    torch.testing.assert_close(loss, torch.stack(means).mean())
    assert valid.tolist() == [[True] * 8 + [False]] * 3
    one = torch.nn.functional.cross_entropy(logits[:, :-1, 0].flatten(0, 1), targets[:, 1:].flatten())
    torch.testing.assert_close(compute_weighted_mtp_loss(logits[:, :, :1], targets, torch.ones(3, 9, 1), 1)[0], one)


def test_only_a_weight_in_proportion_to_others_counts():
    logits, targets, weights, _ = scene(4)
    scale = torch.rand(3, 9, 1, dtype=torch.float64) + 0.1
    reference = compute_weighted_mtp_loss(logits, targets, weights, 4)[0]
    torch.testing.assert_close(compute_weighted_mtp_loss(logits, targets, weights * scale, 4)[0], reference)
    over_tokens = compute_weighted_mtp_loss(logits, targets, weights * scale, 4, reduction="token")[0]
    has_target = shift_targets(targets, 4) != -100
    ce = compute_weighted_mtp_loss(logits, targets, weights, 4)[2]
    share = weights * scale * has_target
    torch.testing.assert_close(over_tokens, (share * ce).sum() / share.sum())


def test_nothing_to_learn_is_zero_with_a_gradient():
    logits, targets, weights, _ = scene(2)
    for w, y in ((torch.zeros_like(weights), targets), (weights, torch.full_like(targets, -100))):
        loss, valid, ce = compute_weighted_mtp_loss(logits, y, w, 2)
        loss.backward()
        assert loss.item() == 0 and not valid.any() and logits.grad.abs().max() == 0 and math.isfinite(ce.sum().item())


def test_bad_arguments_are_named():
    logits, targets, weights, _ = scene(4)
    with pytest.raises(ValueError, match=r"head_weights \(3, 9, 3\)"):
        compute_weighted_mtp_loss(logits[:, :, :3], targets, weights, 3)
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        shift_targets(targets, 0)
    with pytest.raises(ValueError, match="reduction must be"):
        head_coefficients(weights, weights > 0, "sum")

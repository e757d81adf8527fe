"""Weights of heads on hand-made cases: alignment, normalization, selection, advantages, the shuffled control."""

import pytest
import torch

from lupi_trainer.losses.token_weights import (
    accumulated_rewards,
    align_to_heads,
    critic_weights,
    head_entropy,
    rho1_weights,
    shuffle_in_texts,
    uniform_weights,
)


CE_REF = torch.tensor([[0.1, 0.5, 0.2, 1.4]])  # at t: of token t + 1, of a text of five tokens without its last place


def all_targets(batch, length, horizon):
    """Where a text without labels left out has targets."""
    t, k = torch.arange(length)[:, None], torch.arange(horizon)
    return (t + k + 1 < length).expand(batch, -1, -1)


def test_the_reference_is_aligned_to_the_heads_by_hand():
    aligned = align_to_heads(CE_REF, 3)[0]
    assert aligned.tolist() == torch.tensor([[0.1, 0.5, 0.2], [0.5, 0.2, 1.4], [0.2, 1.4, 0], [1.4, 0, 0]]).tolist()


def test_a_head_as_good_as_the_reference_at_the_same_token_scores_zero():
    """A reference that is one token off does not."""
    has_target = all_targets(1, 5, 3)
    reference = torch.cat([CE_REF, torch.zeros(1, 1)], 1)
    ce = align_to_heads(reference, 3) * has_target
    weights = rho1_weights(ce, reference, has_target)
    torch.testing.assert_close(weights[0, 0], torch.full((3,), 1 / 3))
    assert (rho1_weights(ce, reference.roll(1, 1), has_target)[0, 0] - 1 / 3).abs().max() > 0.01


def test_softmax_over_the_heads_by_hand():
    has_target = all_targets(1, 5, 3)
    reference = torch.cat([CE_REF, torch.zeros(1, 1)], 1)
    ce = torch.rand(1, 5, 3, generator=torch.Generator().manual_seed(0))
    weights = rho1_weights(ce, reference, has_target)
    gaps = [(reference[0, 1 + k] - ce[0, 1, k]).abs() for k in range(3)]
    torch.testing.assert_close(weights[0, 1], (torch.stack(gaps) / 0.7).softmax(-1))
    gaps = [(reference[0, 2 + k] - ce[0, 2, k]).abs() for k in range(2)]  # head 2 has no target here
    torch.testing.assert_close(weights[0, 2, :2], (torch.stack(gaps) / 0.7).softmax(-1))
    torch.testing.assert_close(weights.sum(-1)[0], torch.tensor([1.0, 1, 1, 1, 0]))
    assert (weights[~has_target] == 0).all()


def test_signed_scores_spare_what_the_reference_finds_hard_too():
    has_target = torch.ones(1, 1, 2, dtype=torch.bool)
    reference = torch.tensor([[3.0]])  # aligned with head 0 alone; head 1's is 0
    ce = torch.tensor([[[1.0, 1.0]]])  # the model is better than the reference at head 0, worse at head 1
    by_gap = rho1_weights(ce, reference, has_target, score="abs")[0, 0]
    by_excess = rho1_weights(ce, reference, has_target, score="signed")[0, 0]
    assert by_gap[0] > by_gap[1] and by_excess[0] < by_excess[1]


def test_over_tokens_the_mean_weight_is_one_and_the_hardest_has_most():
    has_target = all_targets(2, 6, 2)
    ce = torch.rand(2, 6, 2, generator=torch.Generator().manual_seed(1))
    weights = rho1_weights(ce, torch.zeros(2, 6), has_target, over="token")
    torch.testing.assert_close(weights.sum(1), has_target.sum(1).float())
    assert weights[0, :5, 0].argmax() == ce[0, :5, 0].argmax()


@pytest.mark.parametrize("over, counts", [("token", [[3, 3]]), ("head", [[2, 2, 2, 2, 1, 0]])])
def test_top_selects_the_share_rounded_up(over, counts):
    has_target = all_targets(1, 6, 2) if over == "token" else all_targets(1, 6, 3)[..., :3]
    ce = torch.rand(*has_target.shape, generator=torch.Generator().manual_seed(2))
    weights = rho1_weights(ce, torch.zeros(1, 6), has_target, score="signed", over=over, select="top", share=0.6)
    assert (weights > 0).sum(1 if over == "token" else -1).tolist() == counts
    if over == "head":
        assert set(weights.unique().tolist()) == {0.0, 1.0}
        return
    torch.testing.assert_close(weights.sum(1), has_target.sum(1).float())  # a mean of one in each text and head
    for k in range(2):
        chosen, left = ce[0, : 5 - k, k][weights[0, : 5 - k, k] > 0], ce[0, : 5 - k, k][weights[0, : 5 - k, k] == 0]
        assert chosen.min() > left.max() and len(weights[0, :, k].unique()) == 2


@pytest.mark.parametrize("select", ["softmax", "top"])
def test_over_tokens_packed_texts_do_not_compete(select):
    lengths, horizon = (6, 3, 9), 3
    ce = torch.rand(2, 18, horizon, generator=torch.Generator().manual_seed(3)).round(decimals=1)  # some are equal
    segments = torch.repeat_interleave(torch.tensor(lengths)).expand(2, -1)
    has_target = torch.cat([all_targets(2, length, horizon) for length in lengths], dim=1)
    options = {"score": "signed", "over": "token", "select": select, "temperature": 0.1}
    packed = rho1_weights(ce, torch.zeros(2, 18), has_target, segment_ids=segments, **options)
    parts = [x.split(lengths, dim=1) for x in (ce, torch.zeros(2, 18), has_target)]
    apart = torch.cat([rho1_weights(*part, **options) for part in zip(*parts)], dim=1)
    torch.testing.assert_close(packed, apart)
    assert (rho1_weights(ce, torch.zeros(2, 18), has_target, **options) - apart).abs().max() > 0.1


def test_unknown_options_are_named():
    has_target = all_targets(1, 4, 2)
    for name in ("score", "over", "select"):
        with pytest.raises(ValueError, match=f"{name} must be one of"):
            rho1_weights(torch.zeros(1, 4, 2), torch.zeros(1, 4), has_target, **{name: "nothing"})


def test_a_critic_that_knows_the_rewards_gives_each_head_its_token():
    rewards = torch.tensor([[0.0, 0.3, -0.2, 0.9, 0.1]])
    values = accumulated_rewards(rewards, 0.95)
    torch.testing.assert_close(values[0, 2], torch.tensor(-0.2 + 0.95 * (0.3 + 0.95 * 0.0)))
    has_target = all_targets(1, 5, 2)
    weights = critic_weights(values, has_target, decay=0.95)
    torch.testing.assert_close(weights[0, 1], (torch.tensor([-0.2, 0.9]) / 0.7).softmax(-1))  # tokens 2 and 3
    torch.testing.assert_close(weights[0, 3], torch.tensor([1.0, 0.0]))
    assert (weights[0, 4] == 0).all()


def test_what_is_earned_begins_anew_with_every_packed_text():
    rewards = torch.ones(1, 5)
    assert accumulated_rewards(rewards, 0.5, torch.tensor([[0, 0, 1, 1, 1]]))[0].tolist() == [1, 1.5, 1, 1.5, 1.75]


def test_shuffling_keeps_each_texts_weights_and_its_heads_together():
    has_target = all_targets(3, 40, 3).clone()
    has_target[:, :4, 0] = has_target[:, :3, 1] = False  # a prompt: some positions have far heads alone
    segments = torch.tensor([[0] * 40, [0] * 20 + [1] * 20, [0] * 5 + [1] * 35])
    weights = torch.rand(3, 40, 3, generator=torch.Generator().manual_seed(4)) * has_target
    mixed = shuffle_in_texts(weights, has_target, torch.Generator().manual_seed(5), segments)
    assert torch.equal(mixed, shuffle_in_texts(weights, has_target, torch.Generator().manual_seed(5), segments))
    assert (mixed[~has_target] == 0).all()
    torch.testing.assert_close(mixed.sum(1), weights.sum(1))
    assert ((mixed > 0) == (weights > 0)).all()
    moved = 0
    for b in range(3):
        for segment in segments[b].unique():
            here = (segments[b] == segment) & has_target[b].all(-1)
            before, after = weights[b, here].tolist(), mixed[b, here].tolist()
            assert sorted(before) == sorted(after)
            moved += sum(x != y for x, y in zip(before, after))
    assert moved > 90


def test_entropy_of_equal_weights_is_the_logarithm_of_the_heads():
    has_target = torch.ones(1, 4, 4, dtype=torch.bool)
    weights = uniform_weights(has_target)
    torch.testing.assert_close(head_entropy(weights), torch.full((1, 4), 4.0).log())
    assert head_entropy(torch.tensor([[[1.0, 0, 0, 0], [0, 0, 0, 0]]])).abs().max() < 1e-6

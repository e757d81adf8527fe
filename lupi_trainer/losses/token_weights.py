"""Which head counts how much at which position: weights for multi-token prediction, as pure tensors.

Everywhere, B texts of S positions have H heads; head k at position t predicts token t + k + 1, and `has_target`
[B, S, H] says where it has one. Weights are 0 where there is none.
"""

import torch


OVER = ("head", "token")


def uniform_weights(has_target: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Every head counts the same: has_target [B, S, H] bool -> [B, S, H] of ones and zeros."""
    return has_target.to(dtype)


def align_to_heads(next_token: torch.Tensor, horizon: int) -> torch.Tensor:
    """A model's next-token figures at the positions where the heads predict the same tokens.

    Args:
        next_token: [B, S]; at t, of the prediction of token t + 1 (a reference's cross-entropy, for instance).
        horizon: H.

    Returns:
        [B, S, H]: `aligned[:, t, k] = next_token[:, t + k]`, 0 beyond the end.
    """
    length = next_token.shape[1]
    padded = torch.nn.functional.pad(next_token, (0, horizon - 1))
    return torch.stack([padded[:, k : k + length] for k in range(horizon)], dim=-1)


def _texts(has_target: torch.Tensor, segment_ids: torch.Tensor | None) -> torch.Tensor:
    """[B * S] the number of the text that each position belongs to, from 0."""
    batch, length, _ = has_target.shape
    texts = torch.arange(batch, device=has_target.device)[:, None].expand(batch, length)
    if segment_ids is None:
        return texts.flatten()
    segments = segment_ids.long() - segment_ids.min()
    return (texts * (segments.max() + 1) + segments).flatten().unique(return_inverse=True)[1]


class _WithinTexts:
    """Sums, maxima and ranks [B, S, H] of each prediction among those of the same head in the same text."""

    def __init__(self, has_target: torch.Tensor, segment_ids: torch.Tensor | None):
        self.shape = has_target.shape
        self.index = _texts(has_target, segment_ids)[:, None].expand(-1, self.shape[-1])

    def _reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        start = values.new_full((int(self.index.max()) + 1, self.shape[-1]), -torch.inf if how == "amax" else 0)
        return start.scatter_reduce(0, self.index, values.flatten(0, 1), how).gather(0, self.index).view(self.shape)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return self._reduce(values, "sum")

    def max(self, values: torch.Tensor) -> torch.Tensor:
        return self._reduce(values, "amax")

    def rank(self, scores: torch.Tensor) -> torch.Tensor:
        """How many of them score higher, or as high and come before."""
        order = scores.flatten(0, 1).argsort(dim=0, descending=True, stable=True)
        texts = self.index.gather(0, order)
        order = order.gather(0, texts.argsort(dim=0, stable=True))  # text by text, the highest first
        positions = torch.arange(len(order), device=order.device)[:, None].expand_as(order)
        ranks = torch.zeros_like(order).scatter_(0, order, positions)
        sizes = self.index[:, 0].bincount()
        return (ranks - (sizes.cumsum(0) - sizes)[self.index]).view(self.shape)


class _WithinPositions:
    """The same among the heads of a position; sums and maxima are [B, S, 1]."""

    sum = staticmethod(lambda values: values.sum(dim=-1, keepdim=True))
    max = staticmethod(lambda values: values.amax(dim=-1, keepdim=True))

    @staticmethod
    def rank(scores: torch.Tensor) -> torch.Tensor:
        return scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1, stable=True)


def _groups(has_target: torch.Tensor, over: str, segment_ids: torch.Tensor | None) -> _WithinPositions | _WithinTexts:
    return _WithinPositions() if over == "head" else _WithinTexts(has_target, segment_ids)


def masked_softmax(
    scores: torch.Tensor,
    has_target: torch.Tensor,
    temperature: float,
    over: str,
    segment_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax of scores / temperature over a position's heads, or over a text's tokens, where there are targets.

    Args:
        scores: [B, S, H]. Values where there is no target have no effect.
        has_target: [B, S, H] bool.
        temperature: above 0.
        over: `"head"`: the weights of a position sum to 1; `"token"`: those of a head in a text have the mean 1.
        segment_ids: [B, S] of packed texts.

    Returns:
        [B, S, H] without a gradient.
    """
    group = _groups(has_target, over, segment_ids)
    scores = scores.detach().masked_fill(~has_target, -torch.inf)
    peak = group.max(scores).clamp(min=torch.finfo(scores.dtype).min)
    weights = ((scores - peak) / temperature).exp()  # exp(-inf) is 0; where all are, the clamps avoid 0 / 0
    weights = weights / group.sum(weights).clamp(min=torch.finfo(scores.dtype).tiny)
    return weights * group.sum(has_target.to(weights.dtype)) if over == "token" else weights


def top_share(
    scores: torch.Tensor,
    has_target: torch.Tensor,
    share: float,
    over: str,
    segment_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Equal weights for the highest scores, zero for the rest: arXiv 2404.07965, equation 4.

    Args:
        scores, has_target, over, segment_ids: as in [`masked_softmax`]; `"token"` selects in each text and head, as
            Rho-1 does.
        share: in (0, 1], of the targets; rounded up, so that at least one is chosen where there is any.

    Returns:
        [B, S, H]: ones and zeros over heads; over tokens, the weights of a head in a text have the mean 1.
    """
    group = _groups(has_target, over, segment_ids)
    scores = scores.detach().masked_fill(~has_target, -torch.inf)
    targets = group.sum(has_target.to(scores.dtype))
    count = (targets * share - 1e-6).ceil()
    chosen = ((group.rank(scores) < count) & has_target).to(scores.dtype)
    return chosen * targets / count.clamp(min=1) if over == "token" else chosen


def rho1_weights(
    ce: torch.Tensor,
    reference_ce: torch.Tensor,
    has_target: torch.Tensor,
    *,
    temperature: float = 0.7,
    score: str = "abs",
    over: str = "head",
    select: str = "softmax",
    share: float = 0.6,
    segment_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weights from how far the model is from a reference that knows the good texts.

    Args:
        ce: [B, S, H] cross-entropies of the heads in nats.
        reference_ce: [B, S] the reference's next-token cross-entropy: at t, of token t + 1. It is aligned to the
            heads by [`align_to_heads`].
        has_target: [B, S, H] bool.
        temperature: of the softmax.
        score: `"abs"`: |CE_ref - CE_k|; `"signed"`: CE_k - CE_ref, the excess loss of Rho-1 (arXiv 2404.07965,
            equation 3), which is low where the reference finds the token hard too.
        over: `"head"` or `"token"`, see [`masked_softmax`].
        select: `"softmax"`, or `"top"`: the highest `share` of the scores.
        segment_ids: [B, S] of packed texts.

    Returns:
        [B, S, H] without a gradient.

    Raises:
        ValueError: an unknown option.
    """
    for name, value, choices in (
        ("score", score, ("abs", "signed")),
        ("over", over, OVER),
        ("select", select, ("softmax", "top")),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")
    excess = ce.detach() - align_to_heads(reference_ce.to(ce.dtype), ce.shape[-1])
    scores = excess.abs() if score == "abs" else excess
    if select == "top":
        return top_share(scores, has_target, share, over, segment_ids)
    return masked_softmax(scores, has_target, temperature, over, segment_ids)


def critic_weights(
    values: torch.Tensor, has_target: torch.Tensor, *, temperature: float = 0.7, decay: float = 0.95
) -> torch.Tensor:
    """Weights from what a critic expects of each token: softmax over a position's heads of the tokens' advantages.

    The advantage of token j is `V[j] - decay * V[j - 1]`: by how much reading it raised the critic's value. Head k at
    position t takes that of token t + k + 1.

    Args:
        values: [B, S] the critic's value of the text up to and including each token.
        has_target: [B, S, H] bool.
        temperature: of the softmax, in units of the value.
        decay: of the values, as in [`accumulated_rewards`].

    Returns:
        [B, S, H], each position's weights summing to 1 over its targets.
    """
    values = values.detach()
    advantage = values[:, 1:] - decay * values[:, :-1]  # at t: of token t + 1
    scores = align_to_heads(torch.nn.functional.pad(advantage, (0, 1)), has_target.shape[-1])
    return masked_softmax(scores, has_target, temperature, over="head")


def accumulated_rewards(rewards: torch.Tensor, decay: float, segment_ids: torch.Tensor | None = None) -> torch.Tensor:
    """What a text has earned so far: `G[t] = rewards[t] + decay * G[t - 1]`, beginning anew with every segment.

    The targets of a critic whose rewards come token by token: its advantage `V[t] - decay * V[t - 1]` is then an
    estimate of `rewards[t]`.

    Args:
        rewards: [B, S], of each token.
        decay: in [0, 1].
        segment_ids: [B, S] of packed texts.
    """
    total, sums = torch.zeros_like(rewards[:, 0]), []
    for t in range(rewards.shape[1]):
        if segment_ids is not None and t:
            total = total * (segment_ids[:, t] == segment_ids[:, t - 1])
        total = rewards[:, t] + decay * total
        sums.append(total)
    return torch.stack(sums, dim=1)


def shuffle_in_texts(
    weights: torch.Tensor,
    has_target: torch.Tensor,
    generator: torch.Generator,
    segment_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """The control: a text's weights in a random order of its positions, so that they say nothing of its tokens.

    Positions change places with those of the same text where the same heads have targets; what a position's heads
    have between them stays together.

    Args:
        weights, has_target: [B, S, H].
        generator: on the CPU.
        segment_ids: [B, S] of packed texts.
    """
    batch, length, horizon = weights.shape
    # positions of one group (same text, same heads) are contiguous in both orders
    group = (has_target << torch.arange(horizon, device=weights.device)).sum(dim=-1)
    if segment_ids is not None:
        group = group + (segment_ids.long() << horizon)
    noise = torch.rand(batch, length, generator=generator).to(weights.device)
    ordered = group.argsort(dim=1, stable=True)
    mixed = noise.argsort(dim=1)
    mixed = mixed.gather(1, group.gather(1, mixed).argsort(dim=1, stable=True))
    moved = torch.zeros_like(weights)
    moved.scatter_(1, ordered[..., None].expand_as(weights), weights.gather(1, mixed[..., None].expand_as(weights)))
    return moved * has_target


def head_entropy(weights: torch.Tensor) -> torch.Tensor:
    """weights [B, S, H] -> [B, S], entropy in nats of each position's weights as a distribution over its heads."""
    shares = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-8)
    return -(shares * shares.clamp(min=1e-30).log()).sum(dim=-1)

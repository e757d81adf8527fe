"""Which head counts how much at which position: weights for multi-token prediction, as pure tensors.

Everywhere, B texts of S positions have H heads; head k at position t predicts token t + k + 1, and `has_target`
[B, S, H] says where it has one. Weights are 0 where there is none.
"""

import torch


AXES = {"head": -1, "token": 1}


def uniform_weights(has_target: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Every head counts the same: has_target [B, S, H] bool -> [B, S, H] of ones and zeros."""
    return has_target.to(dtype)


def align_to_heads(next_token: torch.Tensor, horizon: int) -> torch.Tensor:
    """A model's next-token figures at the places where the heads predict the same tokens.

    Args:
        next_token: [B, S]; at t, of the prediction of token t + 1 (a reference's cross-entropy, for instance).
        horizon: H.

    Returns:
        [B, S, H]: `aligned[:, t, k] = next_token[:, t + k]`, 0 beyond the end.
    """
    length = next_token.shape[1]
    padded = torch.nn.functional.pad(next_token, (0, horizon - 1))
    return torch.stack([padded[:, k : k + length] for k in range(horizon)], dim=-1)


def masked_softmax(scores: torch.Tensor, has_target: torch.Tensor, temperature: float, over: str) -> torch.Tensor:
    """Softmax of scores / temperature over a position's heads, or over a text's tokens, where there are targets.

    Args:
        scores: [B, S, H]. Whatever stands where there is no target has no effect.
        has_target: [B, S, H] bool.
        temperature: above 0.
        over: `"head"`: the weights of a position sum to 1; `"token"`: those of a head in a text have the mean 1.

    Returns:
        [B, S, H] without a gradient.
    """
    dim = AXES[over]
    scores = scores.detach().masked_fill(~has_target, -torch.inf)
    peak = scores.amax(dim=dim, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    weights = ((scores - peak) / temperature).exp()  # exp(-inf) is 0, and where all are, nothing is divided by 0
    weights = weights / weights.sum(dim=dim, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
    return weights * has_target.sum(dim=dim, keepdim=True) if over == "token" else weights


def top_share(scores: torch.Tensor, has_target: torch.Tensor, share: float, over: str) -> torch.Tensor:
    """One for the highest scores, zero for the rest: selective language modelling, arXiv 2404.07965, equation 4.

    Args:
        scores, has_target, over: as in [`masked_softmax`]; `"token"` selects in each text and head, as Rho-1 does.
        share: in (0, 1], of the targets; rounded up, so that at least one is chosen where there is any.

    Returns:
        [B, S, H] of ones and zeros.
    """
    dim = AXES[over]
    scores = scores.detach().masked_fill(~has_target, -torch.inf)
    count = (has_target.sum(dim=dim, keepdim=True) * share - 1e-6).ceil()
    rank = scores.argsort(dim=dim, descending=True, stable=True).argsort(dim=dim, stable=True)
    return ((rank < count) & has_target).to(scores.dtype)


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

    Returns:
        [B, S, H] without a gradient.

    Raises:
        ValueError: an unknown option.
    """
    for name, value, choices in (
        ("score", score, ("abs", "signed")),
        ("over", over, tuple(AXES)),
        ("select", select, ("softmax", "top")),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")
    excess = ce.detach() - align_to_heads(reference_ce.to(ce.dtype), ce.shape[-1])
    scores = excess.abs() if score == "abs" else excess
    if select == "top":
        return top_share(scores, has_target, share, over)
    return masked_softmax(scores, has_target, temperature, over)


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
        decay: of the values, as in [`gathered`].

    Returns:
        [B, S, H], each position's weights summing to 1 over its targets.
    """
    values = values.detach()
    advantage = values[:, 1:] - decay * values[:, :-1]  # at t: of token t + 1
    scores = align_to_heads(torch.nn.functional.pad(advantage, (0, 1)), has_target.shape[-1])
    return masked_softmax(scores, has_target, temperature, over="head")


def gathered(rewards: torch.Tensor, decay: float, segment_ids: torch.Tensor | None = None) -> torch.Tensor:
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

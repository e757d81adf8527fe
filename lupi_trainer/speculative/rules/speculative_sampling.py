"""Which drafted tokens are accepted when the text must be the target's own, and what follows them.

Both sides are turned into the distributions that tokens are really drawn from (`Sampling.probabilities`), p of the
target and q of the draft. A verification returns the number of accepted tokens and the target's token after them.
Beyond a row's last drafted token q is zero, so what is left of p there is p itself: a bonus token needs no case.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .noise import STUDENT, TEACHER, gumbel


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, from the target and the draft alike; at temperature 0 the largest logit wins."""

    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative (0 keeps every token), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty must be positive, got {self.repetition_penalty}")

    def penalize(self, logits: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """logits, seen (bool) [..., V] -> logits in which tokens of the text so far are less likely.

        Source: arXiv 1909.05858, section 4.1, with negative logits multiplied, as transformers does.
        """
        if seen is None:
            return logits
        less = torch.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
        return torch.where(seen, less, logits)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """logits [..., V] float32 after the penalty -> the distribution that tokens are drawn from, [..., V].

        Temperature first, then the `top_k` largest, then the fewest of these that hold `top_p` of the probability.
        """
        scaled = logits / self.temperature
        if 0 < self.top_k < scaled.shape[-1]:
            least = scaled.topk(self.top_k, -1).values[..., -1:]
            scaled = scaled.masked_fill(scaled < least, -torch.inf)
        probabilities = scaled.softmax(-1)
        if self.top_p == 1:
            return probabilities
        ordered, index = probabilities.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        before[..., 0] = 0.0  # the most likely token is always kept
        kept = ordered.masked_fill(before >= self.top_p, 0.0)
        kept = kept / kept.sum(-1, keepdim=True)
        return torch.zeros_like(probabilities).scatter_(-1, index, kept)


class RoundNoise:
    """Random numbers of one round, addressed by (row, place where the round began, token of the round).

    A round must not see the numbers of an earlier one again: whether a drafted token is accepted may depend on those
    after it (block verification), so these are not independent of the text any more. keys, n [A] int64; `stride` is
    more than the longest draft.
    """

    def __init__(self, keys: torch.Tensor, n: torch.Tensor, stride: int):
        self.keys, self.first, self.stride = keys, n * stride, stride

    def draft(self, probabilities: torch.Tensor, i: int) -> torch.Tensor:
        """probabilities [A, V] -> [A] int64, a token drawn from them: the i-th of the draft."""
        return _draw(probabilities, gumbel(self.keys, 2 * (self.first + i), STUDENT, probabilities.shape[-1]))

    def target(self, weights: torch.Tensor) -> torch.Tensor:
        """weights [A, V], of any positive sum -> [A] int64, a token drawn in proportion to them."""
        return _draw(weights, gumbel(self.keys, 2 * self.first, TEACHER, weights.shape[-1]))

    def uniform(self, count: int) -> torch.Tensor:
        """Returns [A, count] float64 in (0, 1), never 0; one for each drafted token."""
        g = gumbel(self.keys, 2 * self.first + 1, STUDENT, count).double()
        return -torch.expm1(-torch.exp(-g))


def _draw(weights: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return (weights.log() + noise).argmax(-1)


def verify_greedy(logits: torch.Tensor, drafts: torch.Tensor, count: torch.Tensor):
    """logits [A, g+1, V], drafts [A, g], count [A] drafted tokens -> (accepted [A], the next token [A])."""
    best = logits.argmax(-1)
    places = torch.arange(drafts.shape[1], device=drafts.device)
    matches = (best[:, :-1] == drafts) & (places < count[:, None])
    accepted = matches.long().cumprod(1).sum(1)
    return accepted, best.gather(1, accepted[:, None])[:, 0]


def _prepared(p: torch.Tensor, q: torch.Tensor, drafts: torch.Tensor, count: torch.Tensor):
    """Returns p and q at the drafted tokens [A, g] float64, and q [A, g+1, V], zero from `count` on."""
    pad = torch.cat([q, q.new_zeros(q.shape[0], 1, q.shape[2])], 1)
    places = torch.arange(pad.shape[1], device=q.device)
    pad = pad.masked_fill((places >= count[:, None])[..., None], 0.0)
    at = drafts[..., None]
    return p[:, :-1].gather(-1, at)[..., 0].double(), q.gather(-1, at)[..., 0].double(), pad


def _after(p: torch.Tensor, q: torch.Tensor, accepted: torch.Tensor, share: torch.Tensor | float, noise: RoundNoise):
    """Draws the token after `accepted` [A] drafted ones from `max(share * p - q, 0)` at that place."""
    row = torch.arange(len(accepted), device=accepted.device)
    target = p[row, accepted]
    left = (share * target - q[row, accepted]).clamp_(min=0)
    left = torch.where(left.sum(-1, keepdim=True) > 0, left, target)  # p equals q up to rounding
    return noise.target(left)


def verify_tokens(p, q, drafts, count, noise: RoundNoise):
    """Token by token: d_i is accepted with probability min(1, p(d_i) / q(d_i)) if all before it are.

    p [A, g+1, V], q [A, g, V] float32, drafts [A, g], count [A] -> (accepted [A], the next token [A]).
    Source: arXiv 2211.17192, algorithm 1.
    """
    px, qx, q = _prepared(p, q, drafts, count)
    places = torch.arange(drafts.shape[1], device=drafts.device)
    passes = (noise.uniform(drafts.shape[1]) * qx < px) & (places < count[:, None])
    accepted = passes.long().cumprod(1).sum(1)
    return accepted, _after(p, q, accepted, 1.0, noise)


def verify_blocks(p, q, drafts, count, noise: RoundNoise):
    """The entire block: the longest prefix that passes, where a later token can make up for an earlier one.

    With w_0 = 1, w_i = min(1, w_{i-1} p(d_i) / q(d_i)) and r_i = sum_x max(w_i p(x) - q(x), 0) after i tokens, prefix
    i passes with probability r_i / (r_i + 1 - w_i), which is w_i at the end of the draft. Shapes as in
    `verify_tokens`; never fewer accepted tokens in expectation. Source: arXiv 2403.10444, algorithm 2.
    """
    px, qx, q = _prepared(p, q, drafts, count)
    weights = [torch.ones_like(px[:, 0]) if px.shape[1] else p.new_ones(len(p), dtype=torch.float64)]
    for i in range(drafts.shape[1]):
        weights.append((weights[-1] * px[:, i] / qx[:, i].clamp(min=1e-300)).clamp(max=1.0))
    w = torch.stack(weights, 1)  # [A, g+1]
    left = (w[..., None].float() * p - q).clamp_(min=0).sum(-1).double()
    passing = left / (left + 1 - w).clamp(min=1e-300)  # [A, g+1]
    places = torch.arange(1, w.shape[1], device=w.device)
    passes = (noise.uniform(drafts.shape[1]) < passing[:, 1:]) & (places <= count[:, None])
    accepted = torch.cat([places.new_zeros(len(w), 1), places * passes], 1).amax(1)
    share = w.gather(1, accepted[:, None]).float()
    return accepted, _after(p, q, accepted, share, noise)

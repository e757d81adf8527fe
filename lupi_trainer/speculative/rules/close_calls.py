"""Close calls: tokens whose draw or verdict lies within rounding, so that other shapes may decide them otherwise.

In half precision a model's logits depend a little on how many rows and tokens it reads at once. Two logits are taken
to be as good as equal where they are nearer than `tolerance`: on SmolLM2-135M in bfloat16, reading a text at once and
token by token moved the difference of two likely tokens' logits by no more than that in over 99% of all places.
"""

from __future__ import annotations

import torch

from .acceptance import AcceptanceRule, Judged
from .noise import gumbel


def tolerance(logits: torch.Tensor, resolution: float) -> torch.Tensor:
    """logits [..., V] -> [...]: how near two of them must lie to be a close call, twice the rounding of the largest.

    `resolution`: the spacing of the model's numbers at 1 (2^-7 in bfloat16).
    """
    return 2 * resolution * logits.amax(-1).abs()


def sample_closely(
    logits: torch.Tensor,
    temperature: float,
    keys: torch.Tensor,
    positions: torch.Tensor,
    writer: int,
    resolution: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`noise.sample`: logits [B, V] float32 -> tokens [B] int64, and whether each was a close call [B] bool."""
    near = tolerance(logits, resolution)
    if temperature != 0:
        logits = (logits / temperature).add_(gumbel(keys, positions, writer, logits.shape[-1]))
        near = near / temperature
    first, second = logits.topk(2).values.unbind(-1)
    return logits.argmax(-1), first - second < near


def close_verdict(rule: AcceptanceRule, judged: Judged, accepted: torch.Tensor, resolution: float) -> torch.Tensor:
    """Whether `rule` would judge otherwise if the drafted token's logit were larger or smaller by the tolerance.

    accepted [B, Q] bool, what the rule has made of `judged` -> [B, Q] bool. This finds it out for any rule: at rank k,
    at a least probability, at a share of the largest one. The teacher's logits, which nothing else may share memory
    with, are moved in place and put back.
    """
    logits, token = judged.teacher_logits, judged.draft[..., None]
    near, own = tolerance(logits, resolution)[..., None], logits.gather(-1, token)
    close = torch.zeros_like(accepted)
    for shift in (near, -near):
        logits.scatter_(-1, token, own + shift)  # in place: a copy would be as large as the largest that a round has
        close |= rule.accept(judged) != accepted
    logits.scatter_(-1, token, own)
    return close

"""The rule and the draft length that a configuration names."""

from dataclasses import fields
from typing import Any

from ..speculative import (
    AcceptanceRule,
    AdaptiveTopK,
    Goodput,
    JensenShannon,
    RelativeProbability,
    TopK,
    TopP,
)


RULES = {
    "top_k": TopK,
    "adaptive_top_k": AdaptiveTopK,
    "top_p": TopP,
    "relative": RelativeProbability,
    "divergence": JensenShannon,
}


def make_rule(name: str, options: dict[str, Any] | None, accept_top_k: int, teacher_min_prob: float) -> AcceptanceRule:
    """The acceptance rule of a run.

    Args:
        name: a key of `RULES`.
        options: the rule's own parameters; those of `top_k` have keys of their own.
        accept_top_k, teacher_min_prob: parameters of `top_k`.

    Raises:
        ValueError: no such rule, a parameter that it does not have, or one out of range.
    """
    if name not in RULES:
        raise ValueError(f"acceptance_rule must be one of {list(RULES)}, got {name!r}")
    options = dict(options or {})
    if name == "top_k":
        if options:
            raise ValueError("acceptance_kwargs has no place here: top_k is set by accept_top_k and teacher_min_prob")
        return TopK(accept_top_k, teacher_min_prob)
    known = [field.name for field in fields(RULES[name])]
    for option in options:
        if option not in known:
            raise ValueError(f"acceptance_kwargs: {name} has no parameter {option!r}; it has {known}")
    return RULES[name](**options)


def make_gamma_policy(name: str, gamma: int) -> str | Goodput:
    """The draft-length policy of a run; what `goodput` learns is kept from one rollout to the next."""
    return Goodput(gamma) if name == "goodput" else name

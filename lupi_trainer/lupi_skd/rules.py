"""The rule and the draft length that a configuration names."""

from dataclasses import fields
from typing import Any

from ..speculative import (
    AcceptanceRule,
    AcceptNone,
    AdaptiveTopK,
    GammaPolicy,
    Goodput,
    JensenShannon,
    Knowledge,
    RelativeProbability,
    TopK,
    TopP,
)
from ..training.plugins import is_plugin, load_plugin, make_plugin


RULES = {
    "top_k": TopK,
    "adaptive_top_k": AdaptiveTopK,
    "top_p": TopP,
    "relative": RelativeProbability,
    "divergence": JensenShannon,
    "knowledge": Knowledge,
}


def make_rule(name: str, options: dict[str, Any] | None, accept_top_k: int, teacher_min_prob: float) -> AcceptanceRule:
    """The acceptance rule of a run.

    Args:
        name: a key of `RULES`, or `MODULE:CLASS` or `FILE.py:CLASS` for a rule outside the package.
        options: the rule's own parameters; those of `top_k` have keys of their own.
        accept_top_k, teacher_min_prob: parameters of `top_k`.

    Raises:
        ValueError: no such rule, a parameter that it does not have, or one out of range.
    """
    options = dict(options or {})
    if is_plugin(name):
        needs = ("accept", "initial_state", "next_state", "state_size", "needs_student_logits")
        return make_plugin("acceptance_kwargs", load_plugin("acceptance_rule", name, needs), **options)
    if name not in RULES:
        raise ValueError(
            f"acceptance_rule must be one of {list(RULES)}, or MODULE:CLASS or FILE.py:CLASS, got {name!r}"
        )
    if name == "top_k":
        if options:
            raise ValueError("acceptance_kwargs has no place here: top_k is set by accept_top_k and teacher_min_prob")
        return TopK(accept_top_k, teacher_min_prob)
    known = [field.name for field in fields(RULES[name])]
    for option in options:
        if option not in known:
            raise ValueError(f"acceptance_kwargs: {name} has no parameter {option!r}; it has {known}")
    return RULES[name](**options)


def rule_of(args: Any, vocab_size: int) -> AcceptanceRule:
    """The rule of a run: that of its `rollout_policy`, or the one that its configuration names.

    Args:
        args: [`LUPISKDConfig`].
        vocab_size: token ids that both models have.
    """
    if args.rollout_policy == "student":
        return TopK(k=vocab_size, min_prob=0.0)
    if args.rollout_policy == "teacher":
        return AcceptNone()
    return make_rule(args.acceptance_rule, args.acceptance_kwargs, args.accept_top_k, args.teacher_min_prob)


def gamma_policy_of(args: Any) -> str:
    """The name of a run's draft-length policy: unless it has one, the fastest that its other keys allow."""
    return args.gamma_policy or ("fixed" if args.deterministic else "goodput")


def make_gamma_policy(name: str, gamma: int) -> str | GammaPolicy:
    """The draft-length policy of a run; what an object learns is kept from one rollout to the next.

    Args:
        name: a key of `GAMMA_POLICIES`, or `MODULE:CLASS` or `FILE.py:CLASS` for a class that is made with `gamma`.
        gamma: the longest draft, in tokens.

    Raises:
        ValueError: no such class, or one that cannot be made.
    """
    if is_plugin(name):
        return make_plugin("gamma_policy", load_plugin("gamma_policy", name, ("choose", "observe")), gamma)
    return Goodput(gamma) if name == "goodput" else name

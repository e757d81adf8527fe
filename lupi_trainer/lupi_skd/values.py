"""Which values of LUPI-SKD's keys cannot be: known from the values alone, so that nothing heavy is imported here."""

import math
from collections.abc import Iterator
from typing import Any

from ..data.teacher_names import teacher_faults
from ..training.plugins import is_plugin
from .text_keys import text_faults


ROLLOUT_POLICIES = ("speculative", "student", "teacher", "gold")
GAMMA_POLICIES = ("fixed", "adaptive", "goodput")
VERIFICATIONS = ("parallel", "sequential")
TEMPLATES = ("own", "student")  # whose writes the teacher's prompts
# Sampling options of the parent class that the rollout does not have.
_UNSUPPORTED = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0, "generation_kwargs": None}


def value_faults(args: Any) -> Iterator[str]:
    """What is wrong with the values of a configuration, one message a fault.

    Args:
        args: [`LUPISKDConfig`], or whatever has its attributes.
    """
    choices_of = {
        "rollout_policy": ROLLOUT_POLICIES,
        "verification": VERIFICATIONS,
        "teacher_chat_template": TEMPLATES,
    }
    for name, choices in choices_of.items():
        if getattr(args, name) not in choices:
            yield f"{name} must be one of {list(choices)}, got {getattr(args, name)!r}"
    if args.gamma_policy is not None and args.gamma_policy not in GAMMA_POLICIES and not is_plugin(args.gamma_policy):
        yield (
            f"gamma_policy must be one of {list(GAMMA_POLICIES)}, or MODULE:CLASS or FILE.py:CLASS, got "
            f"{args.gamma_policy!r}"
        )
    for name in ("gamma", "accept_top_k", "max_teacher_prompt_length", "max_completion_length"):
        if getattr(args, name) is None or getattr(args, name) < 1:
            yield f"{name} must be at least 1, got {getattr(args, name)}"
    if args.max_slots is not None and args.max_slots < 1:
        yield f"max_slots must be at least 1 or null, got {args.max_slots}"
    for name in ("teacher_prompt_cache_mb", "record_rollouts"):
        if getattr(args, name) < 0:
            yield f"{name} must not be negative, got {getattr(args, name)}"
    if not 0.0 <= args.teacher_min_prob <= 1.0:
        yield f"teacher_min_prob must be a probability in [0, 1], got {args.teacher_min_prob}"
    for name in ("student_temperature", "teacher_temperature"):
        if not 0.0 <= getattr(args, name) < math.inf:
            yield f"{name} must not be negative, and finite, got {getattr(args, name)}"
    if not 0.0 < args.temperature < math.inf:
        yield f"temperature (of the loss) must be above 0, and finite, got {args.temperature}"
    if not 0.0 <= args.beta <= 1.0:  # of which the parent lets NaN pass
        yield f"beta must be in [0, 1], got {args.beta}"
    yield from teacher_faults(args)
    if args.deterministic:
        yield from _undetermined(args)
    yield from text_faults(args)
    if args.teacher_load_in_4bit and args.teacher_load_in_8bit:
        yield "teacher_load_in_4bit and teacher_load_in_8bit exclude each other"
    if args.teacher_offload and (args.teacher_load_in_4bit or args.teacher_load_in_8bit):
        yield "teacher_offload is for a teacher that is not quantized: a quantized one stays where it is"
    for name, neutral in _UNSUPPORTED.items():
        if getattr(args, name) != neutral:
            yield (
                f"{name}={getattr(args, name)!r} has no meaning here: the rollout samples at student_temperature "
                f"and teacher_temperature, under accept_top_k and teacher_min_prob. Leave it at {neutral!r}."
            )


def _undetermined(args: Any) -> Iterator[str]:
    """What lets the shapes of a rollout depend on more than the seed, the data and the settings."""
    said = "deterministic: true does not go with"
    if args.gamma_policy == "goodput":
        yield f"{said} gamma_policy='goodput', which follows measured seconds: take 'fixed' or 'adaptive'"
    if args.teacher_prompt_cache_mb > 0:
        yield (
            f"{said} teacher_prompt_cache_mb={args.teacher_prompt_cache_mb}: a resumed run has not read the prompts "
            "that an unbroken one keeps, and reads them in other shapes. Leave it at 0"
        )
    if args.teacher_model_server_url is not None:
        yield f"{said} a teacher on a server, which chooses its batches itself"

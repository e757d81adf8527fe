"""A remote teacher, on a vLLM server: what it can do, and how it is reached."""

import math
from typing import Any

from ..teachers.vllm import TeacherServer
from ..teachers.wire import check_url


# Settings that need the teacher itself, or all of its distribution: refused rather than ignored.
_NEUTRAL = {
    "acceptance_rule": "top_k",
    "temperature": 1.0,
    "reuse_verification": True,
    "compile_rollout": False,
    "teacher_prompt_cache_mb": 0,
    "teacher_offload": False,
    "teacher_dtype": "auto",
    "teacher_device": None,
    "teacher_attn_implementation": None,
    "teacher_load_in_4bit": False,
    "teacher_load_in_8bit": False,
    "teacher_model_init_kwargs": None,
    "teacher_bnb_4bit_quant_type": "nf4",
    "teacher_use_bnb_nested_quant": False,
}


def check_remote_settings(args: Any) -> None:
    """Refuse what a remote teacher behind `teacher_model_server_url` cannot do.

    Raises:
        ValueError: the setting, by name.
    """
    check_url(args.teacher_model_server_url)
    for name, neutral in _NEUTRAL.items():
        if (value := getattr(args, name)) not in (neutral, {}):
            raise ValueError(
                f"{name}={value!r} does not work with teacher_model_server_url: the server returns the teacher's "
                f"loss_top_k likeliest tokens at temperature 1 and no more. Leave it at {neutral!r}."
            )
    if args.loss_top_k < 1:
        raise ValueError(f"loss_top_k must be at least 1, got {args.loss_top_k}")
    if args.rollout_policy == "speculative" and args.accept_top_k > args.loss_top_k:
        raise ValueError(
            f"accept_top_k={args.accept_top_k} is beyond loss_top_k={args.loss_top_k}, the number of likeliest tokens "
            "that the teacher server returns"
        )
    for name in ("teacher_server_timeout", "teacher_server_request_timeout"):
        if not 0 < getattr(args, name) < math.inf:
            raise ValueError(f"{name} must be above 0 seconds, got {getattr(args, name)}")


def connect_teacher(name: str | None, args: Any, tokenizer: Any, vocab_size: int) -> TeacherServer:
    """The remote teacher at `args.teacher_model_server_url`, checked against the student's tokenizer.

    Args:
        name: the name or path that the served model must have, or `None`.
        args: the run's configuration.
        tokenizer: the student's.
        vocab_size: token ids that both models have.

    Raises:
        TeacherServerError: the server does not answer, or serves something else.
    """
    return TeacherServer(
        args.teacher_model_server_url,
        tokenizer,
        model=name,
        vocab_size=vocab_size,
        top_k=args.loss_top_k,
        timeout=args.teacher_server_timeout,
        request_timeout=args.teacher_server_request_timeout,
    )

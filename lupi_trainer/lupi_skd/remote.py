"""A remote teacher, on a vLLM server: what it can do, how it is reached, and the loss on what it returned."""

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from ..losses.reference import top_k_divergence
from ..models.lm_head import Head
from ..teachers.vllm import TeacherServer
from ..teachers.wire import check_url


CHUNK_ELEMENTS = 1 << 22  # logits of the student at a time
# Settings that need the teacher itself, or all of its distribution: refused rather than ignored.
_NEUTRAL = {
    "acceptance_rule": "top_k",
    "temperature": 1.0,
    "reuse_verification": True,
    "compile_rollout": False,
    "teacher_offload": False,
    "teacher_dtype": "auto",
    "teacher_device": None,
    "teacher_attn_implementation": None,
    "teacher_load_in_4bit": False,
    "teacher_load_in_8bit": False,
    "teacher_model_init_kwargs": None,
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
        if not getattr(args, name) > 0:
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


def _chunk(states: torch.Tensor, top: torch.Tensor, head: Head, beta: float):
    logits = head.logits(states)
    ids, log_probs = top.chunk(2, dim=-1)
    with torch.no_grad():
        log_student = logits.log_softmax(-1)
        entropy = -(log_student.exp() * log_student).sum()
    return top_k_divergence(logits, ids.long(), log_probs, beta).sum(), entropy


def served_divergence_loss(
    student_states: torch.Tensor,
    head: Head,
    top: torch.Tensor,
    completion_mask: torch.Tensor,
    beta: float,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[`~lupi_trainer.losses.top_k_divergence`] over a batch, a chunk of tokens at a time, computed again backwards.

    Args:
        student_states: [B, C, H] at completion positions.
        head: the student's `lm_head`, cut to the shared vocabulary.
        top: [B, C, 2 * K], the teacher's likeliest token ids and then their log-probabilities.
        completion_mask: [B, C].
        beta: as in `top_k_divergence`.
        num_items_in_batch: tokens that the sum is divided by; those of this batch unless given.

    Returns:
        Scalar loss, the sum of the student's entropy (nats), and the number of tokens.
    """
    valid = completion_mask.bool()
    states, top = student_states[valid], top[valid]
    loss = student_states.sum() * 0.0  # so that a batch without tokens has a gradient, too
    entropy = torch.zeros((), device=loss.device)
    size = max(1, CHUNK_ELEMENTS // head.weight.size(0))
    for part, part_top in zip(states.split(size), top.split(size)):
        part_loss, part_entropy = checkpoint(_chunk, part, part_top, head, beta, use_reentrant=False)
        loss, entropy = loss + part_loss, entropy + part_entropy
    num_valid = valid.sum()
    return loss / (num_valid.clamp(min=1) if num_items_in_batch is None else num_items_in_batch), entropy, num_valid

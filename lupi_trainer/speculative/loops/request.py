"""What was asked of a rollout, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...teachers.remote import RemoteTeacher
from ..rules.acceptance import AcceptanceRule, AcceptNone, TopK
from ..rules.gamma import Adaptive, Fixed, GammaPolicy, Goodput
from ..runners.lockstep import Alone, Lockstep
from ..runners.support import require_support, text_config, usable_positions


GAMMA_POLICIES = {"fixed": Fixed, "adaptive": Adaptive, "goodput": Goodput}
VERIFICATIONS = ("parallel", "sequential")


@dataclass(frozen=True)
class Request:
    """The arguments of `skd_rollout`, complete and consistent."""

    student_prompts: list[list[int]]
    teacher_prompts: list[list[int]]
    max_new_tokens: int
    gamma: int
    gamma_policy: GammaPolicy
    acceptance: AcceptanceRule
    student_temperature: float
    teacher_temperature: float
    eos_token_ids: tuple[int, ...]
    seed: int
    row_ids: list[int]
    slots: int
    verification: str
    vocab_size: int
    return_teacher_hidden: bool
    trace_rows: list[int]
    lockstep: Lockstep | Alone
    compile: bool


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _one_of(name: str, value, choices: Sequence[str]) -> None:
    if isinstance(value, str) and value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_prompts(role: str, model, prompts: list[list[int]], max_new_tokens: int, vocab_size: int) -> None:
    room = usable_positions(model)
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"{role} prompt {i} is empty: there is nothing to continue")
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            raise ValueError(f"{role} prompt {i} holds a token id outside [0, {vocab_size})")
        if room is not None and len(prompt) + max_new_tokens > room:
            raise ValueError(
                f"{role} prompt {i} has {len(prompt)} tokens; with max_new_tokens={max_new_tokens} that is beyond the "
                f"{role}'s {room} positions"
            )


def _check_remote(teacher, acceptance: AcceptanceRule, vocab_size: int, compile: bool) -> None:
    if compile:
        raise ValueError("compile=True does not work with a remote teacher")
    if isinstance(acceptance, AcceptNone):
        return
    k = acceptance.k if isinstance(acceptance, TopK) else None
    if k is None or teacher.top_k < k < vocab_size:
        raise ValueError(
            f"a remote teacher that returns its {teacher.top_k} likeliest tokens can judge by TopK with k up to that "
            f"number (or let all {vocab_size} stand, or none), not by {acceptance}"
        )


def make_request(
    student, teacher, student_prompt_ids, teacher_prompt_ids, *, max_new_tokens, gamma, gamma_policy, acceptance,
    student_temperature, teacher_temperature, eos_token_id, seed, row_ids, max_slots, verification, vocab_size,
    return_teacher_hidden, trace_rows, compile, lockstep,
) -> Request:  # fmt: skip
    """Returns the checked request; raises ValueError with the offending argument, row or model by name."""
    rows = len(student_prompt_ids)
    if rows == 0:
        raise ValueError("student_prompt_ids is empty: there is nothing to roll out")
    if len(teacher_prompt_ids) != rows:
        raise ValueError(f"{rows} student prompts, but {len(teacher_prompt_ids)} teacher prompts")
    if row_ids is not None and len(row_ids) != rows:
        raise ValueError(f"{rows} student prompts, but {len(row_ids)} row_ids")
    _at_least_one(max_new_tokens=max_new_tokens, gamma=gamma, max_slots=rows if max_slots is None else max_slots)
    if not set(trace_rows) <= set(range(rows)):
        raise ValueError(f"trace_rows must be among the rows 0 to {rows - 1}, got {list(trace_rows)}")
    _one_of("gamma_policy", gamma_policy, GAMMA_POLICIES)
    _one_of("verification", verification, VERIFICATIONS)
    for name, value in (("student_temperature", student_temperature), ("teacher_temperature", teacher_temperature)):
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    require_support(student, "student")
    require_support(teacher, "teacher")
    sizes = {"student": text_config(student).vocab_size, "teacher": text_config(teacher).vocab_size}
    shared = min(sizes.values())
    if vocab_size is not None and not 1 <= vocab_size <= shared:
        raise ValueError(
            f"vocab_size must lie in [1, {shared}], the smaller of the two vocabularies; got {vocab_size}"
        )
    if isinstance(teacher, RemoteTeacher):
        _check_remote(teacher, acceptance, shared if vocab_size is None else vocab_size, compile)
    students, teachers = [list(p) for p in student_prompt_ids], [list(p) for p in teacher_prompt_ids]
    _check_prompts("student", student, students, max_new_tokens, sizes["student"])
    _check_prompts("teacher", teacher, teachers, max_new_tokens, sizes["teacher"])
    eos = () if eos_token_id is None else (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)
    return Request(
        student_prompts=students,
        teacher_prompts=teachers,
        max_new_tokens=max_new_tokens,
        gamma=gamma,
        gamma_policy=GAMMA_POLICIES[gamma_policy](gamma) if isinstance(gamma_policy, str) else gamma_policy,
        acceptance=acceptance,
        student_temperature=float(student_temperature),
        teacher_temperature=float(teacher_temperature),
        eos_token_ids=eos,
        seed=seed,
        row_ids=list(range(rows)) if row_ids is None else list(row_ids),
        slots=rows if max_slots is None else min(max_slots, rows),
        verification=verification,
        vocab_size=shared if vocab_size is None else vocab_size,
        return_teacher_hidden=return_teacher_hidden,
        trace_rows=sorted(set(trace_rows)),
        lockstep=Alone() if lockstep is None else lockstep,
        compile=compile,
    )

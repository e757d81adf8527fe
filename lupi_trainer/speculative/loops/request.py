"""What was asked of a rollout or a lossless decoding, checked before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ...teachers.remote import RemoteTeacher
from ..drafts.source import is_source
from ..rules.acceptance import AcceptanceRule, AcceptNone, TopK, needs_bare_logits
from ..rules.gamma import GAMMA_POLICIES, GammaPolicy
from ..rules.noise import STUDENT, TEACHER
from ..rules.speculative_sampling import Sampling
from ..runners.kept import KeptRunners
from ..runners.lockstep import Alone, Lockstep
from ..runners.probe import require_own_logits
from ..runners.prompt_store import PromptStore
from ..runners.support import base_model, require_support, text_config
from .checks import at_least_one, check_prompts, one_of


VERIFICATIONS = ("parallel", "sequential")


@dataclass(frozen=True)
class Request:
    """The arguments of `skd_rollout`.

    Raises:
        ValueError: one that cannot work whatever the models are, by name.
    """

    student_prompts: list[list[int]]
    teacher_prompts: list[list[int]]
    max_new_tokens: int
    gamma: int
    gamma_policy: str | GammaPolicy
    acceptance: AcceptanceRule
    student_temperature: float
    teacher_temperature: float
    eos_token_ids: list[int]
    seed: int
    row_ids: list[int]
    slots: int
    verification: str
    vocab_size: int | None  # None until `checked`: all that both models have
    return_teacher_hidden: bool
    trace_rows: list[int]
    lockstep: Lockstep | Alone
    compile: bool
    teacher_prompt_store: PromptStore | None = None
    bare_prompts: list[list[int]] | None = None
    kept: KeptRunners | None = None

    def __post_init__(self):
        rows = len(self.student_prompts)
        if rows == 0:
            raise ValueError("student_prompt_ids is empty: there is nothing to roll out")
        if len(self.teacher_prompts) != rows:
            raise ValueError(f"{rows} student prompts, but {len(self.teacher_prompts)} teacher prompts")
        if (self.bare_prompts is not None) != needs_bare_logits(self.acceptance):
            need = (
                "looks at the teacher's prompts without the knowledge" if self.bare_prompts is None else "has no use"
            )
            raise ValueError(f"bare_teacher_prompt_ids: {self.acceptance} {need}")
        if self.bare_prompts is not None and len(self.bare_prompts) != rows:
            raise ValueError(f"{rows} student prompts, but {len(self.bare_prompts)} bare teacher prompts")
        if len(self.row_ids) != rows:
            raise ValueError(f"{rows} student prompts, but {len(self.row_ids)} row_ids")
        at_least_one(max_new_tokens=self.max_new_tokens, gamma=self.gamma, max_slots=self.slots)
        if not set(self.trace_rows) <= set(range(rows)):
            raise ValueError(f"trace_rows must be among the rows 0 to {rows - 1}, got {self.trace_rows}")
        one_of("gamma_policy", self.gamma_policy, GAMMA_POLICIES)
        one_of("verification", self.verification, VERIFICATIONS)
        for name in ("student_temperature", "teacher_temperature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, and finite, got {getattr(self, name)}")

    @property
    def writer(self) -> int | None:
        """Who writes alone, so that nothing is taken back: `STUDENT`, `TEACHER`, or nobody (None)."""
        rule = self.acceptance
        if isinstance(rule, AcceptNone):
            return TEACHER
        vocab_size = math.inf if self.vocab_size is None else self.vocab_size
        return STUDENT if isinstance(rule, TopK) and rule.k >= vocab_size and rule.min_prob <= 0 else None

    def checked(self, student, teacher) -> Request:
        """Returns the request complete, for these models; raises ValueError, by name, for what they cannot do."""
        shared = min(text_config(student).vocab_size, text_config(teacher).vocab_size)
        vocab_size = shared if self.vocab_size is None else self.vocab_size
        if not 1 <= vocab_size <= shared:
            raise ValueError(
                f"vocab_size must lie in [1, {shared}], the smaller of the two vocabularies; got {vocab_size}"
            )
        request = replace(self, vocab_size=vocab_size)
        drafts = request.writer is None or isinstance(teacher, RemoteTeacher)
        require_support(student, "student", drafts)
        require_support(teacher, "teacher", drafts)
        if isinstance(teacher, RemoteTeacher):
            _check_remote(teacher, self.acceptance, vocab_size, self.compile)
        if self.teacher_prompt_store is not None:
            if isinstance(teacher, RemoteTeacher):
                raise ValueError(
                    "teacher_prompt_store has no meaning for a remote teacher: its server reads the prompts"
                )
            self.teacher_prompt_store.require(teacher)
        check_prompts("student", student, self.student_prompts, self.max_new_tokens)
        check_prompts("teacher", teacher, self.teacher_prompts, self.max_new_tokens)
        if self.bare_prompts is not None:
            check_prompts("bare teacher", teacher, self.bare_prompts, self.max_new_tokens)
        if drafts:
            require_own_logits(student, "student")
            require_own_logits(teacher, "teacher")
        return request


def _check_remote(teacher: RemoteTeacher, acceptance: AcceptanceRule, vocab_size: int, compile: bool) -> None:
    if compile:
        raise ValueError("compile=True does not work with a remote teacher")
    if isinstance(acceptance, AcceptNone):
        return
    k = acceptance.k if isinstance(acceptance, TopK) else None
    if k is None or teacher.top_k < k < vocab_size:
        raise ValueError(
            f"a remote teacher that returns its {teacher.top_k} likeliest tokens can judge by TopK with k up to that "
            f"number (or accept all {vocab_size}, or none), not by {acceptance}"
        )


@dataclass(frozen=True)
class DecodingRequest:
    """The arguments of `speculative_generate`.

    Raises:
        ValueError: one that cannot work whatever the models are, by name.
    """

    prompts: list[list[int]]
    max_new_tokens: int
    num_draft_tokens: int
    gamma_policy: str | GammaPolicy
    sampling: Sampling
    eos_token_ids: list[int]
    seed: int
    slots: int
    compile: bool
    block_verification: bool

    def __post_init__(self):
        if not self.prompts:
            raise ValueError("prompt_ids is empty: there is nothing to complete")
        at_least_one(max_new_tokens=self.max_new_tokens, num_draft_tokens=self.num_draft_tokens, max_slots=self.slots)
        one_of("gamma_policy", self.gamma_policy, ("fixed", "goodput"))
        if not isinstance(self.block_verification, bool):
            raise ValueError(f"block_verification must be True or False, got {self.block_verification!r}")

    def check(self, target, draft) -> None:
        """Refuses, by name, what these models cannot do; `draft` is a model or a source of drafts."""
        for role, model in ({"target": target} | ({} if is_source(draft) else {"draft": draft})).items():
            if not hasattr(base_model(model), "config"):
                raise ValueError(
                    f"the {role} is a {type(model).__name__}, which has no `config`: pass the transformers model "
                    "itself (of a wrapper such as DistributedDataParallel, its `module`)"
                )
            require_support(model, role)
            check_prompts(role, model, self.prompts, self.max_new_tokens)
            require_own_logits(model, role)

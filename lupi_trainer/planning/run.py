"""What a run is, as far as its bytes and seconds go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..speculative.runners.runner import compiled_size
from ..speculative.runners.support import tokens_at_once, usable_positions
from .others import Other
from .sizes import ModelSize


STUDENT, TEACHER, CPU = "student's GPU", "teacher's GPU", "CPU"
_LARGEST_HEAD = 256  # numbers of a head, beyond which no kernel takes lengths


@dataclass(frozen=True)
class Sharding:
    """How the student's training is divided over processes: "", "zero1", "zero2", "zero3" or "fsdp2", and of how many.

    `gathers`: whether ZeRO-3 gathers all weights on each process for the rollout.
    """

    kind: str = ""
    processes: int = 1
    gathers: bool = True

    def share(self, size: float, *kinds: str) -> int:
        """What one process has of so many bytes, where these kinds divide them."""
        return round(size / self.processes) if self.kind in kinds else round(size)


@dataclass(frozen=True)
class Run:
    """One process of a run.

    Attributes:
        student: its size, with what is trained.
        teacher: the teacher's size; `None` where it is on a server, or its store is read. Of a self-taught student it
            is the student's.
        home: where the teacher is: `STUDENT`, beside the student, `TEACHER`, on a GPU of its own, or `CPU`.
        self_taught: the teacher's weights are the student's.
        offloaded: the teacher is in the CPU's memory between rollouts.
        rows: of a micro-batch, of which a step has `accumulation`: one rollout writes them all, `slots` at a time.
        student_prompt, teacher_prompt: tokens of the longest prompts; `prefix`: those that all teacher prompts share.
        completion: tokens of the longest text.
        gamma: tokens of a draft.
        drafts: whether the student writes drafts; else the teacher writes alone.
        writes: whether either does; else the texts are there already.
        judges_student: whether the acceptance rule reads the student's logits.
        judges_bare: whether it reads the teacher's behind the prompt without the knowledge.
        weighs: whether the loss weighs tokens, for which the teacher reads them once more without the knowledge.
        plain_rule: whether the rule compares ranks and one probability alone.
        compiled: `compile_rollout`.
        graphs_stay: `keep_graphs`.
        keeps_states: whether the loss takes the teacher's states from the rollout.
        checkpointing: whether activations are computed again in the backward.
        optimizer: its name in the recipe.
        sharding: over which processes the student's training is divided.
        mixed: whether the student is trained in mixed precision.
        attends_by_mask: whether the student's training attends by a mask [rows, 1, tokens, tokens].
        prompts_kept: bytes of prompts that stay where each teacher is, at most.
        others: the teachers beside `teacher`, each a model of its own.
    """

    student: ModelSize
    teacher: ModelSize | None
    home: str
    self_taught: bool
    offloaded: bool
    rows: int
    accumulation: int
    slots: int
    student_prompt: int
    teacher_prompt: int
    prefix: int
    completion: int
    gamma: int
    drafts: bool = True
    writes: bool = True
    judges_student: bool = False
    judges_bare: bool = False
    weighs: bool = False
    plain_rule: bool = True
    compiled: bool = False
    graphs_stay: bool = True
    keeps_states: bool = True
    checkpointing: bool = True
    optimizer: str = "adamw_torch_fused"
    sharding: Sharding = Sharding()
    mixed: bool = False
    attends_by_mask: bool = False
    prompts_kept: int = 0
    others: tuple[Other, ...] = ()

    @property
    def texts(self) -> int:
        """Rows of one rollout."""
        return self.rows * self.accumulation

    @property
    def running(self) -> int:
        """Rows that are rolled out at a time."""
        return min(self.slots, self.texts)

    @property
    def by_teacher(self) -> list[Run]:
        """The run while each of its teachers works: of rows with different ones, one teacher's are written at a
        time."""
        runs: list[Run] = [self]
        mine: list[Other] = []
        if self.teacher is not None:
            mine = [Other("teacher", self.teacher, self.home, self.offloaded, self.self_taught)]
        for other in self.others:
            rest = (*mine, *(each for each in self.others if each is not other))
            its: Any = {"home": other.home, "self_taught": other.self_taught, "offloaded": other.offloaded}
            runs.append(replace(self, teacher=other.model, **its, others=rest))
        return runs

    def kept_beside(self, device: str) -> int:
        """Bytes of teachers' prompts that stay on a device, between rollouts too."""
        own = self.teacher is not None and self.home == device
        return self.prompts_kept * (own + sum(other.home == device for other in self.others))

    @property
    def own_device(self) -> bool:
        """Whether the teacher is not beside the student."""
        return self.home != STUDENT

    @property
    def writes_rounded(self) -> bool:
        """Whether the student writes with a bfloat16 copy of its float32 weights."""
        whole = self.student.dtype == torch.float32 and not self.student.adapter
        return whole and self.writes and self.mixed and not self.sharding.kind

    @property
    def leaves_graphs(self) -> bool:
        """Whether recorded rollouts leave graphs and caches for the next."""
        recorded = self.compiled and self.writes and self.sharding.kind not in ("zero3", "fsdp2")
        return recorded and self.graphs_stay and not self.others and not self.offloaded

    @property
    def writer(self) -> ModelSize:
        """The student as it writes."""
        if not self.writes_rounded:
            return self.student
        return replace(self.student, dtype=torch.bfloat16, slot=self.student.slot // 2, part=self.student.part // 2)

    def by_length(self, model: ModelSize) -> bool:
        """Whether a kernel takes the rows' lengths, where there is one."""
        half = model.dtype in (torch.float16, torch.bfloat16)
        return half and model.width % 8 == 0 and model.width <= _LARGEST_HEAD

    def slots_of(self, model: ModelSize, prompt: int) -> int:
        """Slots that the engine comes to have for a row of a model: prompt, completion, what a kernel looks beyond."""
        size = prompt + self.completion
        if self.compiled:
            size = min(compiled_size(size), usable_positions(model) or size)
        return size + (self.gamma - 1 if self.by_length(model) else 0)

    def read_at_once(self, model: ModelSize, prompt: int, prefix: int = 0) -> tuple[int, int]:
        """(rows, tokens of each) that the engine reads of prompts in one forward, behind a prefix that all share."""
        packed = model.weights - (model.linear // 2 if model.bits.bits == 4 else 0)  # two numbers in one
        budget = tokens_at_once(model.config, packed, self.running, self.slots_of(model, prompt))
        each = max(prompt - 1 - prefix, 1)
        return max(1, min(self.running, budget // each)), each

"""The teachers of a run: the one that its own keys name, others by name, and the student as it was before training.

Every row of a batch has one of them. A run with a single teacher is the case in which all rows have the same.
"""

import copy
import hashlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset

from ..data.prompts import TeacherPrompt, Words
from ..data.special_tokens import SpecialTokens
from ..data.teacher_names import RUN, STUDENT, TeacherSettings, check_teacher, named, settings_of
from ..models.adapters import check_base_untouched
from ..models.generation import common_ends
from ..models.head_check import check_head
from ..models.lm_head import Head
from ..publishing.model_card import AS_IT_WAS, SERVED
from ..speculative.runners.kept import KeptRunners
from ..speculative.runners.prompt_store import PromptStore
from ..teachers.loaded import load_teacher, teacher_generation_config
from ..teachers.self_taught import AdapterDisabled, require_frozen, self_teacher
from .placement import Offloaded
from .rules import gamma_policy_of, make_gamma_policy
from .setup import ModelPair, TeacherKind, compare_models, teacher_prompt_of, to_source


logger = logging.getLogger(__name__)


@dataclass
class RowTeacher:
    """One teacher of a run.

    Attributes:
        name: what records and metrics call it.
        settings: the configuration as it has it.
        kind: where it is.
        source: its path, or a model; `None` where it has neither.
        pair: what it and the student have in common.
        prompt: what surrounds the knowledge in its prompts, with its words.
        special: the control tokens that its records must not spell out.
        model: loaded, remote, or the student without its adapter; set by [`Teachers.load`] and [`Teachers.begin`].
        device: of a loaded one.
        offloaded: the same, where it is kept in main memory while it does not work.
        head: its lm_head on the student's device, once the loss has wanted it.
        prompts: what it has read of its prompts, if that is kept.
        graphs: what recorded rollouts leave for the next, if they are to.
        eos_token_ids: tokens that end a text that it verifies.
        gamma_policy: the draft length of its rows.
    """

    name: str
    settings: Any
    kind: TeacherKind
    source: Any
    pair: ModelPair
    prompt: TeacherPrompt
    special: SpecialTokens
    model: Any = None
    device: torch.device | None = None
    offloaded: Offloaded | None = None
    head: Head | None = None
    prompts: PromptStore | None = None
    graphs: KeptRunners | None = None
    eos_token_ids: list[int] = field(default_factory=list)
    gamma_policy: Any = None

    @property
    def words(self) -> Words:
        """How its prompts are written."""
        assert self.prompt.words is not None  # `teacher_prompt_of` has set them
        return self.prompt.words

    @property
    def is_student(self) -> bool:
        """Whether it is the student, its adapter switched off."""
        return isinstance(self.model, AdapterDisabled)

    def beside(self, student: Any) -> Any:
        """The teacher of a rollout that `student`, unwrapped, drafts."""
        return AdapterDisabled(student) if self.is_student else self.model

    def on_device(self):
        """A context in which it is where it works."""
        return nullcontext() if self.offloaded is None or self.device is None else self.offloaded.on(self.device)


class Teachers:
    """The teachers of a run, in one order on all processes; the first is the run's own, if it has one.

    Args:
        teachers: at least one.
        base_teacher: who teaches records without knowledge.
    """

    def __init__(self, teachers: Iterable[RowTeacher], base_teacher: str = RUN):
        self.by_name = {teacher.name: teacher for teacher in teachers}
        self.base_teacher = base_teacher
        self.names = list(self.by_name)
        self.first = next(iter(self))

    def __iter__(self) -> Iterator[RowTeacher]:
        return iter(self.by_name.values())

    def __len__(self) -> int:
        return len(self.by_name)

    def of(self, record: dict[str, Any]) -> RowTeacher:
        """A record's teacher.

        Raises:
            RecordError: the run has none of its name.
        """
        return self.by_name[check_teacher(record, self.base_teacher, self.names)]

    def numbers(self, records: list[dict[str, Any]]) -> list[int]:
        """[B]: which teacher each record has, as its place among all."""
        return [self.names.index(self.of(record).name) for record in records]

    def groups(self, records: list[dict[str, Any]]) -> list[tuple[RowTeacher, list[int]]]:
        """Of each teacher that has some of the records, their places."""
        numbers = self.numbers(records)
        places = [[i for i, number in enumerate(numbers) if number == n] for n in range(len(self))]
        return [(teacher, its) for teacher, its in zip(self, places) if its]

    def say_idle(self, *datasets: Any) -> None:
        """Name in a warning the teachers that no record of these datasets has; of a stream nothing is known."""
        parts = [part for data in datasets for part in (data.values() if isinstance(data, dict) else [data])]
        parts = [part for part in parts if part is not None]
        if len(self) == 1 or not all(isinstance(part, Dataset) for part in parts):
            return
        busy = {check_teacher(row, self.base_teacher, self.names) for part in parts for row in part}
        if idle := [name for name in self.names if name not in busy]:
            logger.warning(f"no record has the teacher {' or '.join(idle)}, which is kept in memory all the same")

    @property
    def others(self) -> list[str]:
        """Names or paths of the models beside the first teacher's, each once."""
        found = [AS_IT_WAS if each.name == STUDENT else each.source for each in list(self)[1:]]
        found = [name if isinstance(name, str) else SERVED for name in found]
        return [name for name in dict.fromkeys(found) if name != self.first.source]

    def all_known(self, records: list[dict[str, Any]], states: list[Any]) -> bool:
        """Whether a rollout has kept the states of all teachers that have some."""
        kinds = [self.of(record).kind for record in records]
        return all(state is not None for kind, state in zip(kinds, states) if kind is not TeacherKind.REMOTE)

    def encode(self, records: list[dict[str, Any]], check_turns: bool = False, bare: bool = False) -> list[list[int]]:
        """The prompt of each record as token ids, as its teacher reads it; `bare`: without the knowledge.

        Raises:
            ValueError: a record spells out a special token, or has no teacher; it is named.
            TemplateError: a chat template refuses a conversation.
        """
        found: list[list[int]] = [[] for _ in records]
        for teacher, places in self.groups(records):
            rows = [records[i] for i in places]
            teacher.special.check_prompts(rows)  # a streaming dataset is not read before
            told = [None if bare else row["privileged_context"] for row in rows]
            messages = [teacher.prompt.messages(row["prompt"], context) for row, context in zip(rows, told)]
            if check_turns:
                teacher.words.check_turns(messages)
            for place, ids in zip(places, teacher.words.encode(messages)):
                found[place] = ids
        return found

    def load(self, args: Any) -> None:
        """Load those that are loaded here, each model once, before the student is."""
        loaded: dict[Any, tuple[Any, torch.device, Offloaded | None]] = {}
        for teacher in self:
            if teacher.kind is not TeacherKind.LOCAL:
                continue
            source, its = teacher.source, teacher.settings
            key = _loading(source, its)
            if key not in loaded:
                if teacher.name == STUDENT and not isinstance(source, str):
                    source = _copied(source, its)
                model = load_teacher(source, its, args.device)
                check_head(model, "teacher" if teacher.name == RUN else f"teacher {teacher.name}")
                device = next(model.parameters()).device
                loaded[key] = model, device, Offloaded(model) if its.teacher_offload else None
            teacher.model, teacher.device, teacher.offloaded = loaded[key]

    def begin(self, student: Any, tokenizer: Any, args: Any, **template_kwargs: Any) -> None:
        """What is known once the student is loaded: those that are the student, where texts end, what is kept.

        Args:
            student: unwrapped.
            tokenizer: its.
            args: [`LUPISKDConfig`].
            template_kwargs: of the student's chat template.
        """
        stores: dict[int, PromptStore] = {}
        for teacher in self:
            its = teacher.model
            if teacher.kind is TeacherKind.SELF:
                teacher.model = its = self_teacher(student)
            elif teacher.kind is TeacherKind.REMOTE:
                teacher.model, source = teacher.pair.server, teacher.source
                its = None if source is None else teacher_generation_config(source, teacher.settings)
            ends = its, teacher.pair.teacher_tokenizer, teacher.pair.vocab_size, teacher.words.template_kwargs
            teacher.eos_token_ids = common_ends(student, tokenizer, *ends, **template_kwargs)
            teacher.gamma_policy = make_gamma_policy(gamma_policy_of(args), args.gamma)
            if args.compile_rollout and args.keep_graphs and len(self) == 1 and teacher.offloaded is None:
                teacher.graphs = KeptRunners()
            if args.teacher_prompt_cache_mb and teacher.kind is not TeacherKind.REMOTE:
                if isinstance(teacher.model, AdapterDisabled):
                    require_frozen(teacher.model)
                key = id(student if teacher.is_student else teacher.model)
                teacher.prompts = stores.setdefault(key, PromptStore(args.teacher_prompt_cache_mb << 20))

    @property
    def frozen_student(self) -> str | None:
        """A hash of the frozen copy of the student, of the first numbers of each weight; `None` without a copy."""
        teacher = self.by_name.get(STUDENT)
        if teacher is None or teacher.kind is not TeacherKind.LOCAL:
            return None
        found = hashlib.sha256()
        for name, weight in teacher.model.named_parameters():
            found.update(name.encode() + weight.detach().flatten()[:64].float().cpu().numpy().tobytes())
        return found.hexdigest()


def _loading(source: Any, settings: Any) -> tuple[Any, ...]:
    """What decides which model is loaded, and where: teachers that agree in it are one model."""
    keys = ("device", "offload", "dtype", "attn_implementation", "model_revision", "model_init_kwargs")
    keys += ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")
    return source if isinstance(source, str) else id(source), *(repr(getattr(settings, f"teacher_{k}")) for k in keys)


def _copied(student: Any, settings: Any) -> Any:
    """A copy of a student that is given as a model, which is about to be trained."""
    dtype = settings.teacher_dtype
    return copy.deepcopy(student).to(student.dtype if dtype == "auto" else getattr(torch, dtype))


def _as_student(args: Any, settings: Any, student: Any) -> Any:
    """The settings of the frozen copy: loaded as the student is, in the type in which that computes."""
    options = dict(args.model_init_kwargs or {})
    dtype = options.pop("dtype", "float32") if isinstance(student, str) else student.dtype
    dtype = str(dtype).removeprefix("torch.")
    if settings.teacher_dtype != "auto":
        dtype = settings.teacher_dtype
    elif dtype == "float32" and args.bf16:
        dtype = "bfloat16"
    own = {"teacher_dtype": dtype, "teacher_model_revision": options.pop("revision", None)}
    return TeacherSettings(settings, own | {"teacher_model_init_kwargs": options})


def known_teachers(
    args: Any,
    student: Any,
    teacher: Any,
    kind: TeacherKind,
    peft_config: Any,
    tokenizer: Any,
    teacher_tokenizer: Any = None,
) -> Teachers:
    """The teachers of a run, before weights are loaded.

    Args:
        args: [`LUPISKDConfig`].
        student, teacher: sources of the student and of the run's own teacher.
        kind: where that one is.
        peft_config: of the adapter that the student is to get, or `None`.
        tokenizer, teacher_tokenizer: the student's, and the run's teacher's, if it was given.

    Raises:
        ValueError: as [`compare_models`] and [`teacher_prompt_of`]; the message has the name of the teacher.
    """
    found = []
    if kind is not TeacherKind.NAMED:
        pair = compare_models(student, teacher, kind, args, tokenizer, teacher_tokenizer)
        found.append(_row_teacher(RUN, args, kind, teacher, pair, tokenizer))
    adapted = peft_config is not None or (not isinstance(student, str) and is_peft_model(student))
    for name in named(args):
        its, source = settings_of(args, name), None
        if name == STUDENT:
            kind = TeacherKind.SELF if adapted else TeacherKind.LOCAL
            if adapted:
                check_base_untouched(student, peft_config)
            else:
                its, source = _as_student(args, its, student), student
            pair = compare_models(student, None, TeacherKind.SELF, its, tokenizer, None)
        else:
            key, source = f"teachers: {name}", its.teacher_model_name_or_path
            source = None if source is None else to_source(source, key)
            kind = TeacherKind.LOCAL if its.teacher_model_server_url is None else TeacherKind.REMOTE
            pair = compare_models(student, source, kind, its, tokenizer, None)
        found.append(_row_teacher(name, its, kind, source, pair, tokenizer))
    return Teachers(found, args.base_teacher)


def _row_teacher(name: str, settings: Any, kind: TeacherKind, source: Any, pair: ModelPair, tokenizer: Any):
    prompt = teacher_prompt_of(settings, tokenizer, pair.teacher_tokenizer)
    assert prompt.words is not None
    special = SpecialTokens(tokenizer, settings.allow_special_tokens, prompt.words.tokenizer)
    return RowTeacher(name, settings, kind, source, pair, prompt, special)

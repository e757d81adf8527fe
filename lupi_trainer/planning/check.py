"""Before a run on GPUs begins: whether they have room for what it will hold at most."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig

from ..data.prompts import TeacherPrompt
from ..teachers.loaded import teacher_place
from .advice import changes
from .lengths import longest_prompts
from .moments import gib
from .plan import plan_bytes
from .recipe import Lengths, assemble, dtype_named, other_teachers
from .run import STUDENT, TEACHER, Run, Sharding
from .sizes import Bits, ModelSize, size_of


logger = logging.getLogger(__name__)


def shortage(run: Run, room: dict[str, int], remake: Any) -> str | None:
    """What is said of a run that a GPU has no room for; `None` where all have.

    Args:
        run: what is to begin.
        room: bytes that are free, by `STUDENT` and `TEACHER`.
        remake: the run with other keys of its recipe.
    """
    short = [plan for plan in plan_bytes(run) if plan.device in room and plan.worst.total > room[plan.device]]
    if not short:
        return None
    plan = max(short, key=lambda plan: plan.worst.total - room[plan.device])
    worst, free = plan.worst, room[plan.device]
    item = max(worst.items, key=lambda name: worst.items[name])
    ways_out = [change for change in changes(run, min(room.values()), remake) if change.fits]
    instead = "; ".join(f"`{change}` ({gib(change.total)} GiB)" for change in ways_out) or "a larger GPU"
    return (
        f"the {plan.device} is planned to hold {gib(worst.total)} GiB in the {worst.phase} ({worst.name}), and "
        f"{gib(free)} GiB are free; most of it is for {item} ({gib(worst.items[item])} GiB). What needs less: "
        f"{instead} (`lupi plan` shows all of it)"
    )


def _free(device: torch.device) -> int:
    """Bytes that this process has or can get of a GPU."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def _sharding(args: Any) -> Sharding:
    plugin = getattr(args, "deepspeed_plugin", None)
    stage = 0 if plugin is None else plugin.zero_stage
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    kind = f"zero{stage}" if stage else "fsdp2" if fsdp else ""
    return Sharding(kind, args.world_size, bool(args.ds3_gather_for_generation))


def _student_size(student: Any, args: Any, peft_config: Any, quantization: Any, mixed: bool, kind: str) -> ModelSize:
    options, config = args.model_init_kwargs or {}, student if isinstance(student, str) else student.config
    if isinstance(config, str):
        revision = options.get("revision")
        config = AutoConfig.from_pretrained(config, revision=revision, trust_remote_code=args.trust_remote_code)
    dtype = dtype_named(options.get("dtype"), config) if isinstance(student, str) else student.dtype
    bits = Bits(4 if getattr(quantization, "load_in_4bit", False) else 8 if quantization is not None else 0)
    cast = torch.bfloat16 if args.bf16 else torch.float16
    if mixed and kind:
        dtype = cast
    name = student if isinstance(student, str) else "student"
    autocast = cast if mixed and not kind else None
    return size_of(
        config, name, dtype, bits=bits, trains=True, peft_config=peft_config or _adapter(student), mixed=autocast
    )


def _adapter(student: Any) -> Any:
    return next(iter(getattr(student, "peft_config", {}).values()), None)


def plan_of(
    args: Any,
    student: Any,
    teacher: Any,
    self_taught: bool,
    lengths: Lengths,
    peft_config: Any = None,
    quantization_config: Any = None,
) -> tuple[Run, Any]:
    """(the run of a trainer, a function from keys to the run with these).

    Args:
        args: [`LUPISKDConfig`].
        student, teacher: paths, names or models; no teacher where it is on a server, or the student itself.
        self_taught: the teacher is the student without its adapter.
        lengths: of prompts and texts.
        peft_config, quantization_config: of the student.
    """
    mixed, sharding = bool(args.bf16 or args.fp16), _sharding(args)
    mine = _student_size(student, args, peft_config, quantization_config, mixed, sharding.kind)
    its = mine if self_taught else None
    if teacher is not None:
        options = {"revision": args.teacher_model_revision, "trust_remote_code": args.trust_remote_code}
        config = AutoConfig.from_pretrained(teacher, **options) if isinstance(teacher, str) else teacher.config
        named = isinstance(teacher, str)
        its = size_of(config, "teacher", dtype_named(args.teacher_dtype, config) if named else teacher.dtype)
    sizes: dict[Any, ModelSize] = {}

    def remake(keys: dict[str, Any]) -> Run:
        def get(key: str, default: Any = None) -> Any:
            if key == "attn_implementation":
                return (args.model_init_kwargs or {}).get(key)
            if key == "use_peft":
                return bool(mine.adapter)
            if key == "teacher_model_name_or_path" and teacher is not None:
                return keys.get(key, "given")
            return keys.get(key, getattr(args, key, default))

        others = other_teachers(get, mine, args.rollout_policy == "speculative", sizes)
        return assemble(get, mine, its, lengths, sharding, mixed, others)

    return remake({}), remake


def warn_of_memory(
    args: Any,
    student: Any,
    teacher: Any,
    self_taught: bool,
    records: Any,
    tokenizer: Any,
    teacher_prompt: TeacherPrompt,
    peft_config: Any = None,
    quantization_config: Any = None,
) -> None:
    """Warn of a run for which the GPUs of this process have no room; silent where it trains on none.

    Args:
        args, student, teacher, self_taught, peft_config, quantization_config: as of [`plan_of`].
        records: training records, as they are ready; of a stream the recipe's limits are taken.
        tokenizer: the student's.
        teacher_prompt: what surrounds the knowledge.
    """
    if args.device.type != "cuda":
        return
    found = 512, args.max_teacher_prompt_length, 0
    if isinstance(records, Dataset):
        found = longest_prompts(records, tokenizer, teacher_prompt, args.chat_template_kwargs or {})
    lengths = Lengths(*found, args.max_completion_length, args.max_completion_length, "the records")
    try:
        run, remake = plan_of(args, student, teacher, self_taught, lengths, peft_config, quantization_config)
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        # a plan is advice: what cannot be built without numbers, or is found by other settings, may train all the same
        said = str(error).strip().splitlines() or [type(error).__name__]
        logger.warning(f"whether the GPU has room for this run is not known: {said[0]}")
        return
    room = {STUDENT: _free(args.device)}
    if run.home == TEACHER:
        room[TEACHER] = _free(teacher_place(args.teacher_device, args.device))
    if (said := shortage(run, room, remake)) is not None and args.local_process_index == 0:
        logger.warning(said)

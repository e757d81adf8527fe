"""A recipe as a [`Run`]: its keys, and its models by their configurations alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from ..data.teacher_names import STUDENT as STUDENT_AS_IT_WAS
from ..lab import resolve_model
from ..models.adapters import refuse_adapter
from ..models.head_check import refuse_rescaled
from ..models.hub_code import refuse_hub_code
from ..models.loading import key_named
from ..speculative.runners.support import require_config_support, usable_positions
from .others import Other, alike, frozen_student, getters
from .run import CPU, STUDENT, TEACHER, Run, Sharding
from .sizes import Bits, ModelSize, size_of


Get = Callable[..., Any]  # (key, default) -> what the recipe says
PLAIN_RULES = ("top_k", "adaptive_top_k")  # compare ranks and one probability
READS_STUDENT = ("relative", "divergence")
READS_BARE = ("knowledge",)


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and texts: the longest, and how long texts are on average; and how they are known.

    Attributes:
        student, teacher: of the longest prompts; `prefix`: those with which all of the teacher's begin.
        completion: the longest text; `mean`: one on average.
        source: where the prompts' lengths are from, as a phrase.
        guessed: whether no record was read, so that prompts may be shorter.
    """

    student: int
    teacher: int
    prefix: int
    completion: int
    mean: int
    source: str
    guessed: bool = False


def dtype_named(name: Any, config: Any, default: torch.dtype = torch.float32) -> torch.dtype:
    """The type that a recipe names; "auto": that of the files.

    Raises:
        ValueError: torch has no such type.
    """
    if name is None:
        return default
    if name == "auto":
        return config.dtype or config.get_text_config().dtype or torch.float32
    dtype = name if isinstance(name, torch.dtype) else getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"there is no type {name!r}: auto, float32, bfloat16 and float16 are known")
    return dtype


def model_config(name: str, role: str, key: str, get: Get, revision: str | None, drafts: bool) -> Any:
    """The configuration of a model, from a folder, the Hub or the lab; refused as training refuses it.

    Raises:
        ValueError: a model that cannot be taught or teach, by name.
        OSError: there is none.
    """
    with key_named(key):
        path = resolve_model(name)
        refuse_adapter(path, role, revision)
        refuse_hub_code(path, revision)
        config = AutoConfig.from_pretrained(
            path, revision=revision, trust_remote_code=bool(get("trust_remote_code", False))
        )
    refuse_rescaled(config, role)
    require_config_support(config, role, drafts)
    return config


def _peft_config(get: Get) -> Any:
    if not get("use_peft", False):
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type=get("lora_task_type", "CAUSAL_LM"),
        r=get("lora_r", 16),
        lora_alpha=get("lora_alpha", 32),
        target_modules=get("lora_target_modules", None),
        target_parameters=get("lora_target_parameters", None),
        modules_to_save=get("lora_modules_to_save", None),
        use_dora=get("use_dora", False),
    )


def _sharding(get: Get, launched: dict[str, Any]) -> Sharding:
    """What an accelerate configuration divides, or a recipe's own `deepspeed` file."""
    processes, stage, kind = launched.get("num_processes", 1), 0, str(launched.get("distributed_type", "NO"))
    if not isinstance(processes, int) or processes < 1:
        raise ValueError(f"--accelerate_config: num_processes must be a whole number from 1, got {processes!r}")
    file = get("deepspeed", None)
    if kind == "DEEPSPEED":
        settings = launched.get("deepspeed_config") or {}
        stage = int(settings.get("zero_stage", 0))
        file = file or settings.get("deepspeed_config_file")
    if isinstance(file, (str, dict)):
        stage = _zero_stage(file)
    name = f"zero{stage}" if stage else "fsdp2" if kind == "FSDP" or get("fsdp", None) else ""
    return Sharding(name, processes, bool(get("ds3_gather_for_generation", True)))


def _zero_stage(file: str | dict[str, Any]) -> int:
    """The stage that DeepSpeed's own configuration sets."""
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8")) if isinstance(file, str) else file
        return int(config.get("zero_optimization", {}).get("stage", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"deepspeed: no stage of ZeRO can be read from {file} ({error})") from error


def _place(get: Get) -> str:
    device = str(get("teacher_device", None) or "")
    try:
        torch.device("cuda" if device in ("", "paired") else device)
    except RuntimeError as error:
        raise ValueError(f"teacher_device={device!r} is no device: {error}") from error
    if device.startswith("cpu"):
        return CPU
    return STUDENT if device in ("", "cuda", "cuda:0") else TEACHER


def make_run(
    get: Get,
    lengths: Lengths,
    launched: dict[str, Any] | None = None,
    known: dict[Any, ModelSize] | None = None,
) -> Run:
    """The run that a recipe describes.

    Args:
        get: (key, default) -> what the recipe says; it names a student.
        lengths: of prompts and texts.
        launched: an accelerate configuration; `None` for one process.
        known: sizes of models, kept from call to call.

    Raises:
        ValueError: texts beyond a model's positions, no teacher, or a model that training refuses; it is named.
        OSError: there is no such model.
    """
    policy, sharding = get("rollout_policy", "speculative"), _sharding(get, launched or {})
    drafts = policy == "speculative" or (get("teacher_model_server_url", None) is not None and _writes(get))
    trust, mixed = bool(get("trust_remote_code", False)), _mixed(get)
    is_mixed = mixed is not None
    name = get("model_name_or_path")
    config = model_config(name, "student", "model_name_or_path", get, get("model_revision", None), drafts)
    dtype = dtype_named(get("dtype", None), config)
    if mixed is not None and sharding.kind:
        dtype, mixed = mixed, None  # DeepSpeed and FSDP2 compute in it
    peft_config = _peft_config(get)
    bits = _bits(get, "", "use_bnb_nested_quant")
    known = {} if known is None else known
    key = name, dtype, bits, mixed, str(peft_config)
    if key not in known:
        known[key] = size_of(
            config, name, dtype, bits=bits, trains=True, peft_config=peft_config, mixed=mixed, trust_remote_code=trust
        )
    student = known[key]
    teachers = other_teachers(get, student, drafts, known)
    teacher = _teacher(get, student, drafts, known) if _has_own(get) else None
    run = assemble(get, student, teacher, lengths, sharding, is_mixed, teachers)
    every = [("teacher", run.teacher, lengths.teacher), *(("teacher", o.model, lengths.teacher) for o in run.others)]
    for role, model, prompt in (("student", student, lengths.student), *every):
        if model is None or lengths.guessed:
            continue
        positions = usable_positions(model)
        if positions is not None and prompt + run.completion > positions:
            raise ValueError(
                f"the longest {role} prompt has {prompt} tokens; with max_completion_length={run.completion} that is "
                f"beyond the {positions} positions of {model.name}"
            )
    return run


def assemble(
    get: Get,
    student: ModelSize,
    teacher: ModelSize | None,
    lengths: Lengths,
    sharding: Sharding,
    mixed: bool,
    others: tuple[Other, ...] = (),
) -> Run:
    """The run of a recipe whose models are known.

    Args:
        get: (key, default) -> what the recipe says.
        student, teacher: their sizes; of a self-taught student both are one; no teacher where it is on a server, or
            its store is read.
        lengths: of prompts and texts.
        sharding: of the student's training.
        mixed: whether that is in mixed precision.
        others: the teachers beside `teacher`; of a run that has none of its own, all.
    """
    policy, remote = get("rollout_policy", "speculative"), teacher is None
    rule, rows = get("acceptance_rule", "top_k"), int(get("per_device_train_batch_size", 8))
    accumulation = int(get("gradient_accumulation_steps", 1))
    if teacher is not None and teacher is not student:
        asked = _bits(get, "teacher_", "teacher_use_bnb_nested_quant")
        teacher = replace(teacher, bits=asked if asked.bits else teacher.bits)
    run = Run(
        student=student,
        teacher=teacher,
        home=STUDENT if teacher is student else _place(get),
        self_taught=teacher is student,
        offloaded=bool(get("teacher_offload", False)),
        rows=rows,
        accumulation=accumulation,
        slots=int(get("max_slots", None) or rows * accumulation),
        student_prompt=lengths.student,
        teacher_prompt=lengths.teacher,
        prefix=lengths.prefix,
        completion=int(get("max_completion_length", lengths.completion)),
        gamma=int(get("gamma", 20)) if policy != "teacher" else 1,
        drafts=_writes(get) and (policy != "teacher" or remote),
        writes=_writes(get),
        judges_student=rule in READS_STUDENT,
        judges_bare=rule in READS_BARE and policy == "speculative",
        weighs=get("loss_weighting", "uniform") != "uniform",
        plain_rule=rule in PLAIN_RULES,
        compiled=bool(get("compile_rollout", False)),
        graphs_stay=bool(get("keep_graphs", True)),
        keeps_states=bool(get("reuse_verification", True)) and policy == "speculative",
        checkpointing=_checkpoints(get),
        optimizer=str(getattr(optimizer := get("optim", None), "value", optimizer) or "adamw_torch_fused"),
        prompts_kept=int(get("teacher_prompt_cache_mb", 0)) << 20,
        sharding=sharding,
        mixed=mixed,
        attends_by_mask=not str(get("attn_implementation", None) or "sdpa").startswith(("flash", "kernels")),
    )
    if not _has_own(get):
        first, *rest = others
        its: Any = {"home": first.home, "self_taught": first.self_taught, "offloaded": first.offloaded}
        run, others = replace(run, teacher=first.model, **its), tuple(rest)
    kept: list[Other] = []
    known = [] if run.teacher is None else [Other("", run.teacher, run.home, run.offloaded, run.self_taught)]
    for other in others:
        if not any(alike(other, each) for each in (*known, *kept)):
            kept.append(other)
    return replace(run, others=tuple(kept))


def other_teachers(get: Get, student: ModelSize, drafts: bool, known: dict[Any, ModelSize]) -> tuple[Other, ...]:
    """The teachers of a recipe beside its own that are loaded here, or are the student itself.

    Args:
        get: (key, default) -> what the recipe says.
        student: its size.
        drafts: whether the student writes drafts.
        known: sizes of models, kept from call to call.
    """
    found = []
    for name, its in getters(get).items():
        if name == STUDENT_AS_IT_WAS:
            found.append(frozen_student(its, student, _place))
        elif its("teacher_model_server_url", None) is None:
            model, bits = _teacher(its, student, drafts, known), _bits(its, "teacher_", "teacher_use_bnb_nested_quant")
            assert model is not None
            model = replace(model, bits=bits if bits.bits else model.bits)
            found.append(Other(name, model, _place(its), bool(its("teacher_offload", False))))
    return tuple(found)


def _has_own(get: Get) -> bool:
    """Whether a run has a teacher of its own, for records that name none; without `teachers` it must have one."""
    keys = ("teacher_model_name_or_path", "teacher_model_server_url")
    return not get("teachers", None) or bool(get("use_peft", False)) or any(get(key, None) is not None for key in keys)


def _writes(get: Get) -> bool:
    """Whether texts are written in training, and not there already."""
    return get("teacher_store", None) is None and get("rollout_policy", "speculative") != "gold"


def _bits(get: Get, role: str, nested: str) -> Bits:
    number = 4 if get(f"{role}load_in_4bit", False) else 8 if get(f"{role}load_in_8bit", False) else 0
    return Bits(number, number == 4 and bool(get(nested, False)))


def _mixed(get: Get) -> torch.dtype | None:
    """What training computes in beside the weights' own type; TRL's default is bfloat16."""
    if get("fp16", False):
        return torch.float16
    return torch.bfloat16 if get("bf16", None) in (None, True) and not get("use_cpu", False) else None


def _checkpoints(get: Get) -> bool:
    value = get("activation_checkpointing", None)
    return bool(get("gradient_checkpointing", True) if value is None else value)


def _teacher(get: Get, student: ModelSize, drafts: bool, known: dict[Any, ModelSize]) -> ModelSize | None:
    name = get("teacher_model_name_or_path", None)
    if get("teacher_model_server_url", None) is not None or get("teacher_store", None) is not None:
        return None
    if name is None:
        if not get("use_peft", False):
            raise ValueError(
                "no teacher: set `teacher_model_name_or_path` or `teacher_model_server_url`, or give the student a "
                "LoRA adapter (`use_peft`), so that it can be its own teacher with the adapter switched off"
            )
        return student
    key, revision = "teacher_model_name_or_path", get("teacher_model_revision", None)
    config = model_config(name, "teacher", key, get, revision, drafts)
    with key_named("teacher_dtype"):
        dtype = dtype_named(get("teacher_dtype", "auto"), config)
    if (name, dtype) not in known:
        known[name, dtype] = size_of(config, name, dtype, trust_remote_code=bool(get("trust_remote_code", False)))
    return known[name, dtype]

"""The teacher of a run: loaded, placed, frozen, and checked against the student's vocabulary."""

import copy
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, PreTrainedModel
from transformers.integrations import deepspeed

from ..models.adapters import refuse_adapter
from ..models.head_check import refuse_rescaled
from ..models.hub_code import refuse_hub_code
from ..models.loading import SAFE_WEIGHTS, keep_4bit_exact, key_named
from ..models.private import deepspeed_config, use_one_gpu_at_most
from ..models.vocabulary import tokenizer_beside


def checkpoint_dtype(teacher: str, args: Any) -> torch.dtype:
    """The type that a teacher's files say they are in.

    Raises:
        ValueError: they do not say.
    """
    options = {"revision": args.teacher_model_revision, "trust_remote_code": args.trust_remote_code}
    config = AutoConfig.from_pretrained(teacher, **options)
    dtype = config.dtype or config.get_text_config().dtype
    if dtype is None:
        raise ValueError(
            f"the configuration of the teacher {teacher} does not say which type its weights have, in which a teacher "
            "in 4 bits is to compute: set teacher_dtype, for instance to bfloat16"
        )
    return dtype


def quantization_config(args: Any, dtype: torch.dtype | None) -> BitsAndBytesConfig | None:
    """The teacher's own quantization, apart from the student's; `dtype`: that 4-bit layers compute in, which
    bitsandbytes would take to be float32."""
    if args.teacher_load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    if args.teacher_load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_type=args.teacher_bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=args.teacher_use_bnb_nested_quant,
        )
    return None


def paired_device(local_rank: int, local_processes: int, gpus: int) -> str:
    """The teacher's GPU where every process of a machine has two: process i has GPU i, its teacher GPU n + i.

    With the visible GPUs in the order 0, 2, 4, ..., 1, 3, 5, ... (`gpu_ids` of `paired_gpu.yaml`) these are the
    neighbors 2i and 2i + 1.

    Raises:
        ValueError: fewer than two GPUs a process.
    """
    if gpus < 2 * local_processes:
        raise ValueError(
            f"teacher_device: paired wants two GPUs for each of {local_processes} processes, but {gpus} are visible: "
            f"start {gpus // 2} processes (`num_processes`), or put the teacher elsewhere"
        )
    return f"cuda:{local_processes + local_rank}"


def teacher_place(name: str | None, device: torch.device) -> torch.device:
    """Where the teacher goes.

    Args:
        name: `None` (beside the student), a device, or `"paired"`.
        device: the student's.

    Raises:
        ValueError: no such device here.
    """
    gpus = torch.cuda.device_count()
    if not name:
        return device
    if name == "paired":
        name = paired_device(int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1)), gpus)
    try:
        place = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"teacher_device={name!r} is no device: {error}") from error
    if place.type == "cuda" and (place.index or 0) >= gpus:
        raise ValueError(f"teacher_device={name!r}, but {gpus} GPUs are visible")
    return place


@contextmanager
def unsharded_weights() -> Generator[None]:
    """Inside, ZeRO-3 does not shard the weights of models that are loaded: each process has a complete teacher."""
    if not deepspeed.is_deepspeed_zero3_enabled():
        yield
        return
    config = deepspeed_config()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(config)


def require_unsharded(model: nn.Module, role: str) -> None:
    """Raises ValueError if ZeRO-3 has sharded the model's weights, which no engine gathers for it."""
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ValueError(
            f"ZeRO-3 shards the weights of the {role}, since it was loaded after the training arguments were "
            "made: pass its name or path instead, or load it before"
        )


def _weights(model: nn.Module) -> set[tuple[torch.device, int]]:
    """Where a model's weights lie; what has no memory of its own (empty, sharded, on `meta`) is left out."""
    return {(p.device, p.data_ptr()) for p in model.parameters() if p.device.type != "meta" and p.data_ptr()}


def refuse_shared(student: Any, teacher: Any, role: str) -> None:
    """Refuse a teacher whose weights are the student's: it would be trained with it, or freeze it.

    Args:
        student, teacher: models, or names, each of which is loaded on its own.
        role: what the teacher is called in errors.

    Raises:
        ValueError: they share weights.
    """
    if isinstance(student, nn.Module) and isinstance(teacher, nn.Module) and _weights(student) & _weights(teacher):
        raise ValueError(
            f"student and {role} share weights, so the {role} would change as the student learns: pass its name, or a "
            "copy (`copy.deepcopy(model)`); to have a student with an adapter teach itself, leave `teacher_model` out"
        )


def frozen_twin(model: Any) -> Any:
    """A model with the same weights in the same memory, frozen; what is set on it is not set on the caller's."""
    refuse_rescaled(getattr(model, "config", None), "model that is passed as an object")
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        twin: Any
        if type(parameter) is nn.Parameter:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        else:  # quantized: what it is unpacked by is its own, too
            memo[id(parameter)] = twin = copy.copy(parameter)
            if getattr(twin, "quant_state", None) is not None:
                twin.quant_state = memo[id(parameter.quant_state)] = copy.copy(parameter.quant_state)
    twin = copy.deepcopy(model, memo)
    return twin.requires_grad_(False)


def load_teacher(teacher: str | PreTrainedModel, args: Any, device: torch.device) -> PreTrainedModel:
    """The frozen teacher on its device.

    Args:
        teacher: a path or a name on the Hub (loaded as the `teacher_*` keys say), or a model, which is left as it is:
            the teacher is its [`frozen_twin`].
        args: the run's configuration, with the `teacher_*` keys of `LUPISKDConfig` or `KDLoRAConfig`.
        device: where the teacher goes unless `args.teacher_device` says otherwise.

    Raises:
        ValueError: an unknown dtype or device, or a model whose weights ZeRO-3 shards.
    """
    place = teacher_place(args.teacher_device, device)
    if place != device:
        # started without a launcher, the Trainer would copy the student to every visible GPU, the teacher's too
        use_one_gpu_at_most(args)
    device = place
    if isinstance(teacher, str):
        dtype = args.teacher_dtype
        if dtype != "auto":
            dtype = getattr(torch, dtype, None)
            if not isinstance(dtype, torch.dtype):
                raise ValueError(f"teacher_dtype must be 'auto' or a torch dtype, got {args.teacher_dtype!r}")
        computes_in = dtype
        if dtype == "auto":
            computes_in = checkpoint_dtype(teacher, args) if args.teacher_load_in_4bit else None
        quantized = quantization_config(args, computes_in)
        kwargs = SAFE_WEIGHTS | {"dtype": dtype, "revision": args.teacher_model_revision}
        kwargs["trust_remote_code"] = args.trust_remote_code
        if args.teacher_attn_implementation is not None:
            kwargs["attn_implementation"] = args.teacher_attn_implementation
        if quantized is not None:
            kwargs |= {"quantization_config": quantized, "device_map": {"": device}}
        kwargs |= args.teacher_model_init_kwargs or {}
        with unsharded_weights():
            teacher = AutoModelForCausalLM.from_pretrained(teacher, **kwargs)
    else:
        require_unsharded(teacher, "teacher")
        teacher = frozen_twin(teacher)
    keep_4bit_exact(teacher)
    teacher.requires_grad_(False)
    if not getattr(teacher, "is_quantized", False) and not getattr(teacher, "hf_device_map", None):
        teacher = teacher.to(device)
    return teacher.eval()


def load_teacher_config(teacher: str | PreTrainedModel, args: Any, tokenizer: Any = None) -> tuple[Any, Any]:
    """What is known of a teacher before its weights are loaded.

    Args:
        teacher: a path or a name on the Hub, or a model.
        args: as for [`load_teacher`].
        tokenizer: the teacher's, if it was given.

    Returns:
        Its configuration, and its tokenizer: the given one, else the one beside its weights (`None`: not known).

    Raises:
        ValueError: the folder of an adapter.
        OSError: there is no such model.
    """
    if not isinstance(teacher, str):
        return teacher.config, tokenizer
    options = {"revision": args.teacher_model_revision, "trust_remote_code": args.trust_remote_code}
    with key_named(f"the teacher {teacher!r} (teacher_model_name_or_path)"):
        refuse_adapter(teacher, "teacher", args.teacher_model_revision)
        refuse_hub_code(teacher, args.teacher_model_revision)
        config = AutoConfig.from_pretrained(teacher, **options)
        return config, tokenizer_beside(teacher, **options) if tokenizer is None else tokenizer


def teacher_generation_config(teacher: str, args: Any) -> GenerationConfig | None:
    """That of a teacher which is given by name and not loaded here; `None` where it has none."""
    try:
        return GenerationConfig.from_pretrained(teacher, revision=args.teacher_model_revision)
    except OSError:
        return None

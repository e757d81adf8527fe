"""Settings that a run would take and never read: refused, or said to have no effect, by name."""

import copy
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any

from ..lab import lab_path
from .field_types import check_types


logger = logging.getLogger(__name__)

# transformers' own, which it keeps for scripts and reads nowhere
FOR_SCRIPTS = {
    "do_train": "a trainer trains when its `train` is called",
    "do_predict": "a trainer predicts when its `predict` is called",
    "local_rank": "the launcher tells each process its number",
}

# of a teacher that is loaded from its name
LOADING = (
    "teacher_model_revision",
    "teacher_model_init_kwargs",
    "teacher_dtype",
    "teacher_attn_implementation",
    "teacher_load_in_4bit",
    "teacher_load_in_8bit",
)
QUANTIZATION = ("teacher_bnb_4bit_quant_type", "teacher_use_bnb_nested_quant")

OF_OPTIMIZERS = ("optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon")
OF_SCHEDULES = ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")
TORCH_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
LEAST = {  # where transformers and TRL look at nothing, or fail without the name
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "pad_to_multiple_of": 1,
    "max_length": 1,
    "eval_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "dataset_num_proc": 0,
}
OF_METRICS = ("include_for_metrics", "batch_eval_metrics")


def is_set(args: Any, name: str) -> bool:
    """Whether a configuration's field has another value than by default."""
    (field,) = [field for field in fields(args) if field.name == name]
    default = field.default if field.default_factory is MISSING else field.default_factory()
    value = getattr(args, name)
    return not (value == default or (not value and not default))


def not_finite(value: Any) -> float | None:
    """The first number in a value, a list or a mapping that is NaN or infinite; `None` where there is none."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return next((wrong for part in value if (wrong := not_finite(part)) is not None), None)
    return value if isinstance(value, float) and not math.isfinite(value) else None


def refuse_not_finite(args: Any) -> None:
    """Refuse NaN and infinity, whatever the key.

    Args:
        args: a configuration.

    Raises:
        ValueError: the key, by name.
    """
    for field in fields(args):
        if (wrong := not_finite(getattr(args, field.name, None))) is not None:
            raise ValueError(f"{field.name} must be a finite number, got {wrong}")


def refuse_settings(args: Any, unread: Mapping[str, str]) -> None:
    """Refuse settings that have no effect.

    Args:
        args: a configuration.
        unread: name -> why it has none.

    Raises:
        ValueError: one of them is not left at its default; it is named.
    """
    for fault in unread_faults(args, unread):
        raise ValueError(fault)


def unread_faults(args: Any, unread: Mapping[str, str]) -> Iterator[str]:
    """What [`refuse_settings`] says, of each of the settings."""
    for name, why in unread.items():
        if is_set(args, name):
            yield f"{name}={getattr(args, name)!r} has no effect here: {why}. Leave it out"


def say_unread(args: Any, names: Iterable[str], why: str) -> None:
    """Say in a warning which of these settings are not left at their defaults, and why they have no effect."""
    given = [f"{name}={getattr(args, name)!r}" for name in names if is_set(args, name)]
    if given:
        logger.warning(f"{', '.join(given)}: no effect, since {why}")


def say_unread_for_scripts(args: Any) -> None:
    """[`say_unread`] of what transformers itself does not read."""
    for name, why in FOR_SCRIPTS.items():
        say_unread(args, [name], why)


def require_config(args: Any, wanted: type) -> None:
    """Refuse a configuration of another trainer, before its first missing key is looked for.

    Raises:
        TypeError: `args` is neither `None` nor a `wanted`.
    """
    if args is not None and not isinstance(args, wanted):
        raise TypeError(
            f"`args` must be a {wanted.__name__}, got a {type(args).__name__}: a {wanted.__name__} has all keys of "
            f"{wanted.__bases__[-1].__name__}, and those of this method"
        )


def least_faults(args: Any) -> Iterator[str]:
    """Which numbers are below what they can be, one message each.

    Args:
        args: a configuration, or whatever has its attributes.
    """
    for name, least in LEAST.items():
        value = getattr(args, name, None)
        if isinstance(value, int) and value < least:
            yield f"{name} must be at least {least}, got {value}"


def check_run_settings(args: Any) -> None:
    """Refuse settings that would end a run when it begins, or have no effect on its device.

    Args:
        args: a configuration.

    Raises:
        ValueError: the setting, by name.
    """
    check_types(args)
    for fault in least_faults(args):
        raise ValueError(fault)
    if args.max_steps == 0 or (args.max_steps < 0 and args.num_train_epochs <= 0):
        raise ValueError(
            f"max_steps={args.max_steps} with num_train_epochs={args.num_train_epochs} says of no step that it is "
            "trained: set max_steps to at least 1, or to -1 with num_train_epochs above 0"
        )
    for name in ("learning_rate", "weight_decay", "max_grad_norm", "label_smoothing_factor"):
        if not 0 <= (getattr(args, name) or 0.0) < math.inf:
            raise ValueError(f"{name} must be a finite number from 0, got {getattr(args, name)}")
    if getattr(args, "activation_offloading", False) and args.device.type == "cpu":
        raise ValueError(
            "activation_offloading=True has no effect on a CPU: activations are in its memory already. Leave it out"
        )
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("fp16=True has no effect on a CPU: the run would be in float32. Leave it out or set bf16")


def check_optimization(args: Any, optimizers: tuple[Any, Any] | None = None, made_as: Any = None) -> None:
    """Refuse an optimizer and a schedule that cannot be; say which settings these do not read.

    Args:
        args: a configuration.
        optimizers: optimizer and scheduler that were passed in place of those that the settings describe.
        made_as: class and arguments of the optimizer, if these were passed.

    Raises:
        ValueError: the schedule lacks an argument or has an unknown one, or a scheduler was passed that is not the
            optimizer's.
    """
    optimizer, scheduler = optimizers or (None, None)
    if optimizer is not None:
        say_unread(args, ("learning_rate", "weight_decay", "optim", *OF_OPTIMIZERS), "an optimizer was passed")
    elif made_as is not None:
        say_unread(args, ("learning_rate", "optim", *OF_OPTIMIZERS), "the class of an optimizer was passed")
    else:
        _say_unread_by_optimizer(args)
    if scheduler is None:
        _check_schedule(args)
        return
    say_unread(args, OF_SCHEDULES, "a scheduler was passed")
    if optimizer is None or getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError(
            "optimizers: the scheduler is of another optimizer than the one that trains, so it would change no "
            "learning rate. Pass both, (optimizer, scheduler), or leave the scheduler out"
        )


def _check_schedule(args: Any) -> None:
    """Raise ValueError if the schedule of the learning rate lacks an argument or has an unknown one; say what it does
    not read."""
    kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if kind == "constant":
        say_unread(args, ["warmup_steps"], "lr_scheduler_type='constant' has none; 'constant_with_warmup' has")
    if kind in ("constant", "constant_with_warmup"):
        say_unread(args, ["lr_scheduler_kwargs"], f"lr_scheduler_type={kind!r} takes none")
    import torch  # here: what is said of a recipe before torch is loaded reads this file, too
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    keys: dict[str, Any] = args.lr_scheduler_kwargs or {}
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 0, 1, keys)
    except (TypeError, ValueError) as error:
        raise ValueError(f"lr_scheduler_type={kind!r} with lr_scheduler_kwargs={keys}: {error}") from error


def _say_unread_by_optimizer(args: Any) -> None:
    """Say which settings of optimizers this run's is not made with; of those alone that need neither a package nor
    the model."""
    kind, names = getattr(args.optim, "value", args.optim), [name for name in OF_OPTIMIZERS if is_set(args, name)]
    if kind not in TORCH_OPTIMIZERS or not names:
        return
    from transformers import Trainer

    made = Trainer.get_optimizer_cls_and_kwargs(args)
    for name in names:
        without = copy.copy(args)
        (default,) = [field.default for field in fields(args) if field.name == name]
        setattr(without, name, default)
        if Trainer.get_optimizer_cls_and_kwargs(without) == made:
            say_unread(args, [name], f"optim={kind!r} does not read it")


def _place(model: Any) -> str:
    """Where a model, or what is named so, was or would be loaded from; a model made otherwise has none."""
    if not isinstance(model, str):
        model = getattr(getattr(model, "config", None), "name_or_path", None) or f"{id(model)}"
    name = lab_path(model)
    return os.path.realpath(name) if os.path.isdir(name) else name


def one_name(key: str, given: Any, named: str | None) -> Any:
    """The one model of `given`, an argument, and `named`, the configuration's `key`.

    Both may name the same one, in other words: `lab:teacher` and its path, or a model and what it was loaded from.

    Raises:
        ValueError: there are two.
    """
    both = given is not None and named is not None
    if both and given != named and _place(given) != _place(named):
        what = repr(given) if isinstance(given, str) else f"a {type(given).__name__}"
        raise ValueError(f"{key}={named!r} has no effect here: {what} was passed. Leave one of them out")
    return named if given is None else given


def check_teacher_settings(args: Any, teacher: Any) -> None:
    """Refuse settings of how a teacher is loaded beside one (a model, or `None`) that is not; its name reads them all.

    Raises:
        ValueError: the setting, by name.
    """
    if not isinstance(teacher, str):
        why = "there is no teacher to load" if teacher is None else "the teacher is loaded already; pass its name"
        refuse_settings(args, dict.fromkeys(LOADING, why))
    if not args.teacher_load_in_4bit:
        say_unread(args, QUANTIZATION, "teacher_load_in_4bit is off")

"""Settings that a run would take and never read: refused, or said to have no effect, by name."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any


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


def is_set(args: Any, name: str) -> bool:
    """Whether a configuration's field has another value than by default."""
    (field,) = [field for field in fields(args) if field.name == name]
    default = field.default if field.default_factory is MISSING else field.default_factory()
    value = getattr(args, name)
    return not (value == default or (not value and not default))


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
            f"{wanted.__mro__[1].__name__}, and those of this method"
        )


def one_name(key: str, given: Any, named: str | None) -> Any:
    """The one model of `given`, an argument, and `named`, the configuration's `key`.

    Raises:
        ValueError: there are two.
    """
    if given is not None and named is not None and given != named:
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

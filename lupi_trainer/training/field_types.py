"""Whether the values of a configuration are of their fields' types: what a dataclass itself does not look at."""

from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np


_SIMPLE = {int, float, bool, NoneType}
_NUMBER_OR_WORD = {int, str, NoneType}  # of `pad_to_multiple_of`, which TRL reads as a number unless it is a word
_WORDS = ("auto", "none", "null")


@cache
def _kinds(config: Any) -> dict[str, set[type]]:
    """The fields that hold numbers or truth values and nothing else, and which of these."""
    found, hints = {}, get_type_hints(config)
    for name in (field.name for field in fields(config)):
        hint = hints[name]
        kinds = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
        if kinds <= _SIMPLE or kinds == _NUMBER_OR_WORD:
            found[name] = kinds
    return found


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, of Python or numpy, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _fits(value: Any, kinds: set[type]) -> bool:
    if isinstance(value, bool) or value is None:
        return type(value) in kinds
    if isinstance(value, str) and str in kinds:
        return value.lower() in _WORDS or value.removeprefix("-").isdecimal()
    if is_whole(value):
        return bool({int, float} & kinds)
    return isinstance(value, Real) and float in kinds


def check_types(args: Any) -> None:
    """Refuse a float where a whole number belongs, a truth value where a number does, and the like.

    Numbers of numpy become Python's, which every library can write into a file.

    Args:
        args: a configuration (a dataclass).

    Raises:
        ValueError: a value that is not of its field's type; the field is named.
    """
    defaults = {field.name: field.default for field in fields(args)}
    for name, kinds in _kinds(type(args)).items():
        value = getattr(args, name)
        if isinstance(value, np.generic):
            setattr(args, name, value := value.item())
        if value is defaults[name] or _fits(value, kinds):
            continue
        what = "a number" if float in kinds else "a whole number" if int in kinds else "true or false"
        raise ValueError(f"{name} must be {what}{' or null' if NoneType in kinds else ''}, got {value!r}")

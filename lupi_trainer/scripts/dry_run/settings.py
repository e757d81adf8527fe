"""A recipe and its overrides as values, and everything that is wrong with its keys: all of it, not the first alone."""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from typing import Any

from ...training.settings import not_finite
from ..kd_flags import FLAGS
from ..no_plugins import refuse_code, take_flag
from ..recipe_words import (
    MEANS_NONE,
    NOTHING,
    RecipeError,
    as_written,
    hint,
    installed_name,
    load_recipe,
    refuse_secret,
)
from .key_types import UNKNOWN, KeyType, key_types


TRUE, FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


@dataclass
class Settings:
    """What a command line says.

    Attributes:
        command: which training command.
        values: a value a key, its default where nothing was given; keys with a computed default are left out.
        given: the keys that were given, each with where: the recipe's path, or `--KEY`.
        env: variables that the recipe sets.
        faults: what is wrong with keys and types.
    """

    command: str
    values: dict[str, Any]
    given: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def as_arguments(self) -> Any:
        """An object with the keys as attributes, and their defaults as a configuration has them."""
        known = {key: kind.default for key, kind in key_types(self.command).items() if kind.default is not UNKNOWN}
        fields = [(key, Any, field(default_factory=lambda value=value: value)) for key, value in known.items()]
        return make_dataclass("Arguments", fields)(**{k: v for k, v in self.values.items() if k in known})


@contextmanager
def variables(env: dict[str, str]) -> Generator[None]:
    """While a recipe is looked at, the variables that it sets are set, and afterwards as they were."""
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def wanted(kind: KeyType) -> str:
    """What a key takes, in words."""
    if kind.choices:
        return f"one of {list(kind.choices)}"
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "dict": "a mapping"}
    names |= {"list": "a list", "str": "text"}
    return " or ".join(words for name, words in names.items() if name in kind.kinds) or "a value"


def cannot_be_unset(kind: KeyType) -> str:
    """What is said where a key is to be left without a value, and needs one; it goes on from the key's name."""
    default = "" if kind.default is UNKNOWN else f", or leave it out for its default, {kind.default!r}"
    return f"cannot be left without a value: give it {wanted(kind)}{default}"


def typed(value: Any, kind: KeyType) -> Any:
    """A value as its key has it.

    Raises:
        ValueError: it is none that the key can have; the message goes on from the key's name.
    """
    kinds = kind.kinds
    if value is None:
        if not kinds & {"None", "Any", "object"}:
            raise ValueError(cannot_be_unset(kind))
        return None
    if (wrong := not_finite(value)) is not None:
        raise ValueError(f"must be a finite number, got {wrong}")
    name = "list" if isinstance(value, list) else "dict" if isinstance(value, dict) else None
    if name is not None:
        if not kinds & {name, "Any", "object"}:
            takes = "a list" if "list" in kinds else "a mapping" if "dict" in kinds else "one value"
            raise ValueError(f"takes {takes}, got {value!r}")
        return value
    if not isinstance(value, (str, bool, int, float)):
        raise ValueError(f"is read as a {type(value).__name__}; put it into quotes, as text")
    if kind.choices and value not in kind.choices and str(value) not in kind.choices:
        raise ValueError(f"must be one of {list(kind.choices)}, got {value!r}")
    text = str(value)
    if kinds <= {"str", "None"}:
        return text
    if kinds & {"str", "Any", "object", "list", "dict"}:
        return value
    if text.lower() in NOTHING:
        raise ValueError(cannot_be_unset(kind))
    if "bool" in kinds:
        if text.lower() not in TRUE + FALSE:
            raise ValueError(f"takes true or false, got {value!r}")
        return text.lower() in TRUE
    for name, make, what in (("int", int, "a whole number"), ("float", float, "a number")):
        if name in kinds:
            try:
                made = make(text)
            except ValueError:
                raise ValueError(f"takes {what}, got {value!r}") from None
            if (wrong := not_finite(made)) is not None:
                raise ValueError(f"must be a finite number, got {wrong}")
            return made
    return value


def _take(settings: Settings, key: str, value: Any, where: str) -> None:
    """Put a value in its place, or what is wrong with it among the faults."""
    kind = key_types(settings.command)[key]
    if isinstance(value, str) and value.lower() in NOTHING and "None" in kind.kinds and key not in MEANS_NONE:
        value = None
    shown = where if where.startswith("--") else f"{where}: {key!r}"
    try:
        settings.values[key], settings.given[key] = typed(value, kind), where
    except ValueError as error:
        settings.faults.append(f"{shown} {error}")


def _options(args: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(option, its values) of a command line without recipe; what belongs to no option is one with an empty name."""
    name, values = "", []
    for arg in args:
        if arg.startswith("--"):
            if name or values:
                yield name, values
            name, equals, value = arg.partition("=")
            values = [value] if equals else []
        else:
            values.append(arg)
    if name or values:
        yield name, values


def _secret(key: str, where: str, value: Any, faults: list[str]) -> bool:
    """Whether a secret was given, which is said."""
    try:
        refuse_secret(key, where, value)
    except RecipeError as error:
        faults.append(str(error))
        return True
    return False


def _read_file(settings: Settings, path: str, no_plugins: bool) -> None:
    recipe, known = load_recipe(path), set(key_types(settings.command))
    if no_plugins:
        refuse_code(recipe, f"{path}: ")
    variables = recipe.pop("env", None) or {}
    for key, value in (*recipe.items(), ("env", variables)):
        if _secret(str(key), f"{path}: ", value, settings.faults) or key == "env":
            continue
        name = installed_name(str(key), known)
        if name in known and name in settings.given:
            settings.faults.append(f"{path}: {name!r} is given twice, once as {key!r}: leave one of them")
        elif name in known:
            kinds = key_types(settings.command)[name].kinds
            is_switch, is_text = "bool" in kinds and "str" not in kinds, kinds <= {"str", "None"}
            try:
                value = as_written(f"{path}: {name!r}", recipe.texts.get(str(key)), value, is_switch, is_text)
            except RecipeError as error:
                settings.faults.append(str(error))
                continue
            _take(settings, name, value, path)
        else:
            settings.faults.append(f"{path}: unknown key {key!r}{hint(str(key), known | {'env'})}")
    if isinstance(variables, dict):
        settings.env = {str(name): str(value) for name, value in variables.items()}
    else:
        settings.faults.append(f"{path}: `env` must be a mapping of variable names to values")


def _read_option(settings: Settings, option: str, values: list[str]) -> None:
    keys = key_types(settings.command)
    if not option:
        settings.faults.append(f"expected --KEY VALUE, got {values[0]!r}")
        return
    key = option.removeprefix("--").replace("-", "_")
    key = installed_name(FLAGS.get(key, key) if settings.command == "kd" else key, set(keys))
    if _secret(key, "option ", " ".join(values), settings.faults):
        return
    off = key.removeprefix("no_")
    if key not in keys and off in keys and keys[off].kinds & {"bool"} and not values:
        _take(settings, off, False, option)
    elif key not in keys:
        settings.faults.append(f"unknown option {option}{hint(key, set(keys))}")
    elif not values and "bool" not in keys[key].kinds:
        settings.faults.append(f"{option} needs a value")
    elif len(values) > 1 and "list" in keys[key].kinds and "str" not in keys[key].kinds:
        _take(settings, key, values, option)
    elif len(values) > 1:
        listed = "; a recipe may have a list" if "list" in keys[key].kinds else ""
        settings.faults.append(f"{option} takes one value, got {' '.join(values)!r}{listed}")
    else:
        _take(settings, key, values[0] if values else True, option)


def read_settings(command: str, args: list[str]) -> Settings:
    """What a command line of a training command says, its recipe read.

    Raises:
        RecipeError: the recipe is no file of keys at all, or with `--no_plugins` one with code.
    """
    defaults = {key: kind.default for key, kind in key_types(command).items() if kind.default is not UNKNOWN}
    settings, (args, no_plugins) = Settings(command, defaults), take_flag(args)
    if "--config" in args:
        at = args.index("--config")
        if at + 1 == len(args):
            raise RecipeError("--config needs the path of a recipe")
        path = args[at + 1]
        del args[at : at + 2]
        _read_file(settings, path, no_plugins)
    for option, values in _options(args):
        if no_plugins:
            refuse_code({option.removeprefix("--").replace("-", "_"): " ".join(values) or True}, "option ")
        _read_option(settings, option, values)
    return settings

"""Recipes: YAML files of training keys, with command-line overrides, and clear words where one cannot be read."""

import os
import re
from argparse import Action
from collections.abc import Iterable
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from trl import TrlParser

from ..data.credentials import refuse_secrets
from ..training.settings import not_finite, refuse_not_finite
from .no_plugins import refuse_code, take_flag
from .recipe_words import (
    MEANS_NONE,
    NOTHING,
    RecipeError,
    as_written,
    hint,
    installed_name,
    load_recipe,
    one_line,
    refuse_secret,
)


# in place of what transformers says, which names no key of a recipe
NO_BF16 = (
    "bf16: true, its default, needs a GPU with bfloat16, and there is none, as far as PyTorch can see: set "
    "`bf16: false`, and `use_cpu: true` to train on the CPU"
)
_type_hints = lru_cache(get_type_hints)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


class RecipeParser(TrlParser):
    """[`~trl.TrlParser`] that names what is wrong with a recipe, and the nearest known key.

    Values are checked against the type of their key as command-line values are: `gamma: 2.5` is refused.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.actions: list[Action] = []
        super().__init__(*args, **kwargs)

    def add_argument(self, *args, **kwargs) -> Action:
        """The parent's; what was added is kept in `actions`."""
        self.actions.append(action := super().add_argument(*args, **kwargs))
        return action

    refuse_secret = staticmethod(refuse_secret)
    hint = staticmethod(hint)

    def known_keys(self) -> set[str]:
        return {action.dest for action in self.actions} - {"help"}

    def installed_option(self, arg: str) -> str:
        """An option under the name that the libraries here have for its key."""
        name, equals, value = arg.partition("=")
        key = name.removeprefix("--").replace("-", "_")
        new = installed_name(key, self.known_keys())
        return arg if new == key else f"--{new}{equals}{value}"

    def kinds(self, key: str) -> set[Any]:
        """The types that a value of a key may have."""
        hints = map(_type_hints, self.dataclass_types)
        hint = next((hints[key] for hints in hints if key in hints), Any)
        return {get_origin(kind) or kind for kind in (get_args(hint) if _is_union(hint) else (hint,))}

    def unsets(self, key: str, values: list[Any], words: tuple[str, ...] = NOTHING) -> bool:
        """Whether these values of a key are one of the words that mean nothing, and it can have none."""
        word = values[0] if len(values) == 1 else None
        nothing = isinstance(word, str) and word.lower() in words
        return nothing and key not in MEANS_NONE and type(None) in self.kinds(key)

    def take_unset(self, args: list[str]) -> list[str]:
        """Arguments without `--KEY none`, each of which undoes what the recipe, and the arguments before it, say."""
        groups: list[list[str]] = [[]]
        for arg in args:
            if arg.startswith("--"):
                groups.append([])
            groups[-1].append(arg)
        kept: list[tuple[str, list[str]]] = []
        for group in groups:
            name, equals, value = group[0].partition("=") if group else ("", "", "")
            key = name.removeprefix("--").replace("-", "_")
            if self.unsets(key, [value] if equals else group[1:]):
                self.set_defaults_with_config(**{key: None})
                kept = [(other, words) for other, words in kept if other != key]
            else:
                kept.append((key, group))
        return [word for _, words in kept for word in words]

    def check_kind(self, path: str, key: str, value: Any) -> None:
        """Whether a value is of a kind that its key can take: one value, a list, a mapping, or null.

        Raises:
            RecipeError: it is not; the message names file and key.
        """
        kinds = self.kinds(key)
        kind = next((kind for kind in (list, dict, type(None)) if isinstance(value, kind)), None)
        if kind is None and not isinstance(value, (str, bool, int, float)):
            raise RecipeError(f"{path}: {key!r} is read as a {type(value).__name__}; put it into quotes, as text")
        if (wrong := not_finite(value)) is not None:
            raise RecipeError(f"{path}: {key!r} must be a finite number, got {wrong}")
        if kind is not None and not {kind, Any, object} & kinds:
            takes = "a list" if list in kinds else "a mapping" if dict in kinds else "one value"
            raise RecipeError(f"{path}: {key!r} takes {takes}, got {'null' if value is None else repr(value)}")

    def read_recipe(self, path: str | Path, no_plugins: bool = False) -> dict:
        """The mapping in a recipe file, every key of it known.

        Args:
            path: of the file.
            no_plugins: whether it may bring no code.

        Raises:
            RecipeError: no such file, not YAML, not a mapping, an unknown key, one that is given twice, a list where
            one value belongs, or a word without quotes that would become another value; code that may not be.
        """
        known, recipe, loaded = self.known_keys() | {"env"}, {}, load_recipe(path)
        for given, value in loaded.items():
            if (key := installed_name(str(given), known)) in recipe:
                raise RecipeError(f"{path}: {key!r} is given twice, once as {given!r}: leave one of them")
            kinds = self.kinds(key)
            is_switch, is_text = bool in kinds and str not in kinds, kinds <= {str, type(None)}
            where = f"{path}: {key!r}"
            recipe[key] = as_written(where, loaded.texts.get(str(given)), value, is_switch, is_text)
        if no_plugins:
            refuse_code(recipe, f"{path}: ")
        for key in recipe:
            self.refuse_secret(str(key), f"{path}: ", recipe[key])
            if key not in known:
                raise RecipeError(f"{path}: unknown key {key!r}{self.hint(str(key), known)}")
        if not isinstance(recipe.get("env") or {}, dict):
            raise RecipeError(f"{path}: `env` must be a mapping of variable names to values")
        return recipe

    # the parent's `args` may be left out
    def parse_args_and_config(self, args: Iterable[str], **kwargs) -> tuple:  # ty: ignore[incompatible-method-override]
        """Dataclasses from command-line arguments; `--config FILE` (or `--config=FILE`) gives the defaults.

        Raises:
            RecipeError: as [`read_recipe`], or with `--no_plugins` a recipe with code.
        """
        (args, no_plugins), variables, where = take_flag(list(args)), {}, ""
        args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
        args = [self.installed_option(arg) if arg.startswith("--") else arg for arg in args]
        if args.count("--config") > 1:
            raise RecipeError("--config is given more than once: leave one of them")
        if "--config" in args:
            at = args.index("--config")
            if at + 1 == len(args):
                raise RecipeError("--config needs the path of a recipe")
            recipe, where = self.read_recipe(args[at + 1], no_plugins), f"{args[at + 1]}: "
            for action in self.actions:
                if self.unsets(action.dest, [recipe.get(action.dest)], NOTHING[:1]):  # YAML has a null of its own
                    recipe[action.dest] = None
                value = recipe.get(action.dest)
                if action.dest in recipe:
                    self.check_kind(args[at + 1], action.dest, value)
                if isinstance(value, (bool, int, float)):
                    # given as text, argparse checks it against the key's type and choices
                    recipe[action.dest] = str(value)
                if action.choices and value is not None and value not in action.choices:
                    raise RecipeError(
                        f"{args[at + 1]}: {action.dest!r} must be one of {list(action.choices)}, got {value!r}"
                    )
            variables = self._variables(recipe.pop("env", None) or {}, args[at + 1])
            self.set_defaults_with_config(**recipe)
            del args[at : at + 2]
        options = {option for action in self.actions for option in action.option_strings}
        name = ""
        for place, arg in enumerate(args):
            if not arg.startswith("--"):
                self.refuse_secret(name.removeprefix("--"), "option ", arg)
                continue
            name, _, value = arg.partition("=")
            self.refuse_secret(name.removeprefix("--"), "option ", value)
            if no_plugins:
                values = " ".join(takewhile(lambda word: not word.startswith("--"), args[place + 1 :]))
                refuse_code({name.removeprefix("--").replace("-", "_"): value or values or True}, "option ")
            if name not in options:
                key = name.removeprefix("--").replace("-", "_")
                raise RecipeError(f"unknown option {name}{self.hint(key, self.known_keys())}")
        args = self.take_unset(args)
        before = dict(os.environ)
        os.environ.update(variables)
        try:
            parsed = super().parse_args_and_config(args, **kwargs)
            for arguments in parsed:
                refuse_secrets(arguments)
                refuse_not_finite(arguments)
        except BaseException as error:
            os.environ.clear()  # what is refused leaves nothing behind
            os.environ.update(before)
            if isinstance(error, RecipeError) or not isinstance(error, Exception):
                raise
            # the checks of the configurations: those of this package, and those of the libraries they extend
            # whose a bad value is cannot be known, so the recipe is named where there is nothing else
            said = one_line(error)
            raise RecipeError(("" if args else where) + (NO_BF16 if "support bf16/gpu" in said else said)) from error
        return parsed

    @staticmethod
    def _variables(env: dict, where: str) -> dict[str, str]:
        """The environment variables that a recipe sets, as text."""
        for name, value in env.items():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
                raise RecipeError(f"{where}: `env` names no variable by {name!r}")
            if isinstance(value, (dict, list)) or "\0" in str(value):
                raise RecipeError(f"{where}: the variable {name} in `env` must be one value")
        return {name: str(value) for name, value in env.items()}

    def error(self, message: str):
        raise RecipeError(f"{message}")

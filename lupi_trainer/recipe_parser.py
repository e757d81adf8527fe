"""Recipes: YAML files of training keys, with command-line overrides, and clear words where one cannot be read."""

import difflib
from collections.abc import Iterable
from pathlib import Path

import yaml
from trl import TrlParser

from .loading import refuse_secrets


# Keys that other tools or older versions use, and what they are called now.
RENAMED = {
    "torch_dtype": "dtype",
    "max_seq_length": "max_length",
    "max_new_tokens": "max_completion_length",
    "max_prompt_length": "max_teacher_prompt_length",
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "top_k": "accept_top_k",
    "lmbda": "rollout_policy",
    "teacher_model": "teacher_model_name_or_path",
    "model": "model_name_or_path",
}


class RecipeError(ValueError):
    """A recipe that cannot be read; the message names the file and the key."""


class RecipeParser(TrlParser):
    """[`~trl.TrlParser`] that names what is wrong with a recipe, and the nearest known key.

    Values are checked against the type of their key as command-line values are: `gamma: 2.5` is refused.
    """

    @staticmethod
    def refuse_secret(key: str, where: str) -> None:
        """Raises RecipeError for a token: recipes are shared, command lines are seen by everybody and logged."""
        if key.replace("-", "_") in ("hub_token", "push_to_hub_token", "token"):
            raise RecipeError(
                f"{where}{key!r} does not belong here, where others may read it: set HF_TOKEN in the environment, or "
                "run `hf auth login`"
            )

    def known_keys(self) -> set[str]:
        return {action.dest for action in self._actions} - {"help"}

    @staticmethod
    def hint(key: str, known: set[str]) -> str:
        """What an unknown key may have been meant to be, as the end of a message."""
        near = [RENAMED[key]] if RENAMED.get(key) in known else difflib.get_close_matches(key, known, 1)
        return f"; did you mean {near[0]!r}?" if near else ""

    def read_recipe(self, path: str | Path) -> dict:
        """The mapping in a recipe file, every key of it known.

        Raises:
            RecipeError: no such file, not YAML, not a mapping, an unknown key, or a list where one value belongs.
        """
        path = Path(path)
        if not path.is_file():
            raise RecipeError(f"no such recipe: {path} (`lupi recipes ls` lists the shipped ones)")
        try:
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} is not valid YAML: {error}") from error
        if not isinstance(recipe, dict):
            raise RecipeError(f"{path} must be a mapping of keys to values, found {type(recipe).__name__}")
        known = self.known_keys() | {"env"}
        for key in recipe:
            self.refuse_secret(str(key), f"{path}: ")
            if key not in known:
                raise RecipeError(f"{path}: unknown key {key!r}{self.hint(str(key), known)}")
        if not isinstance(recipe.get("env") or {}, dict):
            raise RecipeError(f"{path}: `env` must be a mapping of variable names to values")
        return recipe

    def parse_args_and_config(self, args: Iterable[str], **kwargs) -> tuple:
        """Dataclasses from command-line arguments; `--config FILE` gives the defaults.

        Raises:
            RecipeError: as [`read_recipe`].
        """
        args = list(args)
        if "--config" in args:
            at = args.index("--config")
            if at + 1 == len(args):
                raise RecipeError("--config needs the path of a recipe")
            recipe = self.read_recipe(args[at + 1])
            for action in self._actions:
                value = recipe.get(action.dest)
                if isinstance(value, (bool, int, float)):
                    # given as text, argparse checks it against the key's type and choices
                    recipe[action.dest] = str(value)
                elif isinstance(value, list) and action.nargs in (None, "?") and action.type in (int, float):
                    raise RecipeError(f"{args[at + 1]}: {action.dest!r} takes one value, got {value!r}")
                if action.choices and value is not None and value not in action.choices:
                    raise RecipeError(
                        f"{args[at + 1]}: {action.dest!r} must be one of {list(action.choices)}, got {value!r}"
                    )
            if recipe.get("env"):
                import os

                os.environ.update({key: str(value) for key, value in recipe.pop("env").items()})
            recipe.pop("env", None)
            self.set_defaults_with_config(**recipe)
            del args[at : at + 2]
        options = {option for action in self._actions for option in action.option_strings}
        for name in (arg.split("=")[0] for arg in args if arg.startswith("--")):
            self.refuse_secret(name.removeprefix("--"), "option ")
            if name not in options:
                key = name.removeprefix("--").replace("-", "_")
                raise RecipeError(f"unknown option {name}{self.hint(key, self.known_keys())}")
        parsed = super().parse_args_and_config(args, **kwargs)
        for arguments in parsed:
            refuse_secrets(arguments)
        return parsed

    def error(self, message: str):
        raise RecipeError(f"{message}")

"""What a recipe may say and may not, and the words where it is wrong. Nothing heavy is imported here."""

import difflib
import json
import re
from pathlib import Path
from typing import Any

import yaml

from ..data.credentials import is_secret_name, looks_secret, without_secrets


# Keys of earlier versions, of TRL and transformers too, and what they are called now.
RENAMED = {
    "torch_dtype": "dtype",
    "max_seq_length": "max_length",
    "evaluation_strategy": "eval_strategy",
}
# What other tools call something like it.
ELSEWHERE = {
    "no_cuda": "use_cpu",
    "max_new_tokens": "max_completion_length",
    "max_prompt_length": "max_teacher_prompt_length",
    "warmup_ratio": "warmup_steps",
    "top_k": "accept_top_k",
    "lmbda": "rollout_policy",
    "teacher_model": "teacher_model_name_or_path",
    "model": "model_name_or_path",
}
# What is no key, and what does the same.
UNNEEDED = {
    "device": "training takes the GPU where there is one, and `use_cpu: true` keeps it on the CPU",
}
UNNEEDED |= dict.fromkeys(("cuda", "gpu", "device_map"), UNNEEDED["device"])
# Two names of one key, of which each release of transformers has the first, or warns of it and wants the second.
SAME = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
# What leaves a key without a value, and the keys that have a meaning of their own for it.
NOTHING = ("none", "null")
MEANS_NONE = {"report_to"}


class RecipeError(ValueError):
    """A recipe that cannot be read; the message names the file and the key."""


def one_line(error: BaseException) -> str:
    """What an error says, in one line that can be printed, with its type where it says nothing."""
    return without_secrets(" ".join(str(error).encode("utf-8", "replace").decode().split())) or type(error).__name__


def refuse_secret(key: str, where: str, value: Any = None) -> None:
    """Raises RecipeError for a token: recipes are shared, command lines are seen by everybody and logged."""
    if key.replace("-", "_") in ("hub_token", "push_to_hub_token", "token"):
        raise RecipeError(
            f"{where}{key!r} does not belong here, where others may read it: set HF_TOKEN in the environment, or "
            "run `hf auth login`"
        )
    secret = next(filter(is_secret_name, map(str, value)), "") if key == "env" and isinstance(value, dict) else ""
    if secret or looks_secret(str(value)):
        what = f"the variable {secret}" if secret else "what looks like a token or password"
        raise RecipeError(
            f"{where}{key!r} holds {what}, and others may read it here: set it in the environment of the run"
        )


def hint(key: str, known: set[str]) -> str:
    """What an unknown key is called now, or may have been meant to be, as the end of a message."""
    if RENAMED.get(key) in known:
        return f": it is now called {RENAMED[key]!r}"
    if key in UNNEEDED:
        return f": {UNNEEDED[key]}"
    names = known | {"config", "accelerate_config"}
    near = [ELSEWHERE[key]] if ELSEWHERE.get(key) in known else difflib.get_close_matches(key, names, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def installed_name(key: str, known: set[str]) -> str:
    """The name that a key has in the libraries that are installed: the newer of two, where they know it."""
    old = next((old for old, new in SAME.items() if key in (old, new)), key)
    return new if (new := SAME.get(old)) in known else old


class Recipe(dict):
    """The mapping in a recipe file.

    Attributes:
        texts: what is written, without quotes, at keys whose value YAML reads as something else than text.
    """

    def __init__(self, values: dict, texts: dict[str, str]):
        super().__init__(values)
        self.texts = texts


def load_recipe(path: str | Path) -> Recipe:
    """The mapping in a recipe file, whatever its keys.

    Raises:
        RecipeError: no such file, not YAML, or not a mapping; a key that is given twice, or a word without quotes that
            would become another value.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"no such recipe: {path} (`lupi recipes ls` lists the shipped ones)")
    loader = None
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        _look_at(node, f"{path}", [], set())
        recipe = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:  # without its quotation of the file, which may hold a secret
        mark = error.problem_mark
        where = "" if mark is None else f", in line {mark.line + 1}"
        raise RecipeError(f"{path} is not valid YAML: {without_secrets(str(error.problem))}{where}") from error
    except RecipeError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError, ArithmeticError) as error:
        raise RecipeError(f"{path} is not valid YAML: {one_line(error)}") from error
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(recipe, dict):
        raise RecipeError(f"{path} must be a mapping of keys to values, found {type(recipe).__name__}")
    plain = [(key, value) for key, value in node.value if isinstance(value, yaml.ScalarNode) and value.style is None]
    return Recipe(recipe, {str(key.value): value.value for key, value in plain if not value.tag.endswith(":str")})


def _look_at(node: Any, path: str, keys: list[str], seen: set[int]) -> None:
    """Refuse keys that are given twice, and words that would become another value, whatever the key is.

    Args:
        node: of YAML's tree.
        path: of the file.
        keys: that lead to the node.
        seen: the nodes that were looked at.
    """
    if id(node) in seen:  # named by several places
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if (key.tag, name) in lines:
                first = lines[key.tag, name]
                raise RecipeError(f"{path}: {name!r} is given twice, in lines {first} and {line}: leave one of them")
            lines[key.tag, name] = line
            _look_at(value, path, [*keys, name], seen)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            _look_at(value, path, [*keys, str(number)], seen)
    elif isinstance(node, yaml.ScalarNode) and node.style is None:
        kind, where = node.tag.rpartition(":")[2], f"{path}: {'.'.join(keys)!r}"
        if _CHANGED.get(kind, _NOTHING).fullmatch(node.value) or (len(keys) > 1 and is_old_switch(node.value)):
            raise RecipeError(changed(where, node.value, yaml.safe_load(node.value)))
        if keys[:1] == ["env"] and kind in ("bool", "int", "float") and str(yaml.safe_load(node.value)) != node.value:
            raise RecipeError(changed(where, node.value, str(yaml.safe_load(node.value))))


# numbers that are others in YAML 1.1 than they look: 010, 0b11, 1:30
_CHANGED = {
    "int": re.compile(r"[-+]?0[0-9_]+|[-+]?0b[01_]+|.*:.*"),
    "float": re.compile(r".*:.*"),
}
_NOTHING = re.compile(r"(?!)")
_OLD_SWITCHES = {"yes", "no", "on", "off"}


def is_old_switch(text: str) -> bool:
    """Whether a word without quotes is true or false in YAML 1.1, and text in YAML 1.2."""
    return text.lower() in _OLD_SWITCHES


def changed(where: str, text: str, value: Any) -> str:
    """What is said of a word that would become another value."""
    return f"{where}: {text} without quotes is read as {json.dumps(value)}: put it into quotes, or write what is meant"


def as_written(where: str, text: str | None, value: Any, is_switch: bool, is_text: bool) -> Any:
    """The value of a key, as it is written where the key takes text alone.

    Args:
        where: path and key, for the message.
        text: what is written without quotes; `None` where it was read as text.
        value: what YAML reads.
        is_switch: whether the key takes true and false, and no text.
        is_text: whether the key takes text alone.

    Raises:
        RecipeError: `no`, `off`, `yes` or `on` at a key that is no switch.
    """
    if text is None or value is None:
        return value
    if is_old_switch(text) and not is_switch:
        raise RecipeError(changed(where, text, value))
    return text if is_text and isinstance(value, (bool, int, float)) else value

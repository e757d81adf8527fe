"""What a recipe may say and may not, and the words where it is wrong. Nothing heavy is imported here."""

import difflib
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


def load_recipe(path: str | Path) -> dict:
    """The mapping in a recipe file, whatever its keys.

    Raises:
        RecipeError: no such file, not YAML, or not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"no such recipe: {path} (`lupi recipes ls` lists the shipped ones)")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not valid YAML: {one_line(error)}") from error
    if not isinstance(recipe, dict):
        raise RecipeError(f"{path} must be a mapping of keys to values, found {type(recipe).__name__}")
    return recipe

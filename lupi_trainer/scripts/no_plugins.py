"""`--no_plugins`: nothing that a recipe names runs as code, and it sets no variable.

Nothing heavy is imported here.
"""

import json
from collections.abc import Iterator
from typing import Any

from .recipe_words import RecipeError


FLAG = "--no_plugins"
HELP = "refuse classes of your own, `env` and code of models in a recipe: for one that you do not trust"
CLASSES = ("acceptance_rule", "gamma_policy")
# switches under which the Hub's code runs
CODE = ("trust_remote_code", "allow_all_kernels", "use_kernels", "kernel_config")
KERNELS = ("attn_implementation", "experts_implementation")  # how such keys end; OWNER/NAME is code from the Hub
OFF = ("", "false", "f", "no", "n", "0", "none", "null")


def take_flag(args: list[str]) -> tuple[list[str], bool]:
    """(the arguments without the flag, whether it was among them)."""
    return [arg for arg in args if arg != FLAG], FLAG in args


def refuse_code(settings: dict[str, Any], where: str) -> None:
    """Whether a recipe, or options, would bring code to run, or a variable to be set.

    Args:
        settings: values by key, as they are written: text may be JSON.
        where: what the message begins with, as `recipe.yaml: `.

    Raises:
        RecipeError: it would; the message names the key.
    """
    for name, found in (pair for key, value in settings.items() for pair in _named(str(key), value)):
        last, text = name.rpartition(".")[2], str(found).strip()
        what = ""
        if name == "env" and found:
            what = "sets variables, with which libraries can be made to load code"
        elif last in CLASSES and ":" in text:
            what = f"names a class outside the package, {text!r}, whose code would run"
        elif last in CODE and text.lower() not in OFF:
            what = "lets code of a model or of the Hub run"
        elif last == "weights_only" and text.lower() in OFF:
            what = "lets code in pickled weights run"
        elif last.endswith(KERNELS) and "/" in text:
            what = f"names code on the Hub, {text!r}"
        if what:
            raise RecipeError(
                f"{where}{name!r} {what}, and {FLAG} refuses it: leave it out, or the flag where you trust it"
            )


def _named(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A value and everything inside it, each with the keys that lead to it."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            pass
    yield name, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _named(f"{name}.{key}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _named(name, inner)

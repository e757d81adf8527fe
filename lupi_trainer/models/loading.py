"""How models and tokenizers are loaded where nobody asked for more: no code of theirs runs, no pickle is read.

Without a word on it, transformers *asks at the terminal* whether a repository's code may run, and falls back on
pickled weights; every `from_pretrained` of this package says something.
"""

from collections.abc import Callable
from typing import Any

from ..lab import resolve_model


NO_CODE = {"trust_remote_code": False}
SAFE_WEIGHTS = {"trust_remote_code": False, "use_safetensors": True}


def resolve_student(model: Any, args: Any, default_args: Callable[[str], Any]) -> tuple[Any, str, Any]:
    """What a trainer's constructor knows of its student first of all.

    A student given by name is loaded from safetensors; `model_init_kwargs: {use_safetensors: false}` reads pickles.

    Args:
        model: a name, a path, `lab:NAME`, or a model.
        args: the run's configuration, or `None`.
        default_args: from the last part of the student's name to the configuration of a run that has none.

    Returns:
        `(model, name, args)`: the model, or the path that its name stands for; its name; the configuration.
    """
    if isinstance(model, str):
        model = name = resolve_model(model)
    else:
        name = model.config._name_or_path or "student"
    if args is None:
        args = default_args(name.split("/")[-1])
    if isinstance(model, str):
        args.model_init_kwargs = {"use_safetensors": True} | (args.model_init_kwargs or {})
    return model, name, args


def repository_options(args: Any) -> dict[str, Any]:
    """Of a student's configuration and tokenizer: the revision that its weights are loaded from."""
    return {"revision": (args.model_init_kwargs or {}).get("revision"), "trust_remote_code": args.trust_remote_code}

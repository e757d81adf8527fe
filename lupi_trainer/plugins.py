"""Classes outside the package, named in a recipe."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def is_plugin(name: str) -> bool:
    """Whether a key's value names a class outside the package: `MODULE:CLASS` or `FILE.py:CLASS`."""
    return ":" in name


def load_plugin(key: str, name: str, needs: Iterable[str]) -> type[Any]:
    """The class that `name` stands for.

    Args:
        key: the recipe's key, for messages.
        name: `MODULE:CLASS` (importable) or `FILE.py:CLASS` (a path; its code runs).
        needs: names that the class must have.

    Raises:
        ValueError: no such file, module or class, or one that lacks a name.
    """
    source, _, class_name = name.rpartition(":")
    try:
        if source.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(source).stem, source)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise ValueError(f"{key}: cannot load {name!r}: {error}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise ValueError(f"{key}: {source} has no class {class_name!r}")
    missing = [need for need in needs if not hasattr(found, need)]
    if missing:
        raise ValueError(f"{key}: {class_name} has no {', '.join(missing)}")
    return found

"""Classes outside the package, named in a recipe."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any


def is_plugin(name: str) -> bool:
    """Whether a key's value names a class outside the package: `MODULE:CLASS` or `FILE.py:CLASS`."""
    return ":" in name


def load_plugin(key: str, name: str, needs: Iterable[str]) -> type[Any]:
    """The class that `name` names.

    Args:
        key: the recipe's key, for messages.
        name: `MODULE:CLASS` (importable) or `FILE.py:CLASS` (a path; its code runs, once in a process).
        needs: names that the class must have.

    Raises:
        ValueError: no such file, module or class, one that lacks a name, or code that fails (its line is named).
    """
    source, _, class_name = name.rpartition(":")
    try:
        module = _run_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except Exception as error:  # whatever code outside raises
        raise ValueError(f"{key}: cannot load {name!r}: {_described(error, source)}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise ValueError(f"{key}: {source} has no class {class_name!r}")
    missing = [need for need in needs if not hasattr(found, need)]
    if missing:
        raise ValueError(f"{key}: {class_name} has no {', '.join(missing)}")
    return found


def make_plugin(key: str, made: type[Any], *args: Any, **options: Any) -> Any:
    """An object of a class that [`load_plugin`] found.

    Raises:
        ValueError: its constructor fails; the message begins with `key`.
    """
    try:
        return made(*args, **options)
    except Exception as error:  # whatever code outside raises
        raise ValueError(f"{key}: {made.__name__} cannot be made: {_described(error)}") from error


def _run_file(path: Path) -> ModuleType:
    """The module in a file; it runs again only if the file has changed."""
    # a name of its own: two files of one name do not meet, and dataclasses and pickle find the module
    name = f"lupi_plugin_{path.stem}_{hashlib.sha1(str(path.resolve()).encode() + path.read_bytes()).hexdigest()}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None  # since the path ends with .py
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _described(error: Exception, source: str | None = None) -> str:
    """What went wrong in code outside the package, in one line, with the place in `source` where there is one."""
    what = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, SyntaxError):
        return what  # which names file and line
    file = source if source is None or source.endswith(".py") else source.replace(".", "/") + ".py"
    if file is None:
        return what
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == Path(file).name]
    return f"{what} ({file}, line {lines[-1]})" if lines else what

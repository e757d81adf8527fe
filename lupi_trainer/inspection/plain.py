"""What JSON can hold and a page cannot show: numbers of many digits, half characters, depth."""

import json
import re
from pathlib import Path
from typing import Any


DEEPEST = 64
_HALF = re.compile("[\ud800-\udfff]")  # of a character: a lone UTF-16 surrogate


def oddity(value: Any) -> tuple[str, str] | None:
    """(the keys that lead to what is odd in a value, what is odd about it); `None` where nothing is."""
    found = _look(value, DEEPEST)
    if found is None:
        return None
    keys, what = found
    steps = [f"[{key}]" if isinstance(key, int) else f".{key[:40]}" for key in keys[:5]]
    path = "".join(steps).removeprefix(".") + "..." * (len(keys) > 5)
    return path.encode("utf-8", "replace").decode(), what


def _look(value: Any, depth: int) -> tuple[list[Any], str] | None:
    if isinstance(value, str):
        return ([], "has half a character (a lone UTF-16 surrogate)") if _HALF.search(value) else None
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**63 else ([], "has a number of more than 63 bits")
    if not isinstance(value, (dict, list)):
        return None
    if not depth:
        return [], f"is nested more than {DEEPEST} deep"
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if (found := _look(key, depth) or _look(inner, depth - 1)) is not None:
            return [key, *found[0]], found[1]
    return None


def read_plain(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: it is not JSON, or holds what no page can show; the message names the file and the place in it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} is not valid JSON: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if (found := oddity(value)) is not None:
        raise ValueError(f"{path}: `{found[0]}` {found[1]}" if found[0] else f"{path} {found[1]}")
    return value

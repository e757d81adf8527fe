"""Code that a model's configuration names, which would be gotten from the Hub and run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import cached_file


KERNELS = ("attn_implementation", "experts_implementation")  # OWNER/NAME is code from the Hub


def refuse_hub_code(name: str, revision: str | None = None) -> None:
    """Refuse a model whose configuration names attention or experts of the Hub, before anything of it is loaded.

    transformers would run them as if whoever loads the model had asked for it.

    Args:
        name: a path or a name on the Hub.
        revision: of a model on the Hub.

    Raises:
        ValueError: it does; the message names file, key and code.
    """
    try:
        found = cached_file(name, "config.json", revision=revision)
        config = json.loads(Path(str(found)).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # which is said when it is loaded
        return
    for key, value in _named(config):
        if key.endswith(KERNELS) and "/" in str(value):
            raise ValueError(
                f"{name}: `{key}` in its config.json names code on the Hub, {str(value)[:80]!r}, and the code of "
                "models is not run: take the key out of the file, and name the kernel yourself where you trust it"
            )


def _named(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of a configuration, and of those inside it."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict):
            yield from inner.items()
        waiting += inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list) else ()

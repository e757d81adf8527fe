"""What the docstring of a configuration says of the keys that it has of its parents."""

import re
import textwrap
from dataclasses import MISSING, fields
from typing import Any


def documented(config: Any, *parts: Any) -> str:
    """The docstring of `config` with all of its keys: its own, those of `parts`, and, in the form of these, the
    others, explained by their own help."""
    own = "\n".join([config.__doc__.rstrip(), *(part.__doc__.partition("Parameters:")[2].rstrip() for part in parts)])
    explained = set(re.findall(r"^        (\w+) \(", own, re.M))
    lines = [
        own,
        "",
        "    > Parameters of [`~trl.DistillationConfig`] and [`~transformers.TrainingArguments`]",
    ]
    for key in fields(config):
        if key.name not in explained:
            kind = key.type.__name__ if isinstance(key.type, type) else str(key.type).removeprefix("typing.")
            default = "" if key.default in (None, MISSING) else f", defaults to `{key.default!r}`"
            lines += ["", f"        {key.name} (`{kind}`, *optional*{default}):"]
            lines.append(textwrap.indent(textwrap.fill(key.metadata["help"], 107), " " * 12))
    return "\n".join([*lines, "    "])

"""What the docstring of a configuration says of the keys that it has of its parents."""

import re
import textwrap
from dataclasses import MISSING, fields
from typing import Any


def inherited_keys(config: Any) -> str:
    """The keys that the docstring of `config` leaves out, explained by their own help, in the form of the others."""
    explained = set(re.findall(r"^        (\w+) \(", config.__doc__, re.M))
    lines = [
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

"""The docstring of a configuration: the keys that matter first, then its own, and those that it has of its parents."""

import re
import textwrap
from dataclasses import MISSING, fields
from typing import Any


FIRST = {
    "the teacher": (
        "teacher_model_name_or_path",
        "teacher_model_server_url",
        "teacher_load_in_4bit",
        "teacher_system_prompt",
        "max_teacher_prompt_length",
    ),
    "the texts": ("rollout_policy", "max_completion_length", "gamma", "accept_top_k", "teacher_min_prob"),
    "the training": (
        "output_dir",
        "learning_rate",
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "bf16",
        "use_cpu",
    ),
    "what is measured and kept": ("eval_strategy", "resume_from_checkpoint", "report_to"),
}
_NOTE = "    > [!NOTE]"


def documented(config: Any, *parts: Any) -> str:
    """The docstring of `config` with all of its keys: the twenty of `FIRST`, its own others, those of `parts`, and, in
    the form of these, those of its parents, explained by their own help."""
    head, _, own = config.__doc__.partition("    Parameters:\n")
    own, _, note = own.partition(_NOTE)
    groups = _groups("\n".join([own, *(part.__doc__.partition("Parameters:\n")[2] for part in parts)]))
    known = {name for entries in groups.values() for name in entries}
    groups["> Parameters of [`~trl.DistillationConfig`] and [`~transformers.TrainingArguments`]"] = {
        key.name: _inherited(key) for key in fields(config) if key.name not in known
    }
    every = {name: entry for entries in groups.values() for name, entry in entries.items()}
    lines = [head + "    Parameters:"]
    for group, names in FIRST.items():
        lines += [f"        > Parameters that matter: {group}", "", *(every.pop(name) + "\n" for name in names)]
    for group, entries in groups.items():
        left = [every[name] + "\n" for name in entries if name in every]
        lines += [f"        {group}", "", *left] if left else []
    return "\n".join(lines) + _NOTE + note


def _groups(text: str) -> dict[str, dict[str, str]]:
    """Heading -> name of a key -> what is said of it, as it is indented."""
    found: dict[str, dict[str, str]] = {}
    heading = ""
    for piece in re.split(r"^ {8}(?=\S)", text, flags=re.MULTILINE)[1:]:
        if piece.startswith("> "):
            heading = piece.strip()
        else:
            found.setdefault(heading, {})[piece.split(" (")[0]] = " " * 8 + piece.rstrip()
    return found


def _inherited(key: Any) -> str:
    kind = key.type.__name__ if isinstance(key.type, type) else str(key.type).removeprefix("typing.")
    default = "" if key.default in (None, MISSING) else f", defaults to `{key.default!r}`"
    explained = textwrap.indent(textwrap.fill(key.metadata["help"], 107), " " * 12)
    return f"        {key.name} (`{kind}`, *optional*{default}):\n{explained}"

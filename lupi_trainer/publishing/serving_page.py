"""The README of an exported student: what it is, how it is served, and how its marks are asked there."""

import json
import shlex
from pathlib import Path
from typing import Any

from ..lab import LAB_PREFIX
from .export import Student


PORTS = {"vllm": 8000, "gguf": 8080, "ollama": 11434}
DRAFTED = 4  # tokens at a time
HEADS_LEFT = (
    "Its heads for multi-token prediction are left out: {who} has no use for them. Texts are the same without; "
    "`lupi generate` drafts with them."
)
HEADS_KEPT = (
    "Its heads for multi-token prediction are in `mtp_heads.safetensors`, which lupi_trainer alone reads "
    "(`lupi generate`); everything else passes over them."
)


def public(name: str, placeholder: str) -> str:
    """The name of a model as it may stand in a README: what only this machine or package has is left to who reads."""
    return placeholder if name.startswith(LAB_PREFIX) or Path(name).expanduser().is_dir() else name


def about_heads(student: Student, target: str, with_heads: bool) -> str | None:
    """What becomes of the heads of a student that has some."""
    if not student.heads:
        return None
    who = {"vllm": "vLLM", "gguf": "llama.cpp", "ollama": "Ollama", "hf": "an adapter's folder"}[target]
    return HEADS_KEPT if with_heads else HEADS_LEFT.format(who=who)


def serving_commands(target: str, name: str, file: str | None, base: str | None, rank: int | None) -> list[str]:
    """The commands that serve what was exported, from inside its folder.

    Args:
        target: of the export.
        name: that the model is served by.
        file: the GGUF file, if there is one.
        base: of an adapter that was kept.
        rank: of that adapter.
    """
    called = shlex.quote(name)
    if target == "hf":
        return [] if base else ["lupi chat ."]
    if target == "vllm" and base:
        served = f"vllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {_rank(rank or 16)}"
        return [
            f"{served} --lora-modules {shlex.quote(f'{name}=.')} --chat-template chat_template.jinja "
            "--generation-config ."
        ]
    if target == "vllm":
        return [f"vllm serve . --served-model-name {called}"]
    if target == "gguf":
        return [f"llama-server --model {shlex.quote(str(file))} --alias {called} --jinja --port {PORTS['gguf']}"]
    return [f"ollama create {called} -f Modelfile", f"ollama run {called}"]


def _rank(rank: int) -> int:
    """The rank that vLLM makes room for: one of a few."""
    return next((room for room in (8, 16, 32, 64, 128, 256, 320, 512) if room >= rank), rank)


def serving_page(
    student: Student, target: str, name: str, commands: list[str], made: dict[str, Any], heads: str | None
) -> str:
    """What the README says of serving, as Markdown without a title.

    Args:
        student: that was exported.
        target: of the export.
        name: that the model is served by.
        commands: that serve it.
        made: what was chosen: type of the weights, file, ...
        heads: what became of its heads.
    """
    lines = ["## Serving", "", *(f"- {key}: {value}" for key, value in made.items())]
    ends = student.generation.eos_token_id
    tokens = student.tokenizer.convert_ids_to_tokens(ends if isinstance(ends, list) else [ends])
    lines.append(f"- an answer ends with {' or '.join(f'`{token}`' for token in tokens)}")
    lines += [f"- {note}" for note in student.notes]
    if heads:
        lines.append(f"- {heads}")
    if commands:
        lines += ["", "```bash", *commands, "```"]
    if target in PORTS:
        lines += [
            "",
            "Whether it answers there as it did where it was trained:",
            "",
            "```bash",
            f"lupi evaluate --server http://localhost:{PORTS[target]}/v1 --served_model {shlex.quote(name)} "
            "--probes PROBES --compare RUN",
            "```",
        ]
    return "\n".join(lines) + "\n"


def drafting_page(teacher: str) -> str:
    """What the README says of the student as the draft of its teacher: the texts are the teacher's own."""
    return (
        f"\n## As the draft of its teacher\n\nThe texts are {teacher}'s own, and come faster the more of the drafted "
        "tokens it accepts (`vllm:spec_decode_num_accepted_tokens_total` of `/metrics`).\n\n```bash\n"
        f"{drafting_command(teacher)}\n```\n"
    )


def drafting_command(teacher: str) -> str:
    """The command that serves a teacher with the student, in whose folder it is given, as its draft."""
    settings = json.dumps({"method": "draft_model", "model": ".", "num_speculative_tokens": DRAFTED})
    return f"vllm serve {shlex.quote(teacher)} --speculative-config {shlex.quote(settings)}"


def own_card(student: Student, name: str) -> str:
    """The card of the student that a folder of weights begins with."""
    from .merged_card import merged_card

    if student.base is not None:
        return merged_card(Path(student.folder), student.base, name)
    path = Path(student.folder) / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else f"# {name}\n"

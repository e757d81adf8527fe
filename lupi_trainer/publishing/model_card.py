"""The card of a trained student: its origin, its method and settings, and what its own run measured."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from ..data.wording import counted
from ..lab import LAB_PREFIX, MODELS, lab_path
from .papers import Paper


# what of a run's configuration is reported, where it has it: numbers and choices, never prompts, paths or names
SETTINGS = """
    rollout_policy gamma gamma_policy acceptance_rule accept_top_k teacher_min_prob
    student_temperature teacher_temperature temperature beta gold_alpha kd_alpha kd_temperature
    horizon head_type head_weighting head_weight_temperature max_completion_length max_length
    learning_rate lr_scheduler_type per_device_train_batch_size gradient_accumulation_steps seed
""".split()
ADAPTER_SETTINGS = ("r", "lora_alpha")  # of an adapter's own configuration
# logged figures that are reported, where the run has them
FIGURES = {
    "loss": "training loss",
    "acc_rate/mean": "drafted tokens that the teacher accepted",
    "tokens/teacher_share": "tokens that the teacher wrote",
    "eval_loss": "validation loss",
    "eval_perplexity": "validation perplexity",
    "eval_accept_length": "tokens a round, drafted by its own heads",
    "eval_closed_book_strict": "closed-book accuracy, strict",
    "eval_closed_book_lenient": "closed-book accuracy, lenient",
}
SHARES = ("acc_rate/mean", "tokens/teacher_share", "eval_closed_book_strict", "eval_closed_book_lenient")  # of 1
BASE_ROW = "base model"
SELF_TAUGHT = "the student's own base model, with the adapter switched off"
AS_IT_WAS, SERVED = "the student as it was before training", "a model on a server"
UNLINKED = SELF_TAUGHT, AS_IT_WAS, SERVED
USAGE = """```python
{imports}

name = "{name}"{comment}
model, tokenizer = {auto}.from_pretrained(name), AutoTokenizer.from_pretrained(name)
messages = [{{"role": "user", "content": "..."}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=256)[0]))
```"""


@dataclass
class ModelFacts:
    """What a card says; everything in it is known of the run, nothing is guessed.

    Args:
        name: the student's name.
        repo_id: its repository, where it is to have one.
        base_model: name of what was trained, as it was given (Hub name, path, or `lab:NAME`).
        teacher: name of the teacher, [`SELF_TAUGHT`], or `None` where there is none; `other_teachers` of some records
            alone, of which [`AS_IT_WAS`] may be one.
        dataset: name of the training records, or `None` where they came as objects.
        num_records: how many there are, where that is known.
        method: name of the method.
        papers: those that the method comes from.
        settings: what of the configuration is reported.
        steps: optimizer steps that were made, or that they are not known.
        log_history: everything that the run logged, in order.
        is_adapter: whether the student is an adapter on its base model.
        tags: tags of the repository.
    """

    name: str
    repo_id: str | None
    base_model: str | None
    teacher: str | None
    dataset: str | None
    num_records: int | None
    method: str
    papers: tuple[Paper, ...]
    settings: dict[str, Any]
    steps: int | str
    log_history: list[dict[str, float]]
    is_adapter: bool = False
    tags: list[str] = field(default_factory=list)
    other_teachers: Sequence[str] = ()


def is_hub_name(name: str) -> bool:
    """Whether a name can be a repository's on the Hub, and is no file or folder here."""
    could_be = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not name.endswith((".json", ".jsonl"))
    return could_be and not Path(name).exists()


def public_name(name: str) -> str:
    """A model's or data set's name as others may read it: of a path its last part, of a shipped model `lab:NAME`."""
    for model in MODELS:
        if name == lab_path(LAB_PREFIX + model):
            return LAB_PREFIX + model
    return name if name.startswith(LAB_PREFIX) or is_hub_name(name) else Path(name).name


def shown(name: str | None) -> str:
    """A name in Markdown: a link where it leads somewhere."""
    if name is None:
        return "not named"
    shown = public_name(name)
    if shown.startswith(LAB_PREFIX):
        return f"`{shown}` (shipped with lupi_trainer)"
    return f"[{shown}](https://huggingface.co/{shown})" if is_hub_name(name) else f"`{shown}` (local)"


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"

    head = list(head)
    return [line(head), "|" + "---|" * len(head), *map(line, rows)]


def measured(log_history: list[dict[str, float]]) -> list[tuple[str, str, str]]:
    """(what, first value, last value) of every figure of [`FIGURES`] that a run logged, each with its step."""
    rows = []
    for key, what in FIGURES.items():
        logs = [log for log in log_history if key in log]
        if logs:
            form = ".1%" if key in SHARES else ".4g"
            first, last = (f"{float(log[key]):{form}} (step {log['step']})" for log in (logs[0], logs[-1]))
            rows.append((what, first, last))
    return rows


def usage(repo_id: str | None, is_adapter: bool) -> str:
    """Python that asks the student, in a block."""
    if is_adapter:
        auto = "AutoPeftModelForCausalLM"
        imports = f"from peft import {auto}\nfrom transformers import AutoTokenizer"
    else:
        auto = "AutoModelForCausalLM"
        imports = f"from transformers import {auto}, AutoTokenizer"
    comment = "" if repo_id else "  # this folder, or its name on the Hub"
    return USAGE.format(imports=imports, name=repo_id or ".", comment=comment, auto=auto)


def adapter_line(base_model: str | None) -> str:
    return f"A LoRA adapter on {shown(base_model)}, trained with lupi_trainer."


def full_model_line(base_model: str | None) -> str:
    return f"A fine-tune of {shown(base_model)}, trained with lupi_trainer."


def render_card(facts: ModelFacts) -> str:
    """The card as Markdown with the Hub's metadata in front. No path, host or secret of the run is in it."""
    data = ModelCardData(
        base_model=facts.base_model if facts.base_model and is_hub_name(facts.base_model) else None,
        datasets=facts.dataset if facts.dataset and is_hub_name(facts.dataset) else None,
        library_name="peft" if facts.is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=sorted({*facts.tags, *(f"arxiv:{paper.id}" for paper in facts.papers)}),
    )
    records = "" if facts.num_records is None else f", {counted(facts.num_records, 'record')}"
    origin: dict[str, Any] = {BASE_ROW: shown(facts.base_model)}
    if facts.teacher:
        names = [facts.teacher, *facts.other_teachers]
        origin["teacher"] = "; ".join(name if name in UNLINKED else shown(name) for name in names)
    origin |= {"data": shown(facts.dataset) + records, "method": facts.method}
    if facts.papers:
        links = (f"[{paper.title}](https://huggingface.co/papers/{paper.id})" for paper in facts.papers)
        origin["papers"] = "; ".join(links)
    origin["optimizer steps"] = facts.steps
    figures = measured(facts.log_history)
    settings = ((f"`{key}`", value) for key, value in facts.settings.items())
    lines = ["---", data.to_yaml().strip(), "---", "", f"# {facts.name}", ""]
    lines += [adapter_line(facts.base_model) if facts.is_adapter else full_model_line(facts.base_model), ""]
    lines += [usage(facts.repo_id, facts.is_adapter), ""]
    lines += ["## Where it comes from", "", *_table(("what", "which"), origin.items()), ""]
    lines += ["## Measured in this run", ""]
    lines += [*_table(("figure", "first", "last"), figures), ""] if figures else ["Nothing was logged.", ""]
    lines += ["## Settings", "", *_table(("key", "value"), settings), ""]
    versions = ", ".join(f"{package} {version(package)}" for package in ("transformers", "trl", "peft", "torch"))
    lines += [f"Versions: {versions}.", ""]
    if facts.papers:
        lines += ["## Citation", "", "```bibtex", *(paper.bibtex for paper in facts.papers), "```", ""]
    return "\n".join(lines)


def with_base_model(path: Path, base_model: str) -> str:
    """The card in a file, with another base model in its metadata and, where [`render_card`] wrote it, in its text.

    Raises:
        ValueError: the card's metadata cannot be read; the message names the file.
    """
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: its metadata cannot be read ({' '.join(str(error).split())})") from error
    card.data["base_model"] = base_model
    row, line = _table((), [(BASE_ROW, shown(base_model))])[-1], adapter_line(base_model)
    text = re.sub(rf"(?m)^\| {BASE_ROW} \| .*$", lambda _: row, card.text)
    card.text = re.sub(r"(?m)^A LoRA adapter on .*, trained with lupi_trainer\.$", lambda _: line, text)
    return str(card)

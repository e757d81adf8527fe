"""The card of an adapter that was merged into its base model: what the adapter's own card says, of a full model."""

import json
import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from .model_card import ADAPTER_SETTINGS, BASE_ROW, ModelFacts, full_model_line, is_hub_name, render_card, shown, usage


LINE = r"(?m)^A LoRA adapter on .*, trained with lupi_trainer\.$"
USAGE = r"(?s)```python\nfrom peft import AutoPeftModelForCausalLM\n.*?```"


def merged_card(adapter: Path, base_model: str, name: str) -> str:
    """The card of a merged model, as Markdown.

    Args:
        adapter: folder of the adapter, with the card and the state of its run, where it has them.
        base_model: what the adapter was merged into, as it was given.
        name: of the merged model.

    Raises:
        ValueError: the adapter's card, or the state of its run, cannot be read; the message names the file.
    """
    path = adapter / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not re.search(LINE, text):  # of another tool, or none
        return render_card(_facts(adapter, base_model, name))
    try:
        card = ModelCard(text)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: its metadata cannot be read ({' '.join(str(error).split())})") from error
    card.data["library_name"] = "transformers"
    if is_hub_name(base_model):
        card.data["base_model"] = base_model
    merged = f"{full_model_line(base_model)} It was trained as a LoRA adapter, which is merged into the weights here."
    text = re.sub(LINE, lambda _: merged, card.text, count=1)
    text = re.sub(USAGE, lambda _: usage(None, is_adapter=False), text, count=1)
    text = re.sub(rf"(?m)^\| {BASE_ROW} \| .*$", lambda _: f"| {BASE_ROW} | {shown(base_model)} |", text, count=1)
    card.text = re.sub(r"(?m)^# .*$", lambda _: f"# {name}", text, count=1)
    return str(card)


def _facts(adapter: Path, base_model: str, name: str) -> ModelFacts:
    """What is known of an adapter without a card of this package."""
    config, state = (_read(adapter / file) for file in ("adapter_config.json", "trainer_state.json"))
    return ModelFacts(
        name=name,
        repo_id=None,
        base_model=base_model,
        teacher=None,
        dataset=None,
        num_records=None,
        method=f"{config.get('peft_type', 'LoRA')} adapter, merged into the weights",
        papers=(),
        settings={key: config[key] for key in ADAPTER_SETTINGS if key in config},
        steps=state.get("global_step", "not known"),
        log_history=state.get("log_history", []),
    )


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error

"""The runs of a sweep on disk, and their table."""

import json
from pathlib import Path
from typing import Any


SETTINGS = "sweep_settings.json"
RESULT = "kd_result.json"
COLUMNS = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "lora_r": "r",
    "lora_alpha": "lora alpha",
    "kd_alpha": "kd alpha",
    "kd_temperature": "T",
    "steps": "steps",
    "perplexity_before": "PPL before",
    "perplexity": "PPL",
    "expected_perplexity": "expected at full size",
}


def is_done(folder: Path, settings: dict[str, str]) -> bool:
    """Whether a run has its result already.

    Raises:
        ValueError: there is a run of that name with other settings; nothing is changed.
    """
    path = folder / SETTINGS
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        keys = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
        if keys:
            key = keys[0]
            raise ValueError(
                f"{folder} holds a run with other settings ({key}: {before.get(key)}, now {settings.get(key)}); "
                "choose another --output_dir, or remove it"
            )
    return path.is_file() and (folder / RESULT).is_file()


def read_results(output_dir: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Results by run, those that are there."""
    paths = {name: output_dir / name / RESULT for name in names}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


def show(value: Any) -> str:
    """A table's cell."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """The table of a sweep."""
    lines = ["| run | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, result in results.items():
        lines.append(f"| {name} | " + " | ".join(show(result.get(key)) for key in COLUMNS) + " |")
    return "\n".join(lines) + "\n"

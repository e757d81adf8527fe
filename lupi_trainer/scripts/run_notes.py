"""What a run writes down of itself for `lupi inspect`: its settings, and what it warned of."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..data.credentials import without_secrets
from ..inspection.run import NOTES
from ..training.checkpoints import write_atomically
from ..training.settings import is_set


MOST = 200  # warnings that are kept


class Collected(logging.Handler):
    """Keeps the warnings of this package, each text once, and shows those that no other handler does.

    Python's own handler of last resort writes only where a logger has no handler at all.
    """

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text in self.texts or len(self.texts) >= MOST:
            return
        self.texts[text] = None
        if os.environ.get("RANK", "0") == "0" and not self.is_shown(record):
            print(f"warning: {text}", file=sys.stderr, flush=True)  # above the bar that is shown, if any is

    def is_shown(self, record: logging.LogRecord) -> bool:
        """Whether another handler takes the record."""
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            for handler in logger.handlers:
                if handler is not self and handler.level <= record.levelno:
                    if not isinstance(handler, logging.NullHandler):
                        return True
            logger = logger.parent if logger.propagate else None
        return False


_collected = Collected()


def collect_warnings() -> None:
    """From now on, keep what this package warns of; what an earlier run of this process did is forgotten."""
    _collected.texts.clear()
    logging.getLogger("lupi_trainer").addHandler(_collected)  # which adds it once


def given_settings(*configurations: Any) -> Iterator[dict[str, Any]]:
    """Each key that is not left at its default: `name`, `value`, and `help`, what its configuration says of it."""
    for configuration in filter(is_dataclass, configurations):
        for field in fields(configuration):
            value = getattr(configuration, field.name)
            value = value.value if isinstance(value, Enum) else value
            simple = isinstance(value, (str, int, float, list, dict))
            if not simple or "token" in field.name.split("_") or not is_set(configuration, field.name):
                continue
            about = " ".join(str(field.metadata.get("help", "")).split())
            text = without_secrets(json.dumps(value, default=str))
            yield {"name": field.name, "value": json.loads(text), "help": about}


def write_notes(trainer: Any, warned: list[str], *configurations: Any) -> None:
    """Write a run's settings, and what was warned of so far, into its folder.

    Args:
        warned: what the log of the run has warned of, beside the warnings that were collected.
        configurations: dataclasses of keys, beside the trainer's own.
    """
    if not trainer.is_world_process_zero():
        return
    path = Path(trainer.args.output_dir) / NOTES
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = list(given_settings(*configurations, trainer.args))
    notes = {"settings": settings, "warnings": [*_collected.texts, *warned]}
    write_atomically(path, json.dumps(notes, indent=1, ensure_ascii=False))

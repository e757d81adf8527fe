"""The folders that `lupi prune`, `restore` and `merge` write models to."""

from pathlib import Path
from typing import Any


def check_free(folder: Path) -> None:
    """Nothing is written over.

    Raises:
        FileExistsError: the folder has something in it.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists already; nothing was written")


def copy_tokenizer(source: str, target: Path) -> None:
    """The tokenizer of one model beside another; said where there is none."""
    from transformers import AutoTokenizer

    from ..lab import resolve_model
    from ..models.loading import NO_CODE

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(resolve_model(source), **NO_CODE)
        tokenizer.save_pretrained(target)
    except (OSError, ValueError):
        print(f"{source} has no tokenizer: {target} has none either")

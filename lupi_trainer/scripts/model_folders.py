"""The folders that `lupi prune`, `restore` and `merge` write models to."""

import os
from pathlib import Path
from typing import Any


def check_free(folder: Path) -> None:
    """Nothing is written over, and a folder can be made there.

    Raises:
        FileExistsError: the folder has something in it, or a file or link has its name.
        NotADirectoryError, PermissionError: what is to hold it is a file, or cannot be written to.
    """
    if folder.is_symlink():
        raise FileExistsError(f"{folder} is a link, and a new folder is wanted; nothing was written")
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file, and a new folder is wanted; nothing was written")
    above = next((one for one in folder.absolute().parents if one.exists() or one.is_symlink()), None)
    if above is not None and not above.is_dir():
        raise NotADirectoryError(f"{above} is no folder, so that {folder} cannot be in it; nothing was written")
    if above is not None and not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{above} cannot be written to; nothing was written")
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

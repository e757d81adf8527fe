"""Whether a checkpoint is complete, by the manifest that is written last. Nothing heavy is imported here."""

import json
from pathlib import Path


MANIFEST = "checkpoint_manifest.json"


def flaw(folder: str | Path) -> str | None:
    """What a checkpoint lacks to be complete, in words; `None` if it lacks nothing."""
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}: its writing was cut off"
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    return None

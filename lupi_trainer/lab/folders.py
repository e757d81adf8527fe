"""Whether a model's name is that of a folder here, and what is said where no folder, or no model, is there.

Nothing heavy is imported here.
"""

import difflib
import re
from pathlib import Path


ADAPTER_CONFIG = "adapter_config.json"
CONFIGS = ("config.json", ADAPTER_CONFIG)
MOST = 5  # names in a message
PATIENCE = 3.0  # seconds that the Hub has to say whether it knows a name
LONGEST = 96  # characters of a name of the Hub, a letter, digit or one of these three
_HUB_NAME = re.compile(r"(?:[\w.-]+/)?[\w.-]+", re.ASCII)


def find_folder(name: str, needs_model: bool = True) -> Path | None:
    """The folder that a model's name means, or `None` for a name of the Hub.

    A name such as `runs/mine` may be both: where there is no such folder, but `runs` is one, or nearly one, the Hub is
    asked once whether it knows the name, and only for a moment.

    Args:
        name: a path, or a name of the Hub.
        needs_model: whether a model must be in the folder, or an adapter.

    Raises:
        ValueError: there is no such folder, or no model in it; the message says what is there.
    """
    if not name.strip():
        raise ValueError("the name of a model is empty")
    path = Path(name).expanduser()
    if _is_folder(path):
        if needs_model and not _holds_model(path):
            raise ValueError(no_model(name))
        return path
    if name.startswith((".", "~")) or len(name) > LONGEST or not _HUB_NAME.fullmatch(name) or path.exists():
        raise ValueError(no_folder(name))
    if "/" in name:
        has_neighbors = _is_folder(path.parent) or bool(_near(path.parent))
    else:
        has_neighbors = any(map(_holds_model, _near(path)))
    if has_neighbors and not _is_known(name):
        raise ValueError(f"{no_folder(name)} (and the Hub, asked for it, named no such model)")
    return None


def no_folder(name: str | Path, what: str = "model folder") -> str:
    """What is said where a path leads to no folder: which ones have nearly that name, or what is there instead."""
    path = Path(name).expanduser()
    if _is_file(path):
        return f"{name} is a file, and a folder is wanted"
    missing = path
    while missing.parent != missing and not _is_folder(missing.parent):
        missing = missing.parent
    rest = path.relative_to(missing)
    near = _near(missing)
    near = [folder / rest for folder in near if _is_folder(folder / rest)] or near
    if near:
        return f"no such {what}: {name}; did you mean {' or '.join(map(str, near))}?"
    others = folders_with(missing.parent)
    return f"no such {what}: {name}" + (f"; {missing.parent} has {_some(others)}" if others else "")


def no_model(name: str | Path) -> str:
    """What is said of a folder in which there is no model: in which of its folders there are some."""
    path = Path(name).expanduser()
    inside = [str(path / folder) for folder in folders_with(path)]
    elsewhere = f", but in {_some(inside)}" if inside else ""
    return f"{name} is a folder without a config.json: no model is in it{elsewhere}"


def folders_with(folder: Path, files: tuple[str, ...] = CONFIGS) -> list[str]:
    """The names of the folders in a folder that hold one of these files, checkpoints by their step."""
    names = [path.name for path in _folders(folder) if any(_is_file(path / file) for file in files)]
    return sorted(names, key=lambda name: re.sub(r"\d+", lambda digits: digits[0].zfill(12), name))


def _some(names: list[str]) -> str:
    return ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")


def _near(path: Path) -> list[Path]:
    """Folders beside a path that is none whose names are nearly its own, the nearest first."""
    names = [folder.name for folder in _folders(path.parent)]
    return [path.parent / name for name in difflib.get_close_matches(path.name, names, 3)]


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # longer than a path can be, or with what none has
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _holds_model(folder: Path) -> bool:
    return any(_is_file(folder / name) for name in CONFIGS)


def _is_known(name: str) -> bool:
    """Whether the Hub, or the cache of what was downloaded from it, has a model."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    if (Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")).is_dir():
        return True
    try:
        HfApi().model_info(name, timeout=PATIENCE)
    except Exception:  # there is none, it may not be seen, or the network has failed
        return False
    return True

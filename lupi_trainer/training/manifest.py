"""Whether a checkpoint is complete, by the manifest that is written last. Nothing heavy is imported here."""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


MANIFEST = "checkpoint_manifest.json"
_CHUNK = 1 << 22  # bytes


def checksum(path: Path) -> str:
    """CRC-32 of a file, in hexadecimal."""
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def checksums(paths: list[Path]) -> list[str]:
    """[`checksum`] of each, several at a time: the lock of the interpreter is free meanwhile."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(checksum, paths))


def flaw(folder: str | Path, content: bool = False) -> str | None:
    """What a checkpoint lacks to be complete, in words; `None` if it lacks nothing.

    Args:
        folder: of the checkpoint.
        content: read all files, too, and compare their checksums (manifests of earlier versions have none).
    """
    folder = Path(folder)
    if not folder.is_dir():
        return "it is a file, and no folder" if folder.exists() else "there is no such folder"
    try:
        return _flaw(folder, content)
    except FileNotFoundError:
        return f"it has no {MANIFEST}: its writing was cut off"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"its {MANIFEST} cannot be read"
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"


def _flaw(folder: Path, content: bool) -> str | None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    files, sums = manifest["files"], manifest.get("crc32", {})
    if not files or any(type(size) is not int or not name.isprintable() for name, size in files.items()):
        raise ValueError
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is a folder, and no file" if path.is_dir() else f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    if content:
        names = [name for name in files if name in sums]
        for name, found in zip(names, checksums([folder / name for name in names])):
            if found != sums[name]:
                return f"{name} is damaged: it has other bytes than were written"
    return None

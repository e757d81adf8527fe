"""The documents of a folder: found, read, and, where that cannot be, named with the reason."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..data.files import DOCUMENTS
from .convert import SUFFIXES, Unreadable, convert


MOST_BYTES = 20_000_000
_HANGUL = ("\uac00", "\ud7a3")


@dataclass(frozen=True)
class Document:
    """A document that was read.

    Attributes:
        name: its path below the folder, with slashes.
        text: all of it, as Markdown.
    """

    name: str
    text: str

    @property
    def language(self) -> str:
        """`ko` if a third of its letters are Hangul, else `en`: in what the teacher is asked about it."""
        letters = [c for c in self.text if c.isalpha()]
        return "ko" if 3 * sum(_HANGUL[0] <= c <= _HANGUL[1] for c in letters) > len(letters) else "en"


@dataclass(frozen=True)
class LeftOut:
    """A file that is not read, and why."""

    name: str
    why: str


def read_folder(folder: Path, output: Path | None = None, most_bytes: int = MOST_BYTES) -> list[Document | LeftOut]:
    """Every document below a folder, in the order of their names. Hidden files are passed over.

    Args:
        folder: nothing outside of it is read, wherever links in it lead.
        output: a folder that may lie in it and is not read.
        most_bytes: a larger file is left out.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is a file, or has no document that can be read (the message says why of each).
    """
    if not folder.exists():
        raise FileNotFoundError(f"no such folder: {folder}")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: name the folder that it lies in")
    root, own = folder.resolve(), output.resolve() if output is not None else None
    found: list[Document | LeftOut] = []
    for path in _walk(folder, own):
        name = path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode()
        try:
            text = _read(path, root, most_bytes)
        except Unreadable as error:
            found.append(LeftOut(name, str(error)))
        else:
            found.append(Document(name, text))
    if not any(isinstance(one, Document) for one in found):
        why = "".join(f"\n  {one.name}: {one.why}" for one in found if isinstance(one, LeftOut))
        raise ValueError(f"{folder}: no document in it can be read ({', '.join(SUFFIXES)} are){why}")
    return found


def _walk(folder: Path, own: Path | None) -> Iterator[Path]:
    """Files and links below a folder; linked folders are not entered."""
    paths = []
    for above, folders, files in os.walk(folder, followlinks=False):
        here = Path(above)
        linked = [name for name in folders if (here / name).is_symlink()]
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name not in linked and (here / name).resolve() != own
        ]
        paths += [here / name for name in (*files, *linked) if not name.startswith((".", "~$"))]
    return iter(sorted(paths, key=lambda path: path.relative_to(folder).as_posix()))


def _read(path: Path, root: Path, most_bytes: int) -> str:
    if any("\ud800" <= c <= "\udfff" for c in str(path)):
        raise Unreadable("its name is not UTF-8")
    if path.is_symlink():
        _refuse_link(path, root)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise Unreadable("it is no regular file")
    if suffix not in SUFFIXES:
        how = ": save it as .docx, .pdf or .md" if suffix in DOCUMENTS else ""
        raise Unreadable(f"{suffix or 'a file without an ending'} is not read{how}")
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise Unreadable(f"it has {size / 1e6:,.1f} MB, more than --max_megabytes {most_bytes / 1e6:g}")
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"it cannot be opened ({error.strerror or error})") from error
    if not data.strip():
        raise Unreadable("it is empty")
    return convert(data, suffix)


def _refuse_link(path: Path, root: Path) -> None:
    """Raises Unreadable: every link is left out, since what it leads to is read by its own name, or not at all."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise Unreadable("a link that leads nowhere") from None
    if target.is_relative_to(root):
        raise Unreadable(
            f"a link to {target.relative_to(root).as_posix() or 'the folder itself'}, which is read itself"
        )
    raise Unreadable("a link out of the folder, where nothing is read")

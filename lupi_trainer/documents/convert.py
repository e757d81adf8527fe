"""One document's bytes to Markdown. Formats other than text are read by the package `markitdown`, in memory.

Nothing is fetched: neither links nor pictures of a document are followed, and no file name resolves them.
"""

import codecs
import importlib
import io
import re
import unicodedata
import zipfile
from typing import Any


TEXTS = (".md", ".markdown", ".txt")
PAGES = (".html", ".htm")
CONVERTERS = {".pdf": "PdfConverter", ".docx": "DocxConverter", ".html": "HtmlConverter", ".htm": "HtmlConverter"}
SUFFIXES = (*TEXTS, *CONVERTERS)
_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_DECLARED = re.compile(rb"""<meta[^>]*charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_PICTURE = re.compile(r"!\[([^\]\n]*)\]\([^)\n]*\)")
_INFLATED = 20  # times its own size that an archive may unpack to
_OLE = b"\xd0\xcf\x11\xe0"


class Unreadable(ValueError):
    """A document that cannot be read, and why, in words that follow its name."""


def convert(data: bytes, suffix: str) -> str:
    """The text of a document as Markdown, without control characters, its lines ended by line feeds.

    Args:
        data: the file.
        suffix: one of `SUFFIXES`.

    Raises:
        Unreadable: it cannot be read, or has no text.
        ModuleNotFoundError: the extra `documents` is not installed, and the format needs it.
    """
    if suffix in TEXTS or suffix in PAGES:
        text = decode(data, suffix)
        data = text.encode()
    if suffix == ".docx":
        _check_archive(data)
    if suffix in CONVERTERS:
        text = _by_library(data, suffix)
    text = clean(text)
    if not text.strip():
        scan = ": pictures of text are not read; run a text recognition on it" if suffix == ".pdf" else ""
        raise Unreadable(f"there is no text in it{scan}")
    return text


def decode(data: bytes, suffix: str) -> str:
    """Bytes to text: as its byte order mark or, of a page, its `charset` says, else UTF-8.

    Raises:
        Unreadable: it is in another encoding, or none.
    """
    encoding, start = next(((name, len(mark)) for mark, name in _BOMS.items() if data.startswith(mark)), ("utf-8", 0))
    declared = _DECLARED.search(data[:2048]) if suffix in PAGES and not start else None
    if declared is not None:
        encoding = declared[1].decode("ascii")
    try:
        text = data[start:].decode(encoding)
    except LookupError:
        raise Unreadable(f"it declares an encoding that is not known: {encoding!r}") from None
    except UnicodeDecodeError as error:
        where = f"byte {error.start + start} is {data[error.start + start]:#04x}"
        raise Unreadable(f"it is not {encoding.upper()} ({where}): save it as UTF-8") from None
    if "\0" in text:
        raise Unreadable("it holds zero bytes: it is no text, or one of another encoding; save it as UTF-8")
    return text


def clean(text: str) -> str:
    """NFC, line feeds, no control or invisible characters; a page break is a blank line, or nothing in a sentence."""
    text = re.sub(r"\r\n?|\u2028|\x0b|\x85", "\n", text).replace("\u2029", "\n\n")
    text = re.sub(r"[ \t]*\n\s*\f\s*|\s*\f\s*", _page_break, text)
    text = unicodedata.normalize("NFC", text)
    kept = (c for c in text if c in "\n\t\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))
    return re.sub(r"[ \t]+(?=\n|\Z)", "", "".join(kept))


def _page_break(found: re.Match) -> str:
    before, after = found.string[: found.start()].rstrip()[-1:], found.string[found.end() :][:1]
    return "\n" if before and before not in '.!?:;\u2026"\u201d)' and after.islower() else "\n\n"


def _check_archive(data: bytes) -> None:
    if data.startswith(_OLE):
        raise Unreadable("it is protected by a password, or an old .doc: save it as a .docx without one")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            names = set(archive.namelist())
    except zipfile.BadZipFile:
        raise Unreadable("it is no .docx, or a part of one") from None
    if unpacked > max(_INFLATED * len(data), 50_000_000):
        raise Unreadable(f"it would unpack from {len(data):,} to {unpacked:,} bytes")
    if "word/document.xml" not in names:
        raise Unreadable("it is no .docx: there is no word/document.xml in it")


def _by_library(data: bytes, suffix: str) -> str:
    try:
        library: Any = importlib.import_module("markitdown")
        converters: Any = importlib.import_module("markitdown.converters")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{suffix} documents are read by the package {error.name}: pip install 'lupi-trainer[documents]'"
        ) from error
    info = library.StreamInfo(extension=suffix, charset="utf-8")
    try:
        text = getattr(converters, CONVERTERS[suffix])().convert(io.BytesIO(data), info).markdown or ""
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except Exception as error:  # whatever a broken file does to its parser
        if re.search("password|encrypt", f"{type(error).__name__} {error!r}", re.IGNORECASE):
            raise Unreadable("it is protected by a password: save it without one") from error
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise Unreadable(f"it cannot be read as {suffix} ({what})") from error
    return _PICTURE.sub(r"\1", text)

"""Files of records: JSON, and what is said of a file that is something else."""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any


RECORD_FILES = (".json", ".jsonl")
# What people point at in place of records; the Hub has no data set with such an ending.
DOCUMENTS = tuple(".md .markdown .rst .txt .html .htm .pdf .doc .docx .odt .rtf .epub .pptx .tex".split())
OTHER_FILES = (*DOCUMENTS, *".csv .tsv .xls .xlsx .parquet .arrow .yaml .yml .xml .zip .gz".split())

_HALF = re.compile("[\ud800-\udfff]")  # of a character: a lone UTF-16 surrogate


def is_data_file(text: str) -> bool:
    """Whether a text is the path of a file: there is one, or it ends like one and has no space in it."""
    try:
        if find_data(text).exists():
            return True
    except (OSError, ValueError):  # too long for a path, or what none holds
        return False
    return text.lower().endswith((*RECORD_FILES, *OTHER_FILES)) and not any(map(str.isspace, text))


def not_records(path: str | Path) -> str:
    """Why a file of text, a table or a folder is none of records, and what is wanted."""
    kind = "a folder" if Path(path).is_dir() else "a file of another kind"
    return (
        f"{path} is {kind}, and records are wanted: a .json file (a list of objects) or a .jsonl file (an object a "
        "line); `lupi new FOLDER` writes examples of their form"
    )


def names_records(source: str) -> bool:
    """Whether a data set's name is that of a file of records here; else it is one of the Hub's, or a folder of tables.

    Raises:
        ValueError: it is a file of another kind, or a folder of documents.
    """
    path = Path(source)
    if source.endswith(RECORD_FILES):
        return True
    documents = path.is_dir() and all(p.suffix.lower() in DOCUMENTS for p in path.rglob("*") if p.is_file())
    if documents or path.is_file() or source.lower().endswith(OTHER_FILES):
        raise ValueError(not_records(source))
    return False


def find_data(path: str | Path) -> Path:
    """The user's own file, else the one that travels with the package, if `path` is that of one, from `data/` on."""
    own, package = Path(path), Path(__file__).parents[1]
    if own.exists() or own.parts[:1] != ("data",) or ".." in own.parts:
        return own
    folder = package / "shipped" if (package / "shipped").is_dir() else package.parent / "data"  # beside a checkout
    shipped = folder.joinpath(*own.parts[1:])
    return shipped if shipped.is_file() else own


def read_json(path: str | Path) -> Any:
    """What a `.json` file holds, or a list of what the lines of a `.jsonl` file hold; also `data/NAME` of the package.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8 or not JSON; the message names the file and the line.
    """
    path = find_data(path)
    if path.suffix.lower() in OTHER_FILES or path.is_dir():
        raise ValueError(not_records(path))
    if not path.is_file():
        raise FileNotFoundError(f"no such data file: {path}")
    where = str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".jsonl":
            return json.loads(text)
        records = []
        for number, line in enumerate(text.split("\n"), 1):  # a text may hold other ends of lines
            if line.strip():
                where = f"{path}, line {number}"
                records.append(json.loads(line))
        return records
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error})") from error
    except ValueError as error:
        lines = path.suffix == ".json" and "Extra data: line 2" in str(error)
        hint = "; a file with an object a line is called .jsonl" if lines else ""
        raise ValueError(f"{where}: not valid JSON ({error}){hint}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: nested too deeply to be records") from error


def check_objects(records: Any, path: str | Path) -> list[dict[str, Any]]:
    """The records of a file, if they are a list of objects whose texts are complete.

    Raises:
        ValueError: they are not; the message names the file and the record.
    """
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a list of records, found {type(records).__name__}")
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise ValueError(f"{path}, record {number}: expected an object, found {type(record).__name__}")
        if _has_half_characters(record):
            raise ValueError(f"{path}, record {number}: a text with half a character (a lone UTF-16 surrogate)")
    return records


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Read a `.json` file (a list of objects) or a `.jsonl` file (an object a line); `data/NAME` of the package, too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not of that form; the message names the file and the line or record.
    """
    return check_objects(read_json(path), path)


def _has_half_characters(value: Any) -> bool:
    if isinstance(value, str):
        return _HALF.search(value) is not None
    if isinstance(value, dict):
        return any(map(_has_half_characters, value)) or any(map(_has_half_characters, value.values()))
    return isinstance(value, list) and any(map(_has_half_characters, value))


_UMASK = os.umask(0o077)
os.umask(_UMASK)  # it cannot be read without being set


def write_atomically(path: Path, text: str | bytes) -> None:
    """Write a file so that it is there with all of its text (UTF-8), or not at all.

    Two that write it at the same time leave the text of one of them. What a link leads to is written, and what is no
    file (`/dev/stdout`) is written to, and never replaced.
    """
    content = text.encode("utf-8") if isinstance(text, str) else text
    if (path.exists() and not path.is_file()) or path.parent == Path("/dev"):
        path.write_bytes(content)
        return
    path = path.resolve()
    number, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    try:
        with open(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_UMASK)  # a temporary file is its owner's alone
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

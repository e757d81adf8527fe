"""The files of a folder that was made: each written as a whole or not at all, `make.json` last."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ..data.files import find_data
from ..training.checkpoints import write_atomically
from .coverage import by_document, count


RECORDS, PROBES, UNSEEN, NEVER = "records.jsonl", "probes.jsonl", "probes_unseen.jsonl", "probes_never.jsonl"
CHUNKS, MAKE, RECIPE = "chunks.jsonl", "make.json", "recipe.yaml"
SEAL = "# written by `lupi data make`, which leaves a recipe that was changed as it is: "


def read_make(folder: Path) -> dict[str, Any]:
    """What `make.json` in a folder holds.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read.
    """
    path = folder / MAKE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {MAKE}: it was not made by `lupi data make`, or not to the end")
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        return made if isinstance(made["counts"], dict) else {}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what `lupi data make` wrote ({error!r})") from error


def check_output(folder: Path, documents: Path) -> None:
    """Refuse a folder with records that were not made here.

    Raises:
        ValueError: it has some, it is a file, or the folder of the documents itself.
    """
    if folder.resolve() == documents.resolve():
        raise ValueError(f"{folder} is the folder of the documents: have the output elsewhere, or in one below it")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder} is a file: name a folder")
    for name in (RECORDS, PROBES, UNSEEN, NEVER):
        if (folder / name).exists() and not (folder / CHUNKS).exists():
            raise ValueError(f"--output {folder} has a {name} that was not made from documents; name another folder")


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def general_questions(languages: list[str]) -> dict[str, str]:
    """Name to text of the general questions in each language, by which it is seen what a student forgets."""
    names = [f"general_{language}.json" for language in languages]
    return {name: find_data(f"data/{name}").read_text(encoding="utf-8") for name in names}


def write(
    folder: Path, rows: list[dict[str, Any]], data: dict[str, list[dict[str, Any]]], texts: dict[str, str], about: dict
) -> dict[str, Any]:
    """Write what was made; returns its counts.

    Args:
        folder: exists.
        rows: of [`chunk_rows`].
        data: file name to its records or probes.
        texts: file name to text, of other files. A recipe that was changed since it was written is left as it is.
        about: settings and versions.
    """
    # first, so that what follows is known to have been made here
    write_atomically(folder / CHUNKS, lines(rows))
    for name, content in data.items():
        write_atomically(folder / name, lines(content))
    for name, text in texts.items():
        if name != RECIPE or not recipe_is_changed(folder):
            write_atomically(folder / name, text)
    counts = {
        "documents": len({row["file"] for row in rows if "facts" in row}),
        "left_out": sum("facts" not in row for row in rows),
        **count(rows),
        **{name.removesuffix(".jsonl"): len(content) for name, content in data.items()},
    }
    made = {**about, "counts": counts, "by_document": by_document(rows)}
    write_atomically(folder / MAKE, json.dumps(made, ensure_ascii=False, indent=1) + "\n")
    return counts


def seal(recipe: str) -> str:
    """A recipe with a last line by which it is seen whether it was changed since."""
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    return f"{recipe}\n{SEAL}{digest}\n"


def recipe_is_changed(folder: Path) -> bool:
    """Whether there is a recipe in a folder that was changed since it was written, or never was written here."""
    path = folder / RECIPE
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    return seal(text.rpartition(f"\n{SEAL}")[0]) != text

"""What the teacher is asked, in the language of a document: files of the package, which a folder may replace."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.prompts import Messages, TeacherPrompt
from .chunks import Chunk
from .facts import MOST_LETTERS


LANGUAGES = ("en", "ko")
# file -> what must stand in it once
SLOTS = {
    "write.txt": ("{document}", "{count}", "{passage}"),  # asks for questions
    "fill.txt": ("{passage}",),  # has a model fill in questions that writes no JSON
    "read.txt": (),  # the persona that answers open-book, in training too
    "absent.txt": ("{passage}", "{question}"),  # asks whether a question is answered
    "no.txt": (),  # a line each: what says that it is not
    "unknown.txt": (),  # a line each: accepted answers to what is in no document
}
_TEXT = {"type": "string", "minLength": 1, "maxLength": 200}  # lest a small model goes on and on
_FACT = {
    "type": "object",
    "properties": {
        "question": _TEXT,
        "phrasings": {"type": "array", "items": _TEXT, "minItems": 2, "maxItems": 2},
        "answer": _TEXT | {"maxLength": MOST_LETTERS},
    },
    "required": ["question", "phrasings", "answer"],
    "additionalProperties": False,
}


def schema(count: int) -> dict[str, Any]:
    """The JSON schema of a reply to `write.txt`, for servers with guided decoding."""
    facts = {"type": "array", "items": _FACT, "maxItems": count}
    unanswered = {"type": "array", "items": _TEXT, "maxItems": 1}
    known = {"facts": facts, "unanswered": unanswered}
    return {"type": "object", "properties": known, "required": list(known), "additionalProperties": False}


@dataclass(frozen=True)
class Prompts:
    """The texts of one language."""

    texts: dict[str, str]

    def write(self, chunk: Chunk, count: int) -> Messages:
        values = {"{document}": chunk.file, "{count}": str(count), "{passage}": chunk.knowledge}
        return [{"role": "user", "content": fill(self.texts["write.txt"], values)}]

    def fill_in(self, chunk: Chunk) -> Messages:
        return [{"role": "user", "content": fill(self.texts["fill.txt"], {"{passage}": chunk.knowledge})}]

    @property
    def persona(self) -> str:
        return self.texts["read.txt"]

    def read(self, chunk: Chunk, question: str) -> Messages:
        """As the teacher of a training reads it."""
        return TeacherPrompt(self.persona).messages([{"role": "user", "content": question}], chunk.knowledge)

    def absent(self, chunk: Chunk, question: str) -> Messages:
        values = {"{passage}": chunk.knowledge, "{question}": question}
        return [{"role": "user", "content": fill(self.texts["absent.txt"], values)}]

    def lines(self, name: str) -> list[str]:
        return [line.strip() for line in self.texts[name].splitlines() if line.strip()]


def fill(template: str, values: dict[str, str]) -> str:
    """A template with each slot replaced once; a value may spell out a slot itself, or have braces of its own."""
    places = sorted((template.index(slot), slot) for slot in values)
    parts, at = [], 0
    for place, slot in places:
        parts += [template[at:place], values[slot]]
        at = place + len(slot)
    return "".join([*parts, template[at:]])


def load_prompts(folder: Path | None = None) -> dict[str, Prompts]:
    """Language to prompts: those of the package, or of `folder/LANGUAGE/NAME.txt` where there is such a file.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has a file of another name, or one that lacks a slot, is empty, or is not UTF-8.
    """
    own = Path(__file__).parent / "prompts"
    if folder is not None:
        _check_folder(folder)
    found = {}
    for language in LANGUAGES:
        texts = {}
        for name, slots in SLOTS.items():
            path = own / language / name
            if folder is not None and (folder / language / name).is_file():
                path = folder / language / name
            texts[name] = _load(path, slots)
        found[language] = Prompts(texts)
    return found


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"--prompts: no such folder: {folder}")
    known = {f"{language}/{name}" for language in LANGUAGES for name in SLOTS}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if unknown := sorted(files - known):
        raise ValueError(f"--prompts {folder}: {unknown[0]} is no prompt; there are {', '.join(sorted(known))}")
    if not files:
        raise ValueError(f"--prompts {folder}: none of {', '.join(sorted(known))} is in it")


def _load(path: Path, slots: tuple[str, ...]) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error})") from error
    for slot in slots:
        if text.count(slot) != 1:
            raise ValueError(f"{path}: {slot} must stand in it exactly once, is there {text.count(slot)} times")
    if not text:
        raise ValueError(f"{path} is empty")
    return text

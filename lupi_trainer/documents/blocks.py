"""Markdown to sections, and sections to parts that are never cut: sentences, rows of a table, lines of code."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..data.sentences import first_sentence


Span = tuple[int, int]  # offsets into a document's text: start, end
_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?[ \t]*#*[ \t]*\Z")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*\Z")
_LOOKS = 100  # more letters than are looked at behind a sentence to see whether it ends
_RULE = re.compile(r" {0,3}(?:(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})\Z")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_ROW = re.compile(r"[ \t]*\|")
_ITEM = re.compile(r"[ \t]*(?:[-*+\u2022]|\d{1,3}[.)])[ \t]+\S")
_FRONT = re.compile(r"---\n.*?\n---[ \t]*(?:\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Section:
    """What stands below one heading, up to the next.

    Attributes:
        headings: those that it stands under, the highest first.
        blocks: its paragraphs, list items, tables and code, each as the spans that may not be cut.
    """

    headings: tuple[str, ...]
    blocks: list[list[Span]]


def sections(text: str) -> list[Section]:
    """The sections of a Markdown text that have text of their own, in order. YAML before it is passed over."""
    front = _FRONT.match(text)
    path: list[tuple[int, str]] = []  # (level, title)
    found = [Section((), [])]
    for kind, start, end in _blocks(text, front.end() if front else 0):
        if not kind.isdigit():
            found[-1].blocks.append(_parts(text, kind, start, end))
            continue
        level = int(kind)
        path = [entry for entry in path if entry[0] < level] + [(level, _title(text[start:end]))]
        found.append(Section(tuple(title for _, title in path if title), []))
    return [section for section in found if section.blocks]


def _title(line: str) -> str:
    heading = _HEADING.match(line.split("\n")[0])
    title = heading[2] or "" if heading else line.rsplit("\n", 1)[0]
    return " ".join(re.sub(r"[*_`]{1,3}(\S.*?\S|\S)[*_`]{1,3}", r"\1", title).split())


def _kind(line: str) -> str:
    if not line.strip() or _RULE.match(line):
        return "blank"
    if (heading := _HEADING.match(line)) is not None:
        return str(len(heading[1]))
    kinds = {"code": _FENCE, "under": _UNDERLINE, "table": _ROW, "item": _ITEM}
    return next((kind for kind, pattern in kinds.items() if pattern.match(line)), "prose")


def _blocks(text: str, start: int) -> Iterator[tuple[str, int, int]]:
    """(kind, start, end) of every block: the level of a heading, `code`, `table` or `prose`."""
    kind, begin, end, fence = "", 0, 0, ""  # of the block that may go on, none if `kind` is empty
    for found in re.compile(r"[^\n]*(?:\n|\Z)").finditer(text, start):
        a, b = found.start(), found.start() + len(found[0].rstrip("\n"))
        line, here = text[a:b], _kind(text[a:b])
        if fence:
            end = b
            if line.strip().startswith(fence):
                yield kind, begin, end
                kind = fence = ""
            continue
        if here == "under" and kind == "prose" and "\n" not in text[begin:end]:
            yield ("1" if "=" in line else "2"), begin, b
            kind = ""
            continue
        if kind and here == kind != "code":
            end = b
            continue
        if kind:
            yield kind, begin, end
            kind = ""
        if here.isdigit():
            yield here, a, b
        elif here not in ("blank", "under"):
            kind, begin, end = ("prose" if here == "item" else here), a, b
            fence = found[1] if (found := _FENCE.match(line)) and here == "code" else ""
    if kind:
        yield kind, begin, end


def _parts(text: str, kind: str, start: int, end: int) -> list[Span]:
    block = text[start:end]
    if kind != "prose":
        return [(start + line.start(), start + line.end()) for line in re.finditer(r"[^\n]+", block)]
    block = block.replace("\n", " ")  # a line that is wrapped ends no sentence
    found, at = [], 0
    while (word := re.compile(r"\S").search(block, at)) is not None:
        at = _sentence_end(block, word.start())
        found.append((start + word.start(), start + at))
    return found


def _sentence_end(block: str, start: int) -> int:
    width = 500
    while True:  # in a window, since a paragraph may be long
        window = block[start : start + width]
        length = len(first_sentence(window))
        if length + _LOOKS < len(window) or start + width >= len(block):
            return start + length
        width *= 4

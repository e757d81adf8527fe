"""Docstrings as Markdown, for the site: sections and entries of both dialects here (Google's and Transformers')."""

import functools
import importlib
import inspect
import re
import textwrap

import griffe


SECTION = re.compile(r"^(Args|Parameters|Attributes|Returns|Raises|Example|Examples):[ \t]*(.*)$")
ENTRY = re.compile(r"^(?!> )([^\s:][^:]*?)(?: \((.*)\))?:(?: +(.*))?$")
REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\](?![\[(])")
WRITTEN_AT_IMPORT = ("LUPISKDConfig",)  # its docstring has the keys of its parents, too
PUBLIC = ("lupi_trainer", "lupi_trainer.speculative", "lupi_trainer.losses")


@functools.cache
def addresses() -> dict[str, str]:
    """Public name -> where the site documents it."""
    found: dict[str, str] = {}
    for module in PUBLIC:
        for name in importlib.import_module(module).__all__:
            found.setdefault(name, f"{module}.{name}")
    return found


def linked(text: str) -> str:
    """[`~lupi_trainer.TopK`] as a link to its place on the site; a name from elsewhere as code."""

    def link(match: re.Match) -> str:
        name = match[2].split(".")[-1]
        shown = f"`{name}`" if match[1] else f"`{match[2]}`"
        ours = match[2] == name or match[2].startswith("lupi_trainer")
        return f"[{shown}][{addresses()[name]}]" if ours and name in addresses() else shown

    return REFERENCE.sub(link, text)


def paragraphs(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines)).strip("\n")


def entries(body: str) -> str:
    """`name (type): text` with deeper lines below it, as a list."""
    out: list[str] = []
    lines = body.split("\n")
    while lines:
        line = lines.pop(0)
        if line.startswith("> "):
            out += [
                "",
                f"**{line[2:].removeprefix('Parameters that ').removeprefix('control ').strip().capitalize()}**",
                "",
            ]
            continue
        while line.rstrip().endswith(",") and lines and not ENTRY.match(line):
            line = f"{line} {lines.pop(0).strip()}"
        entry = ENTRY.match(line)
        if entry is None:
            out.append(line)
            continue
        deeper = []
        while lines and (not lines[0].strip() or lines[0].startswith(" ")):
            deeper.append(lines.pop(0))
        text = "\n".join(filter(None, [entry[3], paragraphs(deeper)]))
        names = ", ".join(name if "`" in name else f"`{name.strip()}`" for name in re.split(r", ", entry[1]))
        kind = f" ({entry[2]})" if entry[2] else ""
        out += [f"- {names}{kind}: " + textwrap.indent(text, "    ").strip()]
    return "\n".join(out)


def note(text: str) -> str:
    """GitHub's `> [!NOTE]` as an admonition."""

    def box(match: re.Match) -> str:
        return "!!! note\n\n" + textwrap.indent(re.sub(r"^> ?", "", match[1], flags=re.M), "    ")

    return re.sub(r"^> \[!NOTE\]\n((?:>.*(?:\n|$))+)", box, text, flags=re.M)


def as_markdown(docstring: str) -> str:
    """A docstring, cleaned of its indentation, as Markdown."""
    out: list[str] = []
    lines = inspect.cleandoc(docstring).split("\n")
    while lines:
        line = lines.pop(0)
        section = SECTION.match(line)
        if section is None:
            out.append(line)
            continue
        body = [section[2]] if section[2] else []
        while lines and (not lines[0].strip() or lines[0].startswith(" ")):
            body.append(lines.pop(0))
        text = paragraphs(body)
        listed = section[1] not in ("Returns", "Example", "Examples")
        out += ["", f"**{section[1]}**", "", entries(text) if listed else text, ""]
    return linked(note("\n".join(out)))


class Docstrings(griffe.Extension):
    """Rewrites what was read; nothing else parses it (`docstring_style: null`)."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is None:
            return
        text = obj.docstring.value
        if obj.name in WRITTEN_AT_IMPORT and obj.is_class:
            text = getattr(importlib.import_module("lupi_trainer"), obj.name).__doc__
        obj.docstring.value = as_markdown(text)

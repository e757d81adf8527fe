"""One HTML page: every chunk, and its questions beside it. It has no script, and asks no network."""

import html
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..inspection.page import policy
from ..training.checkpoints import write_atomically
from .coverage import by_document, count
from .verdicts import REASONS


def tag(name: str, *inside: str, **attributes: str) -> str:
    """An element; `inside` is HTML already, attributes are texts."""
    given = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    return f"<{name}{given}>{''.join(inside)}</{name}>"


def _table(rows: list[dict[str, Any]]) -> str:
    everything = {**by_document(rows), "all": count(rows)}
    columns = ["chunks", "empty", "faults", "facts", "questions", *REASONS]
    used = [column for column in columns if everything["all"][column] or column in columns[:6]]
    titles = {name: REASONS[name] for name in used if name in REASONS}
    head = [tag("th", "document"), *(tag("th", name, title=titles.get(name, "")) for name in used)]
    lines = [
        tag("tr", tag("td", html.escape(name)), *(tag("td", str(counts[column])) for column in used))
        for name, counts in everything.items()
    ]
    return tag("table", tag("tr", *head), *lines)


def _fact(fact: dict[str, Any]) -> str:
    said = REASONS[fact["reason"]] + (f": {fact['detail']}" if fact["detail"] else "")
    texts = fact["asked"] or [fact["question"], *fact["phrasings"]]
    mark = fact["reason"] + (", known" if fact["known"] and fact["reason"] == "kept" else "")
    inside = [tag("b", html.escape(mark), title=said), *(tag("div", html.escape(text)) for text in texts)]
    inside.append(tag("div", html.escape(fact["answer"]), class_="answer"))
    if fact["detail"]:
        inside.append(tag("div", html.escape(fact["detail"]), class_="detail"))
    return tag("li", *inside, class_="kept" if fact["reason"] == "kept" else "rejected")


def _chunk(row: dict[str, Any]) -> str:
    title = row["file"] + (f": {row['heading']}" if row.get("heading") else "")
    if "facts" not in row:
        return tag("section", tag("h2", html.escape(title)), tag("p", html.escape(row["fault"]), class_="fault"))
    place = f"{row['start']} to {row['end']}, {row['tokens']} tokens, {row['hash']}"
    fault = [tag("p", html.escape(row["fault"]), class_="fault")] if row["fault"] else []
    facts = tag("ul", *map(_fact, row["facts"])) if row["facts"] else tag("p", "no questions")
    text = tag("div", html.escape(row["text"]), class_="text")
    head = tag("h2", html.escape(title), " ", tag("small", html.escape(place)))
    return tag("section", head, tag("div", text, tag("div", *fault, facts), class_="columns"))


def write_page(rows: list[dict[str, Any]], name: str, output: Path) -> Path:
    """Write the page.

    Args:
        rows: of [`chunk_rows`].
        name: of the folder, for the title.
        output: the HTML file.
    """
    empty = [row for row in rows if "facts" in row and not any(f["reason"] == "kept" for f in row["facts"])]
    named = [f"{row['file']}, {row['heading'] or 'no heading'} ({row['start']} to {row['end']})" for row in empty]
    assets = files("lupi_trainer.documents") / "assets"
    page, style = ((assets / file).read_text(encoding="utf-8") for file in ("page.html", "page.css"))
    parts = {
        "title": html.escape(name),
        "policy": policy(("style", style)),
        "style": style,
        "table": _table(rows),
        "empty": tag("ul", *(tag("li", html.escape(text)) for text in named)) if named else tag("p", "none"),
        "chunks": "\n".join(map(_chunk, rows)),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], page))
    return output

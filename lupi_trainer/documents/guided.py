"""JSON of a fixed form from any model: what is the same in every such text is given, and the model writes the rest.

A small model that does not come to write JSON of its own fills in the texts one after the other, each of which ends
with a quotation mark or a line.
"""

import json
from collections.abc import Callable
from typing import Any


MOST_TOKENS = 48  # of one text
Write = Callable[[str], str]  # from the reply so far to the text that follows, up to its end


def form(schema: dict[str, Any]) -> list[str]:
    """What stands between the texts of the longest JSON of a schema of objects, lists and texts, in order.

    Raises:
        ValueError: the schema has something else in it, or a list without a bound.
    """
    parts = [""]

    def add(part: dict[str, Any]) -> None:
        if part.get("type") == "string":
            parts[-1] += '"'
            parts.append('"')
        elif part.get("type") == "object":
            for number, (key, inside) in enumerate(part["properties"].items()):
                parts[-1] += (", " if number else "{") + json.dumps(key) + ": "
                add(inside)
            parts[-1] += "}"
        elif part.get("type") == "array" and "maxItems" in part:
            parts[-1] += "["
            for number in range(part["maxItems"]):
                parts[-1] += ", " if number else ""
                add(part["items"])
            parts[-1] += "]"
        else:
            raise ValueError(f"no form can be made of {part!r}")

    add(schema)
    return parts


def fill_in(schema: dict[str, Any], write: Write) -> str:
    """JSON of a schema, every text of which is written by `write`."""
    first, *others = form(schema)
    reply = first
    for part in others:
        text = write(reply)
        reply += json.dumps(end_of(text), ensure_ascii=False)[1:-1] + part
    return reply


def ends(text: str) -> bool:
    return any(mark in text for mark in '"\n\\')


def end_of(text: str) -> str:
    """A text up to its end, without spaces around it."""
    return next((text[:n] for n, c in enumerate(text) if ends(c)), text).strip()

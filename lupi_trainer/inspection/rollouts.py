"""`rollouts.jsonl`, read a line at a time: of a run with many, only those that are looked at are in memory."""

from __future__ import annotations

import codecs
import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .plain import oddity


MOST = 2**53  # of whole numbers, more than a browser counts
_STEP = re.compile(rb'\{\s*"step"\s*:\s*(\d{1,15})[\s,}]')
_MARKS = [(getattr(codecs, f"BOM_UTF{bits}_{order}"), f"UTF-{bits}") for bits in (32, 16) for order in ("LE", "BE")]
_SHARES = "student_probability teacher_probability draft_student_probability draft_teacher_probability".split()
# one entry a token, of these types
_LISTS: dict[str, tuple[type, ...]] = {
    "completion": (str,),
    "token_ids": (int,),
    "from_teacher": (int, bool),
    "draft": (str, type(None)),
    "teacher_rank": (int, type(None)),
    "divergence": (int, float, type(None)),
    **dict.fromkeys(_SHARES, (int, float, type(None))),
}


class CutOff(ValueError):
    """A line whose writing was cut off."""


class Rollouts:
    """The recorded rollouts of a file, each read when it is asked for.

    Args:
        path: of the file; none where it is not there.

    Attributes:
        broken: how many lines were left out: their writing was cut off.
    """

    def __init__(self, path: Path):
        self.path, self.broken = path, 0
        self.starts, self.lines = array("Q"), array("Q")  # bytes before a line, and its number, from 1
        if not path.is_file():
            return
        with open(path, "rb") as file:
            at = _skip_mark(file, path)
            for number, line in enumerate(file, 1):
                bare = line.strip()
                if bare[:1] == b"{" and bare[-1:] == b"}":
                    self.starts.append(at)
                    self.lines.append(number)
                elif bare:
                    self.broken += self._is_cut_off(bare, number)
                at += len(line)

    def _is_cut_off(self, line: bytes, number: int) -> bool:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            return True
        raise ValueError(f"{self.path}, line {number}: expected an object, found {type(found).__name__}")

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, place: int) -> dict[str, Any]:
        """The rollout in a place, from 0; below 0 from the end.

        Raises:
            CutOff: its line is no JSON.
            ValueError: it is none that a recorder writes; the message names file and line.
        """
        start, where = self.starts[place], f"{self.path}, line {self.lines[place]}"
        with open(self.path, "rb") as file:
            file.seek(start)
            line = file.readline()
        try:
            entry = json.loads(line.decode("utf-8"), parse_constant=lambda name: None)
        except RecursionError as error:
            raise ValueError(f"{where}: nested too deeply to be a rollout") from error
        except ValueError as error:
            raise CutOff(f"{where}: not valid JSON ({error})") from error
        if (fault := _fault(entry)) is not None:
            raise ValueError(f"{where}: {fault}")
        return _known(entry)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[place] for place in range(len(self)))

    def within(self, first: int | None, last: int | None) -> list[int]:
        """Places of the rollouts of the steps from `first` to `last`, both among them.

        Raises:
            ValueError: there are none.
        """
        if first is None and last is None:
            return list(range(len(self)))
        places, steps = [], set()
        with open(self.path, "rb") as file:
            for place, start in enumerate(self.starts):
                file.seek(start)
                found = _STEP.match(file.read(64))
                step = self[place]["step"] if found is None else int(found[1])
                if (first is None or step >= first) and (last is None or step <= last):
                    places.append(place)
                steps.add(step)
        if not places and steps:
            raise ValueError(f"{self.path} has no rollout of these steps, but from {min(steps)} to {max(steps)}")
        return places


def _skip_mark(file: BinaryIO, path: Path) -> int:
    """How many bytes a byte order mark has, behind which the file is read on.

    Raises:
        ValueError: it is that of another encoding.
    """
    start = file.read(4)
    for mark, name in _MARKS:
        if start.startswith(mark):
            raise ValueError(f"{path} is {name} text, and must be UTF-8")
    return file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)


def _fault(entry: Any) -> str | None:
    """What is wrong with a line's object, in words; `None` where nothing is."""
    needed = ("step", "split", "prompt", "privileged_context", *_LISTS)
    missing = [key for key in needed if key not in entry and key != "token_ids"]
    if missing:
        return f"no `{missing[0]}`"
    if type(entry["step"]) is not int or not 0 <= entry["step"] < MOST:
        return f"`step` must be a whole number from 0, got {str(entry['step'])[:40]}"
    for key, types in (
        ("split", (str,)),
        ("privileged_context", (str, type(None))),
        ("id", (str, int, type(None))),
        ("teacher", (str, type(None))),
    ):
        if not isinstance(entry.get(key), types):
            return f"`{key}` must be text, got {type(entry[key]).__name__}"
    prompt = entry["prompt"]
    if not isinstance(prompt, list) or not prompt or not all(map(_is_message, prompt)):
        return "`prompt` must be a list of messages, each with a `role` and a text `content`"
    for key, types in _LISTS.items():
        values = entry.get(key, entry["completion"] if key == "token_ids" else None)
        if not isinstance(values, list) or len(values) != len(entry["completion"]):
            return f"`{key}` must have an entry for each token"
        odd = [value for value in values if key in entry and type(value) not in types]
        if odd:
            return f"`{key}` has an entry of type {type(odd[0]).__name__}"
        if key != "completion" and key != "draft" and key in entry and (odd := _odd_numbers(key, values)):
            return f"`{key}` has {str(odd[0])[:40]}"
    found = oddity(_known(entry))
    return None if found is None else f"`{found[0]}` {found[1]}"


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _odd_numbers(key: str, values: list[Any]) -> list[Any]:
    """Those of a list that its key cannot have."""
    most = (
        1 if key == "from_teacher" else 1 + 1e-3 if key in _SHARES else float("inf") if key == "divergence" else MOST
    )
    least = float("-inf") if key == "divergence" else 0
    return [v for v in values if v is not None and not (least <= v <= most and least < v + 1 < float("inf"))]


def _known(entry: dict[str, Any]) -> dict[str, Any]:
    """What the page has of a line."""
    known = {key: entry[key] for key in ("step", "split", "id", "row_id", "teacher", *_LISTS) if key in entry}
    known["prompt"] = [{key: message[key] for key in ("role", "content")} for message in entry["prompt"]]
    return known | {"privileged_context": entry["privileged_context"]}

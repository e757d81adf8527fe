"""Requests to models and their replies, kept at once under the hash of the request: none is asked twice."""

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ..data.prompts import Messages
from ..training.checkpoints import write_atomically


FILE = "answers.jsonl"


class Reply(NamedTuple):
    """What a model wrote, and whether it ended that by itself."""

    text: str
    finished: bool


@dataclass(frozen=True)
class Request:
    """All that a reply depends on.

    Attributes:
        model: who is asked, and how it is run.
        messages: the conversation.
        max_tokens: of the reply.
        temperature: 0: the likeliest token each time.
        seed: of the sampling; 0 at temperature 0.
        template: keyword arguments of the chat template.
    """

    model: str
    messages: Messages
    max_tokens: int
    temperature: float
    seed: int
    template: dict[str, Any]

    @cached_property
    def hash(self) -> str:
        text = json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Replies:
    """The replies in a folder: a line each, added as they come.

    Raises:
        ValueError: the file has lines that are no replies.
    """

    def __init__(self, folder: Path):
        self.path = folder / FILE
        self.known: dict[str, Reply] = {}
        self.new = 0
        self._lock, self._torn = threading.Lock(), False
        lines = self.path.read_bytes().split(b"\n") if self.path.is_file() else [b""]
        try:
            for line in lines[:-1]:  # what follows the last end of line was cut off as it was written
                entry = json.loads(line)
                self.known[entry["request"]] = Reply(entry["answer"], entry["finished"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is not what `lupi data make` wrote ({error!r}); delete it") from error
        if lines[-1]:
            self.sort()

    def add(self, given: list[tuple[Request, Reply]]) -> None:
        """Keep replies; they are in the file when this returns."""
        with self._lock:
            given = [(request, reply) for request, reply in given if request.hash not in self.known]
            if self._torn:
                raise OSError(f"{self.path} could not be written to")
            self._torn = True  # should the write fail, nothing is put behind half a line
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(self._line(request.hash, reply) for request, reply in given))
            self._torn = False
            self.known |= {request.hash: reply for request, reply in given}
            self.new += len(given)

    def sort(self) -> None:
        """Write the file anew in the order of the hashes, whatever order the replies came in."""
        write_atomically(self.path, "".join(self._line(name, self.known[name]) for name in sorted(self.known)))

    @staticmethod
    def _line(name: str, reply: Reply) -> str:
        return json.dumps({"request": name, "answer": reply.text, "finished": reply.finished}) + "\n"

    def get(self, request: Request) -> Reply | None:
        return self.known.get(request.hash)


class Unit(NamedTuple):
    """Requests that belong together: those about one chunk, by whose name errors are told apart.

    Attributes:
        passage: about which facts are to be filled in, if they are.
    """

    name: str
    requests: list[Request]
    passage: str = ""


Done = Callable[[list[tuple[Request, Reply]]], None]


class Model:
    """Somebody who is asked, and hands replies over as they come."""

    name = ""
    identity = ""  # in requests: the name, and what else its replies depend on
    fills_in = False  # whether it can be given the form, where it does not write JSON of its own

    def pending(self, units: list[Unit], known: dict[str, Reply]) -> list[Unit]:
        """What is left to be asked, none of it twice."""
        seen, left = set(known), []
        for unit in units:
            fresh = {request.hash: request for request in unit.requests if request.hash not in seen}
            seen |= fresh.keys()
            if fresh:
                left.append(Unit(unit.name, list(fresh.values()), unit.passage))
        return left

    def ask(self, units: list[Unit], schema: dict[str, Any] | None, done: Done) -> None:
        """Has every request of `units` (which [`pending`] has returned) answered.

        Args:
            schema: of the JSON that is wanted, for who can be held to it.
            done: called with replies, from whichever thread.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what it holds."""

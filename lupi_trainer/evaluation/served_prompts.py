"""The prompt that a server makes of a conversation, and how it differs from the one that a student was trained on."""

from typing import Any

from ..teachers.chat import ChatServer
from ..teachers.wire import NoAnswer, TeacherServerError


LONGEST = 100  # characters of a prompt that are shown


class ServedPrompts:
    """Asks a server for the tokens of prompts: vLLM's `/tokenize`, or llama.cpp's `/apply-template` and `/tokenize`.

    Args:
        server: who is asked.
        template: keyword arguments of the chat template.
    """

    def __init__(self, server: ChatServer, template: dict[str, Any] | None = None):
        self.server, self.template = server, template or {}
        self.ways = [self._by_messages, self._by_text]
        self.known = False  # whether the first of them is there

    def ids(self, messages: list[dict[str, str]]) -> list[int] | None:
        """Token ids of the prompt; `None` where the server does not say them."""
        while self.ways:
            try:
                ids = self.ways[0](messages)
                self.ways, self.known = self.ways[:1], True
                return ids
            except (TeacherServerError, NoAnswer, KeyError, TypeError, ValueError):
                if self.known:
                    return None
                del self.ways[0]
        return None

    def _by_messages(self, messages: list[dict[str, str]]) -> list[int]:
        body: dict[str, Any] = {"model": self.server.name, "messages": messages, "add_generation_prompt": True}
        if self.template:
            body["chat_template_kwargs"] = self.template
        return _ids(self._post("/tokenize", body, sum(len(m["content"]) for m in messages)), strict=True)

    def _by_text(self, messages: list[dict[str, str]]) -> list[int]:
        body: dict[str, Any] = {"messages": messages}
        if self.template:
            body["chat_template_kwargs"] = self.template
        count = sum(len(m["content"]) for m in messages)
        text = self._post("/apply-template", body, count)["prompt"]
        body = {"content": text, "add_special": True, "parse_special": True}  # as it reads its own prompts
        return _ids(self._post("/tokenize", body, len(text)))

    def _post(self, path: str, body: dict[str, Any], count: int) -> Any:
        return self.server.wire.send("POST", path, body, count=count)


def _ids(answer: dict[str, Any], strict: bool = False) -> list[int]:
    """The token ids in an answer.

    Raises:
        TypeError: they are no numbers.
        ValueError: there are none: a server that passes over what it does not know has read no conversation.
    """
    ids = answer["tokens"]
    if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < 1 << 31 for one in ids):
        raise TypeError("tokens that are no ids")
    if strict and not ids:
        raise ValueError("no tokens of a conversation")
    return ids


def _shown(text: str) -> str:
    return repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}...")


def prompt_difference(tokenizer: Any, own: list[int], served: list[int]) -> str | None:
    """How a server's prompt differs from a student's own, in words; `None`: it does not."""
    if own == served:
        return None
    start = next((i for i, (a, b) in enumerate(zip(own, served)) if a != b), min(len(own), len(served)))
    rest = min(len(own), len(served)) - start
    ends = zip(reversed(own[start:]), reversed(served[start:]))
    end = next((i for i, (a, b) in enumerate(ends) if a != b), rest)
    lacks, adds = own[start : len(own) - end], served[start : len(served) - end]
    lacking, added = tokenizer.decode(lacks), tokenizer.decode(adds)
    if not lacks:
        what = f"{_count(adds)} more: {_shown(added)}"
        if adds == [tokenizer.bos_token_id]:
            what += ", a second or unwanted beginning of text"
        elif "system" in added:
            what += ", a system turn that its template adds"
    elif not adds:
        what = f"{_count(lacks)} less: {_shown(lacking)}"
        if "system" in lacking:
            what += ", a system turn that the run's template adds"
        elif not end:
            what += ", the beginning of the assistant's turn"
    else:
        what = f"{_shown(added)} in place of {_shown(lacking)}"
        what += ", a system turn that its template adds" if "system" in added and "system" not in lacking else ""
    return f"another chat template: the server's prompt has {what}"


def _count(ids: list[int]) -> str:
    return f"{len(ids)} token{'s' * (len(ids) != 1)}"

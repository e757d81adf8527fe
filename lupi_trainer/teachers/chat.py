"""A model on an OpenAI-compatible server (vLLM, llama.cpp, Ollama), asked over `/v1/chat/completions`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from types import MappingProxyType
from typing import Any, NamedTuple

from .remote import RemoteStats
from .wire import GivenUp, NoAnswer, NotAnswered, RequestRefused, TeacherServerError, Wire


Job = tuple[str, Callable[[threading.Event], Any]]  # by what name errors know it; gets the event that ends its tries


class ChatReply(NamedTuple):
    """What a model wrote, whether it ended that by itself, and how many tokens its prompt had (`None`: not said)."""

    text: str
    finished: bool
    prompt_tokens: int | None = None


class ChatServer:
    """The model behind an address.

    Args:
        url: base address, with or without `/v1`. A key is taken from the environment variable `VLLM_API_KEY`.
        name: of the served model; the only one there is unless given.
        in_flight: requests at the same time.
        timeout: seconds to wait for the server to be up, or back.
        request_timeout: seconds until the last byte of a reply, after which it is asked for again.
        name_flag: what names the model, for the message where it must be named.
        words: what the server and its time-out are called in messages, as [`Wire`] takes them.

    Raises:
        TeacherServerError: nobody answers in time, or not as such servers do; several models, and no name.
        ValueError: an address that cannot be right.
    """

    def __init__(
        self,
        url: str,
        name: str | None,
        *,
        in_flight: int = 8,
        timeout: float = 240.0,
        request_timeout: float = 600.0,
        name_flag: str = "--teacher",
        words: Mapping[str, str] = MappingProxyType({}),
    ):
        self.wire = Wire(url, timeout, request_timeout, RemoteStats(), **words)
        self.in_flight, self.name_flag = in_flight, name_flag
        self.name = name or self.wire.patiently(lambda: self._only_one())

    def _names(self) -> list[str]:
        """Of all models that are served."""
        return [self.wire.without_key(str(card["id"])) for card in self.wire.send("GET", "/v1/models")["data"]]

    def _only_one(self) -> str:
        names = self._names()
        if len(names) != 1:
            raise TeacherServerError(
                f"{self.wire.url} serves {', '.join(names) or 'nothing'}: say which with {self.name_flag}"
            )
        return names[0]

    def _with_names(self, error: RequestRefused) -> RequestRefused:
        """What is not found may be the model's name: then those that there are follow."""
        try:
            names = self._names() if error.status == 404 else [self.name]
        except (TeacherServerError, NoAnswer, KeyError, TypeError, ValueError):
            return error
        if self.name in names:
            return error
        said = f"{error} (it serves {', '.join(names) or 'nothing'}: say which with {self.name_flag})"
        return RequestRefused(said, error.status)

    def reply(
        self,
        messages: list[dict[str, str]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        template: dict[str, Any] | None = None,
        **more: Any,
    ) -> ChatReply:
        """One request, once.

        Args:
            messages: the conversation.
            max_tokens: of the reply.
            temperature: 0: the likeliest token each time.
            seed: of the sampling.
            template: keyword arguments of the chat template.
            **more: of the request's body.

        Raises:
            NoAnswer, KeyError, TypeError, ValueError: none that can be read; [`Wire.patiently`] asks again.
            TeacherServerError: the request is refused.
        """
        body: dict[str, Any] = {"model": self.name, "messages": messages}
        body |= {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        if template:
            body["chat_template_kwargs"] = template
        try:
            answer = self.wire.send("POST", "/v1/chat/completions", body | more, count=max_tokens)
        except RequestRefused as error:
            raise self._with_names(error) from error
        choice, text = _only_choice(answer)
        text = self.wire.without_key(text or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        usage = answer.get("usage")
        count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        is_count = type(count) is int and count >= 0
        return ChatReply(text.strip(), choice["finish_reason"] == "stop", count if is_count else None)

    def all(self, jobs: Iterable[Job]) -> None:
        """Runs jobs, `in_flight` at the same time; where one fails, the others are given up.

        Raises:
            RequestRefused: a job was refused; its name stands before the reason.
            NotAnswered: there was no answer for too long; its name stands there where others were answered.
            TeacherServerError: the server cannot be used any more.
        """
        given_up, answered = threading.Event(), threading.Event()

        def run(name: str, job: Callable[[threading.Event], Any]) -> None:
            if given_up.is_set():
                return
            try:
                job(given_up)
                answered.set()
            except BaseException as error:
                given_up.set()  # at once: nothing is asked any more of which the reply is lost
                if isinstance(error, RequestRefused):
                    raise RequestRefused(f"{name}: {error}", error.status) from error
                if isinstance(error, NotAnswered) and answered.is_set():
                    raise NotAnswered(f"{name}: {error}") from error
                raise

        with ThreadPoolExecutor(self.in_flight, thread_name_prefix="chat") as pool:
            futures = [pool.submit(run, name, job) for name, job in jobs]
            try:
                finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
                errors = [error for future in finished if (error := future.exception()) is not None]
                if errors:  # of several, the one for which the others were given up
                    raise min(errors, key=lambda error: isinstance(error, GivenUp))
            finally:
                given_up.set()
                for future in futures:
                    future.cancel()
                while wait(futures, timeout=0.05).not_done:  # else Ctrl-C would wait for answers that nobody reads
                    self.wire.give_up()


def _only_choice(answer: Any) -> tuple[dict[str, Any], str | None]:
    """The one reply in an answer, and its text.

    Raises:
        ValueError: there is none, or it is no text; the message says what there is.
    """
    if not isinstance(answer, dict) or not isinstance(choices := answer.get("choices"), list):
        raise ValueError(f"no `choices`, but {str(answer)[:200]}")
    if len(choices) != 1:
        raise ValueError(f"{len(choices)} choices in place of one")
    if not isinstance(choices[0], dict) or not {"message", "finish_reason"} <= choices[0].keys():
        raise ValueError(f"a choice without a `message` or a `finish_reason`: {str(choices[0])[:200]}")
    text = choices[0]["message"]["content"]
    if not isinstance(text, str | None):
        raise ValueError(f"a reply that is no text, but a {type(text).__name__}")
    return choices[0], text

"""A model on an OpenAI-compatible server (vLLM, llama.cpp, Ollama), asked over `/v1/chat/completions`."""

import logging
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

from ..teachers.remote import RemoteStats
from ..teachers.wire import TeacherServerError, Wire
from .replies import Done, Model, Reply, Request, Unit


logger = logging.getLogger(__name__)


class ServedModel(Model):
    """The model behind an address.

    Args:
        url: base address, with or without `/v1`. A key is taken from the environment variable `VLLM_API_KEY`.
        name: of the served model; the only one there is unless given.
        in_flight: requests at the same time.
        timeout: seconds to wait for the server to be up, or back.
        request_timeout: seconds until the last byte of a reply, after which it is asked for again.

    Raises:
        TeacherServerError: nobody answers in time, or not as such servers do; several models, and no name.
        ValueError: an address that cannot be right.
    """

    def __init__(
        self, url: str, name: str | None, *, in_flight: int = 8, timeout: float = 240.0, request_timeout: float = 600.0
    ):
        self.wire = Wire(url, timeout, request_timeout, RemoteStats())
        self.in_flight = in_flight
        self.guided = True  # until the server refuses
        self.name = name or self.wire.patiently(self._only_one)
        self.identity = f"{self.name} (served)"

    def _only_one(self) -> str:
        names = [str(card["id"]) for card in self.wire.send("GET", "/v1/models")["data"]]
        if len(names) != 1:
            raise TeacherServerError(
                f"{self.wire.url} serves {', '.join(names) or 'nothing'}: say which with --teacher"
            )
        return names[0]

    def ask(self, units: list[Unit], schema: dict[str, Any] | None, done: Done) -> None:
        given_up = threading.Event()

        def answer(name: str, request: Request) -> None:
            if given_up.is_set():
                return
            try:
                done([(request, self.wire.patiently(lambda: self._reply(request, schema), given_up=given_up))])
            except BaseException as error:
                given_up.set()  # at once: nothing is asked any more of which the reply is lost
                if isinstance(error, TeacherServerError) and "refused" in str(error):
                    raise TeacherServerError(f"{name}: {error}") from error
                raise

        with ThreadPoolExecutor(self.in_flight, thread_name_prefix="documents") as pool:
            futures = [pool.submit(answer, unit.name, request) for unit in units for request in unit.requests]
            try:
                finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
            finally:
                given_up.set()
                for future in futures:
                    future.cancel()

    def _reply(self, request: Request, schema: dict[str, Any] | None) -> Reply:
        body: dict[str, Any] = {"model": self.name, "messages": request.messages}
        body |= {"max_tokens": request.max_tokens, "temperature": request.temperature, "seed": request.seed}
        if request.template:
            body["chat_template_kwargs"] = request.template
        if schema is None or not self.guided:
            return self._send(body)
        wanted = {"name": "facts", "schema": schema, "strict": True}
        try:
            return self._send(body | {"response_format": {"type": "json_schema", "json_schema": wanted}})
        except TeacherServerError as error:
            if "refused (HTTP 4" not in str(error):
                raise
            reply = self._send(body)  # raises where it is something else that is refused
            if self.guided:
                self.guided = False
                logger.warning(
                    f"{self.wire.url} has no guided decoding ({error}): its JSON is checked, and not forced"
                )
            return reply

    def _send(self, body: dict[str, Any]) -> Reply:
        (choice,) = self.wire.send("POST", "/v1/chat/completions", body, count=body["max_tokens"])["choices"]
        text = choice["message"]["content"]
        if not isinstance(text, str | None):
            raise TypeError(f"a reply that is a {type(text).__name__}")
        text = (text or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return Reply(text.strip(), choice["finish_reason"] == "stop")

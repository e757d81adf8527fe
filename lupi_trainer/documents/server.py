"""A model on an OpenAI-compatible server (vLLM, llama.cpp, Ollama), of which JSON is wanted."""

import logging
from typing import Any

from ..teachers.chat import ChatServer
from ..teachers.wire import RequestRefused
from .replies import Done, Model, Reply, Request, Unit


logger = logging.getLogger(__name__)


class ServedModel(Model):
    """The model behind an address.

    Args:
        url, name, in_flight, timeout, request_timeout: as for [`~lupi_trainer.teachers.chat.ChatServer`].

    Raises:
        TeacherServerError: nobody answers in time, or not as such servers do; several models, and no name.
        ValueError: an address that cannot be right.
    """

    def __init__(
        self, url: str, name: str | None, *, in_flight: int = 8, timeout: float = 240.0, request_timeout: float = 600.0
    ):
        self.server = ChatServer(url, name, in_flight=in_flight, timeout=timeout, request_timeout=request_timeout)
        self.guided = True  # until the server refuses
        self.name = self.server.name
        self.identity = f"{self.name} (served)"

    def ask(self, units: list[Unit], schema: dict[str, Any] | None, done: Done) -> None:
        def job(request: Request):
            def answer(given_up) -> None:
                done([(request, self.server.wire.patiently(lambda: self._reply(request, schema), given_up=given_up))])

            return answer

        self.server.all((unit.name, job(request)) for unit in units for request in unit.requests)

    def _reply(self, request: Request, schema: dict[str, Any] | None) -> Reply:
        if schema is None or not self.guided:
            return self._send(request)
        wanted = {"name": "facts", "schema": schema, "strict": True}
        try:
            return self._send(request, response_format={"type": "json_schema", "json_schema": wanted})
        except RequestRefused as error:
            if not 400 <= error.status < 500:
                raise
            reply = self._send(request)  # raises where it is something else that is refused
            if self.guided:
                self.guided = False
                logger.warning(
                    f"{self.server.wire.url} has no guided decoding ({error}): its JSON is checked, and not forced"
                )
            return reply

    def _send(self, request: Request, **more: Any) -> Reply:
        options: dict[str, Any] = {"max_tokens": request.max_tokens, "temperature": request.temperature}
        reply = self.server.reply(request.messages, **options, seed=request.seed, template=request.template, **more)
        return Reply(reply.text, reply.finished)

"""The same questions and marks over an OpenAI-compatible server."""

import threading
from collections.abc import Callable
from typing import Any

from ..data.answers import MAX_ANSWER_TOKENS
from ..data.prompts import TeacherPrompt
from ..data.records import record_name
from ..teachers.chat import ChatReply, ChatServer
from .closed_book import ClosedBookResult, conversation, mark


def served_closed_book(
    server: ChatServer,
    probes: list[dict[str, Any]],
    *,
    teacher_prompt: TeacherPrompt | None = None,
    max_new_tokens: int = MAX_ANSWER_TOKENS,
    chat_template_kwargs: dict[str, Any] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> ClosedBookResult:
    """Ask a served model what [`closed_book`] asks one that is loaded here, several questions at a time.

    Greedy, by `temperature: 0`; whatever else the server does to its answers (penalties, stop strings, a system turn)
    is its own, and is in the marks.

    Args:
        server: who is asked.
        probes: dictionaries with `question`, `answers` (and `knowledge` for open-book).
        teacher_prompt: how the knowledge is put; `None` asks closed-book.
        max_new_tokens: cut an answer after so many tokens.
        chat_template_kwargs: for the server's chat template, which vLLM and llama.cpp take from the request.
        on_batch: called after every answer with how many there are.

    Returns:
        Marks and answers in the order of the probes; each answer has `prompt_tokens`, as the server counts them.

    Raises:
        RequestRefused: the server refuses a question (it is named).
        TeacherServerError: no answer in time, or none that can be read.
    """
    replies: dict[int, ChatReply] = {}
    lock = threading.Lock()

    def job(number: int) -> Callable[[threading.Event], None]:
        messages = conversation(probes[number], teacher_prompt)

        def ask(given_up: threading.Event) -> None:
            def once() -> ChatReply:
                return server.reply(messages, max_tokens=max_new_tokens, template=chat_template_kwargs)

            reply = server.wire.patiently(once, given_up=given_up)
            with lock:
                replies[number] = reply
                if on_batch is not None:
                    on_batch(len(replies))

        return ask

    server.all((f"probe of {record_name(probe, number)}", job(number)) for number, probe in enumerate(probes))
    ordered = [replies[number] for number in range(len(probes))]
    result = mark(probes, [reply[:2] for reply in ordered])
    for answer, reply in zip(result.answers, ordered):
        answer["prompt_tokens"] = reply.prompt_tokens
    return result

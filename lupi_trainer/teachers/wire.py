"""Requests to a model's server: sent again while there is no answer, and a clear end when that takes too long."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import httpx

from ..data.credentials import guard_logs, header_secret, without_secrets
from .fetch import Answer, Fetcher, FetchError
from .remote import RemoteError, RemoteStats


logger = logging.getLogger(__name__)

_TRY_AGAIN = {429, 500, 502, 503, 504}
_FIRST_PAUSE = 0.25  # seconds before another try
_BROKEN_BY_ONE = 4  # failures of one question, with other questions answered in between, after which it is given up
_MALFORMED = 4  # answers to one question that are none, after which no further is waited for
_SHORT_ANSWER = 4 << 20  # bytes of one that holds nothing that was counted
_EACH = 1 << 10  # bytes for each number, with the text of its token, or for each written token


class TeacherServerError(RemoteError):
    """A teacher server that cannot be used, or no longer, and what is wrong with it; no secret is in its message."""

    def __init__(self, message: str):
        super().__init__(without_secrets(message))


class OneTextFails(TeacherServerError):
    """What is wrong is the answer about one text, and not the server itself."""


class NotAnswered(TeacherServerError):
    """No answer for too long."""


class GivenUp(TeacherServerError):
    """No further try, since another question has failed."""


class RequestRefused(TeacherServerError):
    """A request that a server refuses, or to which it says nothing that can be read, again and again.

    Attributes:
        status: of the HTTP answer.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class NoAnswer(Exception):
    """A failure that another try might mend.

    Attributes:
        status: of the HTTP answer, if there was one.
        malformed: whether there was one, and it is not what such a server says.
    """

    def __init__(self, message: str, status: int | None = None, malformed: bool = False):
        super().__init__(without_secrets(message))
        self.status, self.malformed = status, malformed


class Wire:
    """The connection to a server.

    Args:
        url: its base address. The key that it may want is the environment variable `VLLM_API_KEY`.
        timeout: seconds without any answer after which it is given up.
        request_timeout: seconds until the last byte of an answer, after which the request is sent again.
        stats: where requests and retries are counted.
        called: the server, in messages.
        kind: of server, in messages.
        setting: what `timeout` is called where it is given.

    Raises:
        ValueError: not an http address, one with a password in it, or a key that no header can hold.
    """

    def __init__(
        self,
        url: str,
        timeout: float,
        request_timeout: float,
        stats: RemoteStats,
        *,
        called: str = "teacher server",
        kind: str = "a vLLM",
        setting: str = "teacher_server_timeout",
    ):
        self.url, self.timeout, self.stats = check_url(url, called), timeout, stats
        self.called, self.kind, self.setting = called, kind, setting
        key = header_secret("VLLM_API_KEY")
        guard_logs()
        self._lock = threading.Lock()
        self._key = key
        self._fetcher = Fetcher(self.url, {"Authorization": f"Bearer {key}"} if key else {}, request_timeout)

    def give_up(self) -> None:
        """End the requests that wait for an answer; who sent them sees `NoAnswer`."""
        self._fetcher.give_up()

    def without_key(self, text: str) -> str:
        """A text of the server's without the key that was sent to it."""
        return text.replace(self._key, "***") if self._key else text

    def send(self, method: str, path: str, body: dict | None = None, count: int = 0, prompts: int = 0) -> Any:
        """One request, once; returns its answer, read as JSON.

        Args:
            method, path: of the request.
            body: sent as JSON.
            count: numbers or written tokens that the answer holds; one that is much longer is not read.
            prompts: texts in it, which are counted.

        Raises:
            NoAnswer: nobody there, a connection lost, a time-out, a server that is busy or failing, or an answer that
                cannot be read.
            TeacherServerError: the request is refused.
        """
        with self._lock:
            self.stats.requests += 1
            self.stats.prompts += prompts
        try:
            answer = self._fetcher.fetch(method, path, body, _SHORT_ANSWER + _EACH * count)
        except FetchError as error:
            raise NoAnswer(str(error), malformed=error.malformed) from None
        if answer.status in _TRY_AGAIN:
            raise NoAnswer(f"HTTP {answer.status} {_message(answer)}", answer.status)
        if answer.status in (401, 403):
            raise TeacherServerError(f"{self.url} refuses the key: set VLLM_API_KEY in the environment")
        if answer.status != 200:
            raise RequestRefused(f"{self.url} refused (HTTP {answer.status}): {_message(answer)}", answer.status)
        try:
            return json.loads(answer.body)
        except RecursionError:
            raise NoAnswer(f"{path} answers in JSON that is nested too deeply", malformed=True) from None
        except ValueError:
            said = f"{self.url}{path} does not answer in JSON: is it {self.kind} server?"
            raise NoAnswer(said, malformed=True) from None

    def patiently(self, ask: Callable, back: Callable | None = None, given_up: threading.Event | None = None):
        """Calls `ask()` until it gets an answer, with longer and longer pauses; `back()` before every further try.

        Once `given_up` is set, there is none.

        Raises:
            OneTextFails: `ask()` breaks the server four times over, and `back()` never does.
            TeacherServerError: no answer for `timeout` seconds, or one that is not what such a server says.
        """
        pause, since, broken, malformed = _FIRST_PAUSE, None, 0, 0
        given_up = threading.Event() if given_up is None else given_up
        while True:
            asked = False
            try:
                with _understood(self.url, self.kind):
                    if back is not None and since is not None:
                        back()
                    asked = True
                    return ask()
            except NoAnswer as error:
                broken += asked and (error.status == 500 or error.malformed)
                malformed += error.malformed
                if broken == _BROKEN_BY_ONE and back is not None:
                    raise OneTextFails(
                        f"the {self.called} {self.url} answers, but fails at this text again and again: {error}"
                    ) from None
                if malformed == _MALFORMED:
                    raise RequestRefused(f"{error} ({malformed} times)", error.status or 200) from None
                now = time.monotonic()
                since = now if since is None else since
                if now - since + pause > self.timeout:
                    raise NotAnswered(
                        f"the {self.called} {self.url} has not answered for {now - since:.0f} seconds "
                        f"({self.setting}={self.timeout:g}): {error}"
                    ) from None
                if given_up.is_set():
                    raise GivenUp(f"the {self.called} {self.url} is not asked any more") from None
                with self._lock:
                    self.stats.retries += 1
                logger.warning(f"{self.called} {self.url}: {error}; next try in {pause:.2g} seconds")
                if given_up.wait(pause):
                    raise GivenUp(f"the {self.called} {self.url} is not asked any more") from None
                pause = min(2 * pause, 15.0)


@contextmanager
def _understood(url: str, kind: str) -> Generator[None]:
    """Inside, an answer is read; one of another form is as good as none.

    Raises:
        NoAnswer: something is missing in it, or of another type.
    """
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, ArithmeticError) as error:
        raise NoAnswer(f"{url} does not answer as {kind} server does ({error!r})"[:500], malformed=True) from error


def check_url(url: str, called: str = "teacher server") -> str:
    """The address without slashes and `/v1` at its end.

    Raises:
        ValueError: not an http address, or one with a password in it.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        parsed = None
    if "@" in str(url) or "?" in str(url):  # it is logged
        raise ValueError(
            f"a {called}'s address must not hold a password, a key or anything else behind a `?`: set "
            "VLLM_API_KEY in the environment"
        )
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host or parsed.fragment:
        raise ValueError(f"a {called}'s address is like http://host:8000, not {url!r}")
    if not 0 < (parsed.port or 1) < 1 << 16:
        raise ValueError(f"a {called}'s address has a port from 1 to 65535, not {parsed.port}")
    return url.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1").rstrip("/")


def _message(answer: Answer) -> str:
    """What an answer with an error says, in one line."""
    try:
        said = json.loads(answer.body)
        said = said["error"] if "error" in said else said
        said = str(said["message"] if isinstance(said, dict) and "message" in said else said)[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        said = answer.body[:200].decode("utf-8", "replace")
    return " ".join(said.split())

"""Requests to a vLLM server: sent again while there is no answer, and a clear end when there is none for too long."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx

from ..data.credentials import guard_logs, header_secret, without_secrets
from .remote import RemoteError, RemoteStats


logger = logging.getLogger(__name__)

_TRY_AGAIN = {429, 500, 502, 503, 504}
_FIRST_PAUSE = 0.25  # seconds before another try
_BROKEN_BY_ONE = 4  # failures of one question, with other questions answered in between, after which it is given up


class TeacherServerError(RemoteError):
    """A teacher server that cannot be used, or no longer, and what is wrong with it; no secret is in its message."""

    def __init__(self, message: str):
        super().__init__(without_secrets(message))


class OneTextFails(TeacherServerError):
    """What is wrong is the answer about one text, and not the server itself."""


class NoAnswer(Exception):
    """A failure that another try might mend.

    Attributes:
        status: of the HTTP answer, if there was one.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(without_secrets(message))
        self.status = status


class Wire:
    """The connection to a server.

    Args:
        url: its base address. The key that it may want is the environment variable `VLLM_API_KEY`.
        timeout: seconds without any answer after which it is given up.
        request_timeout: seconds to wait for one answer before the request is sent again.
        stats: where requests and retries are counted.

    Raises:
        ValueError: not an http address, one with a password in it, or a key that no header can hold.
    """

    def __init__(self, url: str, timeout: float, request_timeout: float, stats: RemoteStats):
        self.url, self.timeout, self.stats = check_url(url), timeout, stats
        key = header_secret("VLLM_API_KEY")
        guard_logs()
        self._lock = threading.Lock()
        self._http = httpx.Client(
            base_url=self.url,
            timeout=httpx.Timeout(request_timeout, connect=min(request_timeout, 10.0), pool=None),
            headers={"Authorization": f"Bearer {key}"} if key else None,
        )

    def send(self, method: str, path: str, body: dict | None = None) -> Any:
        """One request, once; returns its answer, read as JSON.

        Raises:
            NoAnswer: nobody there, a connection lost, a time-out, or a server that is busy or failing.
            TeacherServerError: the request is refused, or the answer is not JSON.
        """
        with self._lock:
            self.stats.requests += 1
        try:
            response = self._http.request(method, path, json=body)
        except httpx.TransportError as error:
            raise NoAnswer(f"{type(error).__name__} {error}".strip()) from None
        if response.status_code in _TRY_AGAIN:
            raise NoAnswer(f"HTTP {response.status_code} {_message(response)}", response.status_code)
        if response.status_code in (401, 403):
            raise TeacherServerError(f"{self.url} refuses the key: set VLLM_API_KEY in the environment")
        if response.status_code >= 400:
            raise TeacherServerError(f"{self.url} refused (HTTP {response.status_code}): {_message(response)}")
        try:
            return response.json()
        except ValueError:
            raise TeacherServerError(f"{self.url}{path} does not answer in JSON: is it a vLLM server?") from None

    def patiently(self, ask: Callable, back: Callable | None = None, given_up: threading.Event | None = None):
        """Calls `ask()` until it gets an answer, with longer and longer pauses; `back()` before every further try.

        Once `given_up` is set, there is none.

        Raises:
            OneTextFails: `ask()` breaks the server four times over, and `back()` never does.
            TeacherServerError: no answer for `timeout` seconds, or one that is not what a vLLM server says.
        """
        pause, since, broken = _FIRST_PAUSE, None, 0
        given_up = threading.Event() if given_up is None else given_up
        while True:
            asked = False
            try:
                if back is not None and since is not None:
                    back()
                asked = True
                return ask()
            except NoAnswer as error:
                broken += asked and error.status == 500
                if broken == _BROKEN_BY_ONE and back is not None:
                    raise OneTextFails(
                        f"the teacher server {self.url} answers, but fails at this text again and again: {error}"
                    ) from None
                now = time.monotonic()
                since = now if since is None else since
                if now - since + pause > self.timeout:
                    raise TeacherServerError(
                        f"the teacher server {self.url} has not answered for {now - since:.0f} seconds "
                        f"(teacher_server_timeout={self.timeout:g}): {error}"
                    ) from None
                with self._lock:
                    self.stats.retries += 1
                logger.warning(f"teacher server {self.url}: {error}; next try in {pause:.2g} seconds")
                if given_up.wait(pause):
                    raise TeacherServerError(f"the teacher server {self.url} is not asked any more") from None
                pause = min(2 * pause, 15.0)
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                raise TeacherServerError(f"{self.url} does not answer as a vLLM server does ({error!r})") from error


def check_url(url: str) -> str:
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
            "a teacher server's address must not hold a password, a key or anything else behind a `?`: set "
            "VLLM_API_KEY in the environment"
        )
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"a teacher server's address is like http://host:8000, not {url!r}")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _message(response: httpx.Response) -> str:
    try:
        answer = response.json()
        return str(answer["error"]["message"] if "error" in answer else answer)[:500]
    except (ValueError, KeyError, TypeError):
        return response.text[:200]

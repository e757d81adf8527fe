"""One HTTP request with one deadline, and an answer that is read no further than its request explains.

A time-out of a socket is the time between two bytes, and never ends where a byte comes now and then. Requests
therefore run in an event loop, in a thread beside all others, where what takes too long is ended, whatever it waits
for.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
import zlib
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass

import httpx


CONNECT = 10.0  # seconds to wait for a connection at most
_ZLIB = 32 + zlib.MAX_WBITS  # gzip or zlib, as the stream's head says
_DECODED = {"": False, "identity": False, "gzip": True, "x-gzip": True, "deflate": True}

_lock = threading.Lock()
_running: asyncio.AbstractEventLoop | None = None


class FetchError(Exception):
    """No answer, or one that cannot be read.

    Attributes:
        malformed: whether there was one, and it cannot be read.
    """

    def __init__(self, message: str, malformed: bool = False):
        super().__init__(message)
        self.malformed = malformed


@dataclass(frozen=True)
class Answer:
    """An answer: HTTP status and decompressed body."""

    status: int
    body: bytes


def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of this process."""
    global _running
    with _lock:
        if _running is None:
            _running = asyncio.new_event_loop()
            threading.Thread(target=_running.run_forever, name="teacher-requests", daemon=True).start()
        return _running


def _forget() -> None:
    """In a forked process, which has no thread that would run the loop."""
    global _running, _lock
    _running, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


class Fetcher:
    """Sends requests to one server; any thread may call it.

    Args:
        url: base address.
        headers: of every request.
        limit: seconds for a request, from its beginning to the last byte of its answer.
    """

    def __init__(self, url: str, headers: dict[str, str], limit: float):
        self.limit = limit
        self._waiting: set[Future] = set()
        self._client = client = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(None, connect=min(limit, CONNECT)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
            headers={"Accept-Encoding": "gzip, deflate", **headers},
        )
        loop = _loop()
        weakref.finalize(self, lambda: loop.call_soon_threadsafe(loop.create_task, client.aclose())).atexit = False

    def fetch(self, method: str, path: str, body: dict | None, most: int) -> Answer:
        """One request, once.

        Args:
            method, path: of the request.
            body: sent as JSON.
            most: bytes that the answer may have, decompressed.

        Raises:
            FetchError: nobody there, a connection lost, no complete answer in time, one that is too long or breaks
                HTTP or its compression.
        """
        request = asyncio.run_coroutine_threadsafe(self._fetch(method, path, body, most), _loop())
        self._waiting.add(request)
        try:
            return request.result()
        except CancelledError:
            raise FetchError("the request was given up") from None
        finally:
            self._waiting.discard(request)

    def give_up(self) -> None:
        """End the requests that wait for an answer, each with a `FetchError`."""
        for request in list(self._waiting):
            request.cancel()

    async def _exchange(self, method: str, path: str, body: dict | None, most: int) -> Answer:
        async with self._client.stream(method, path, json=body) as response:
            return Answer(response.status_code, await _read(response, most))

    async def _fetch(self, method: str, path: str, body: dict | None, most: int) -> Answer:
        try:
            return await asyncio.wait_for(self._exchange(method, path, body, most), self.limit)
        except TimeoutError:
            raise FetchError(f"no complete answer within {self.limit:g} seconds") from None
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise FetchError(f"{type(error).__name__} {error}".strip()) from None
        except zlib.error as error:
            raise FetchError(f"an answer with broken compression ({error})", True) from None


async def _read(response: httpx.Response, most: int) -> bytes:
    """The body, which is decompressed only as far as it may be long."""
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    if coding not in _DECODED:
        raise FetchError(f"an answer that is compressed as {coding[:20]!r}, for which it was not asked", True)
    stream, content = zlib.decompressobj(_ZLIB) if _DECODED[coding] else None, bytearray()
    async for chunk in response.aiter_raw():
        content += chunk if stream is None else stream.decompress(chunk, most + 1 - len(content))
        if len(content) > most:
            raise FetchError(f"an answer of more than {most:,} bytes, the most that the request explains", True)
    if stream is not None and content and not stream.eof:
        raise FetchError("an answer with broken compression (it is cut off)", True)
    return bytes(content)

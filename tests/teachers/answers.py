"""A loopback server that answers every request with bytes of a test's own, whether they are HTTP or not."""

import contextlib
import json
import socket
import threading
import time


def http(body: bytes | str | object, status: str = "200 OK", headers: dict[str, str] | None = None) -> bytes:
    """An answer as a server sends it; what is neither bytes nor text is sent as JSON."""
    body = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    head = {"Content-Length": str(len(body)), "Connection": "close", **(headers or {})}
    return "\r\n".join([f"HTTP/1.1 {status}", *(f"{k}: {v}" for k, v in head.items()), "", ""]).encode() + body


class Answers:
    """Answers the n-th connection with the n-th of `answers`, and all later ones with the last.

    With `pause`, a byte is sent every so many seconds, and blanks when the answer has ended; `heads` are the requests.
    """

    def __init__(self, *answers: bytes, pause: float = 0.0):
        self.answers, self.pause, self.heads = list(answers), pause, []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self.server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self.server.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            self.heads.append(connection.recv(65536))
            answer = self.answers[min(len(self.heads), len(self.answers)) - 1]
            if not self.pause:
                return connection.sendall(answer)
            for byte in answer:
                connection.sendall(bytes([byte]))
                time.sleep(self.pause)
            while not self.over.is_set():
                connection.sendall(b" ")
                time.sleep(self.pause)

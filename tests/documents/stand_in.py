"""A stand-in for an OpenAI-compatible server, whose model is a function."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StandIn:
    """Answers `/v1/chat/completions` with what `answer` makes of the last user message of a request.

    Args:
        answer: from a request's body to the text of the reply.
        guided: whether it knows `response_format`; else it refuses it.
        models: their names.
    """

    def __init__(self, answer: Callable[[dict], str], guided: bool = True, models: tuple[str, ...] = ("scripted",)):
        self.answer, self.guided, self.models = answer, guided, models
        self.bodies: list[dict] = []
        self.faults: Iterator[int] = iter(())  # HTTP statuses of the next replies
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # a reply is one packet: of two, the second waits for an acknowledgement

            def log_message(self, *args):
                pass

            def reply(self, status: int, content: dict):
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                self.reply(200, {"data": [{"id": name} for name in outer.models]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not self.path.endswith("/chat/completions"):
                    found = outer.other(self.path, body)
                    return self.reply(404, {"detail": "Not Found"}) if found is None else self.reply(200, found)
                if (status := next(outer.faults, 200)) != 200:
                    return self.reply(status, {"error": {"message": "as the test wants it"}})
                if not outer.guided and "response_format" in body:
                    return self.reply(400, {"error": {"message": "response_format is not known"}})
                outer.bodies.append(body)
                text = outer.answer(body)
                reason = "length" if text.endswith("\0") else "stop"
                message = {"role": "assistant", "content": text.rstrip("\0")}
                choice = {"index": 0, "message": message, "finish_reason": reason}
                self.reply(200, {"choices": [choice], "usage": outer.usage(body)})

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def usage(self, body: dict) -> dict:
        """What a reply says of its tokens."""
        return {}

    def other(self, path: str, body: dict) -> dict | None:
        """The answer on another path; `None`: there is nothing."""
        return None

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

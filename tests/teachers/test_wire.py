"""Requests to a server: what it may do wrong, and what is said of it."""

import gzip
import logging
import threading
import time
import zlib

import pytest

from lupi_trainer.teachers import fetch, wire
from lupi_trainer.teachers.remote import RemoteStats
from lupi_trainer.teachers.wire import TeacherServerError, Wire
from tests.teachers.answers import Answers, http


KEY = "quietly-0123456789"


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(wire, "_FIRST_PAUSE", 1e-3)


def asked(url: str, timeout: float = 0.05, request_timeout: float = 0.05):
    """What a server answers, or what is said of it."""
    connection = Wire(url, timeout, request_timeout, RemoteStats())
    return connection.patiently(lambda: connection.send("GET", "/v1/models"))


@pytest.mark.parametrize(
    "key, named",
    [
        (KEY + "\n", "character 19 of 19 is U\\+000A"),
        (" " + KEY, "character 1 of 19 is U\\+0020"),
        (KEY + "\x7f", "character 19 of 19 is U\\+007F"),
        ("quietly-é-0123456789", "character 9 of 20 is U\\+00E9"),
    ],
)
def test_a_key_that_no_header_can_hold_is_named_by_its_variable_before_anything_is_sent(monkeypatch, key, named):
    monkeypatch.setenv("VLLM_API_KEY", key)
    with pytest.raises(ValueError, match=f"^VLLM_API_KEY cannot be sent: its {named}") as error:
        asked("http://127.0.0.1:9")
    assert "quietly" not in str(error.value) and "0123456789" not in str(error.value)


@pytest.mark.parametrize(
    "answer",
    [
        http({"error": {"message": f"no model for Bearer {KEY}"}}, "404 Not Found"),
        http({"error": {"message": f"busy with {KEY}"}}, "503 Service Unavailable"),
        http({"error": f"what is {KEY}?"}, "401 Unauthorized"),
        http(f"<p>{KEY}</p>", "500 Internal Server Error"),
        http(f"<p>{KEY}</p>"),
        http("{}", headers={"Location": f"http://elsewhere/{KEY}"}, status="307 Temporary Redirect"),
        f"HTTP/1.1 {KEY}\r\n\r\n".encode(),
        f"{KEY}\r\n\r\n".encode(),
        f"HTTP/1.1 200 OK\r\nContent-Length: {KEY}\r\n\r\n".encode(),
    ],
    ids=range(9),
)
def test_no_failure_shows_the_key_though_the_server_says_it(monkeypatch, caplog, answer):
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    with Answers(answer) as server, caplog.at_level(logging.DEBUG):
        try:
            said = asked(server.url)
        except TeacherServerError as error:
            said = f"{error!r}"
        assert f"Bearer {KEY}".encode() in server.heads[0]
    assert KEY not in str(said) and KEY not in caplog.text


MODELS = {"data": [{"id": "a"}]}


@pytest.mark.parametrize(
    "answer",
    [http(MODELS), b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"],
    ids=["from the first byte", "after the head"],
)
def test_a_request_has_one_deadline_however_slowly_bytes_come(answer):
    begun = time.monotonic()
    with (
        Answers(answer, pause=0.02 if b"data" in answer else 0.001) as server,
        pytest.raises(TeacherServerError, match=r"has not answered for .* no complete answer within 0\.2 seconds"),
    ):
        asked(server.url, timeout=0.1, request_timeout=0.2)
    assert time.monotonic() - begun < 3


def test_a_slow_answer_delays_no_other():
    with Answers(http(MODELS), pause=0.02) as slow, Answers(http(MODELS)) as quick:
        said = []
        thread = threading.Thread(target=lambda: said.append(asked(slow.url, request_timeout=5.0)))
        thread.start()
        assert asked(quick.url) == MODELS
        thread.join()
        assert said == [MODELS]


BROKEN = {
    "gzip": (http(b"no gzip", headers={"Content-Encoding": "gzip"}), "broken compression"),
    "gzip, cut off": (http(gzip.compress(b"[]" * 99)[:-9], headers={"Content-Encoding": "gzip"}), "it is cut off"),
    "deflate": (http(b"no zlib", headers={"Content-Encoding": "deflate"}), "broken compression"),
    "another compression": (http(b"[]", headers={"Content-Encoding": "br"}), "compressed as 'br'"),
    "deep": (http("[" * 200_000), "nested too deeply"),
    "no JSON": (http("<html>"), "does not answer in JSON: is it a vLLM server"),
    "no text": (http(b"\xff\xfe\x00"), "does not answer in JSON"),
    "a number of many digits": (http("[" + "9" * 9999 + "]"), "does not answer in JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_answer_that_cannot_be_read_is_asked_for_again_and_then_named(name):
    answer, message = BROKEN[name]
    with Answers(answer, answer, http(MODELS)) as server:
        assert asked(server.url, timeout=5.0, request_timeout=5.0) == MODELS
    with Answers(answer) as server, pytest.raises(TeacherServerError, match=message + r".*\(4 times\)"):
        asked(server.url, timeout=5.0, request_timeout=5.0)


def test_compressed_answers_are_read():
    for coding, compress in (("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress)):
        with Answers(http(compress(b'["a"]'), headers={"Content-Encoding": coding})) as server:
            assert asked(server.url, request_timeout=5.0) == ["a"]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "compressed"])
def test_an_answer_is_read_no_further_than_its_request_explains(monkeypatch, packed):
    monkeypatch.setattr(wire, "_SHORT_ANSWER", 1000)
    long = b'"' + b"x" * 5000 + b'"'
    compressed = http(gzip.compress(long), headers={"Content-Encoding": "gzip"})
    with Answers(compressed if packed else http(long)) as server:
        with pytest.raises(TeacherServerError, match="an answer of more than 1,000 bytes, the most that the request"):
            asked(server.url, timeout=5.0, request_timeout=5.0)
        connection = Wire(server.url, 5.0, 5.0, RemoteStats())
        assert connection.send("GET", "/v1/models", count=4) == "x" * 5000


@pytest.mark.parametrize("status", ["204 No Content", "302 Found", "404 Not Found"])
def test_an_answer_of_another_status_is_none(status):
    with Answers(http(MODELS, status)) as server, pytest.raises(TeacherServerError, match=f"HTTP {status[:3]}"):
        asked(server.url)


def test_a_forked_process_has_a_loop_of_its_own(monkeypatch):
    before = fetch._loop()
    monkeypatch.setattr(fetch, "_running", before)
    fetch._forget()
    assert fetch._loop() is not before

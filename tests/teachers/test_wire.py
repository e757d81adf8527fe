"""Requests to a server: what it may do wrong, and what is said of it."""

import logging

import pytest

from lupi_trainer.teachers import wire
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

"""What servers answer that is none is said, not hidden by what was given up for it, and not waited for."""

import threading
import time

import pytest

from lupi_trainer.cli import main
from lupi_trainer.teachers.chat import ChatServer
from lupi_trainer.teachers.wire import TeacherServerError, check_url
from tests.documents.stand_in import StandIn


QUESTION = [{"role": "user", "content": "Who?"}]


@pytest.fixture
def server():
    made = StandIn(lambda body: "I.")
    yield made
    made.close()


class Answers(StandIn):
    """Answers `reply`, whatever is asked."""

    def __init__(self, reply):
        super().__init__(lambda body: "")
        handler = self.server.RequestHandlerClass
        handler.do_POST = lambda one: (one.rfile.read(int(one.headers["Content-Length"])), one.reply(200, reply))


@pytest.mark.parametrize(
    "reply, message",
    [
        ({"error": {"message": "is loading"}}, "no `choices`, but {'error': {'message': 'is loading'}}"),
        ({"choices": []}, "0 choices in place of one"),
        ({"choices": [{}]}, "a choice without a `message`"),
        ({"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}, "no text, but a int"),
    ],
)
def test_what_is_no_answer_is_shown(reply, message):
    server = Answers(reply)
    chat = ChatServer(server.url, "scripted", timeout=0.1)

    def job(given_up):
        return chat.wire.patiently(lambda: chat.reply(QUESTION, max_tokens=4), given_up=given_up)

    try:
        for _ in range(4):  # of several questions that fail at once, none hides the reason of another
            with pytest.raises(TeacherServerError) as error:
                chat.all((f"question {number}", job) for number in range(4))
            assert message in str(error.value)
    finally:
        server.close()


def test_a_usage_that_cannot_be_read_is_none():
    choice = {"message": {"content": "I."}, "finish_reason": "stop"}
    for usage in ("none", {"prompt_tokens": -5}):
        server = Answers({"choices": [choice], "usage": usage})
        assert ChatServer(server.url, "scripted").reply(QUESTION, max_tokens=4) == ("I.", True, None)
        server.close()


def test_a_question_that_is_refused_ends_those_that_wait(server):
    held = threading.Event()
    server.answer = lambda body: str(held.wait(20))
    chat = ChatServer(server.url, "scripted")

    def waits(given_up):
        return chat.wire.patiently(lambda: chat.reply(QUESTION, max_tokens=4), given_up=given_up)

    def fails(given_up):
        time.sleep(0.2)
        raise ValueError("no such thing")

    start = time.monotonic()
    with pytest.raises(ValueError, match="no such thing"):
        chat.all([("one", waits), ("another", fails)])
    assert time.monotonic() - start < 10
    held.set()


def test_no_key_that_a_server_says_again_is_shown(server, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "a-key-that-is-never-shown")
    server.answer, server.models = lambda body: "I was given a-key-that-is-never-shown", ("a-key-that-is-never-shown",)
    chat = ChatServer(server.url, None)
    assert chat.name == "***" and chat.reply(QUESTION, max_tokens=4).text == "I was given ***"


@pytest.mark.parametrize("url", ["http://h:99999", "http://h/v1#x", "http://h:x"])
def test_an_address_that_cannot_be_one(url):
    with pytest.raises(ValueError, match="a server's address"):
        check_url(url, "server")


def test_the_address_of_the_questions_themselves_will_do():
    assert check_url("http://h:8000/v1/chat/completions") == "http://h:8000"


@pytest.mark.parametrize(
    "more, message",
    [
        (["--server", " "], "--server: an address is needed"),
        (["--server", "http://h", "--server_timeout", "inf"], "--server_timeout must be above 0"),
        (["--server", "http://h", "--output", "FOLDER"], "is a folder, and a file is wanted"),
        (["--server", "http://h", "--max_new_tokens", "0"], "--max_new_tokens must be at least 1"),
        (["--server", "http://h", "--chat_template_kwargs", '{"tokenize": true}'], "'tokenize' is no variable"),
    ],
)
def test_what_cannot_be_is_said_before_a_server_is_asked(more, message, tmp_path, capsys):
    words = [str(tmp_path) if word == "FOLDER" else word for word in more]
    assert main(["evaluate", "--probes", "lab:probes-common", *words]) == 2
    assert message in capsys.readouterr().err

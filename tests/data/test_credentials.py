"""A secret that the process knows is in nothing that it says."""

import logging
import sys
import threading

import pytest

from lupi_trainer.cli import main
from lupi_trainer.data.credentials import guard_logs, guard_output, without_secrets
from lupi_trainer.scripts import run
from lupi_trainer.scripts.recipe_words import RecipeError


KEY = 'pass"phrase é 0123456789'


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", KEY + "\n")
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)  # in place of pytest's own
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)


def is_hidden(text: str) -> bool:
    return "***" in text and "phrase" not in text and "0123456789" not in text


@pytest.mark.parametrize("form", [str, repr, str.encode, "{{{!r}}}".format, "Bearer {}\n".format])
def test_a_secret_is_found_however_it_is_quoted(form):
    assert is_hidden(without_secrets(f"it is {form(KEY)}, is it not?"))
    assert without_secrets("nothing of it") == "nothing of it"


def test_short_and_empty_values_leave_messages_as_they_are(monkeypatch):
    monkeypatch.setenv("A_KEY", "")
    monkeypatch.setenv("B_TOKEN", "in")
    assert without_secrets("nothing in it") == "nothing in it"


def test_no_log_of_any_library_has_it_nor_its_traceback(caplog):
    guard_logs()
    guard_logs()
    logger = logging.getLogger("a.library")
    with caplog.at_level(logging.DEBUG):
        logger.debug("sent %r", {"key": KEY})
        assert is_hidden(caplog.text)
        caplog.clear()
        try:
            raise OSError(KEY)
        except OSError:
            logger.exception("it failed")
        assert is_hidden(caplog.text) and "Traceback" in caplog.text
        caplog.clear()
        logger.info("%d of %s", 1, "two")
        assert caplog.messages == ["1 of two"]


def failing() -> None:
    raise KeyError(KEY)  # of no class that is said in a line


def test_no_traceback_and_no_line_of_a_command_has_it(capsys):
    guard_output()
    thread = threading.Thread(target=failing)
    thread.start()
    thread.join()
    assert is_hidden(said := capsys.readouterr().err) and "Traceback" in said
    with pytest.raises(KeyError):
        run(failing)
    try:
        failing()
    except KeyError:
        sys.excepthook(*sys.exc_info())
    assert is_hidden(said := capsys.readouterr().err) and "in failing" in said

    def refused() -> None:
        raise RecipeError(f"no such recipe: {KEY}")

    assert run(refused) == 2
    assert is_hidden(capsys.readouterr().err)
    for arguments in (["ask", "x", "y", "--key", KEY], ["skd", "--config", KEY], [KEY], ["inspect", KEY]):
        try:
            main(arguments)
        except SystemExit:
            pass
        assert is_hidden(capsys.readouterr().err), arguments

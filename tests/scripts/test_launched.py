"""Signals under `accelerate launch`: launchers leave them to the training, and all end with one line, or together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lupi_trainer.scripts import launched
from lupi_trainer.training import signals
from lupi_trainer.training.signals import ENDING, Signalled, not_ignored, status_of


WORKER = """
import os, signal, sys, time
from lupi_trainer.scripts import launched

def work(main):
    {work}

launched.run = work
sys.exit(launched.main("sft", []))
"""


CASES = {
    "forwarded": "os.kill(os.getppid(), signal.{0}); time.sleep(60)",
    # the connection to a process that was interrupted first is gone
    "failed": "signal.signal(signal.{0}, signal.SIG_IGN); os.kill(os.getppid(), signal.{0}); time.sleep(0.2); "
    "raise RuntimeError('gone')",
    "asked before": "time.sleep(60)",
    "alone": "raise RuntimeError('a fault of its own')",
}


@pytest.fixture(autouse=True)
def no_nohup():
    """SIGHUP has its effect, whatever the tests were started with."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    "case, name",
    [*((case, "SIGINT") for case in CASES), *(("forwarded", name) for name in ("SIGTERM", "SIGHUP"))],
)
def test_an_interrupted_launch_has_the_status_of_its_signal_and_no_other(case, name, monkeypatch):
    """The worker stands for all that is launched; it ignores signals until it listens."""
    if case == "asked before":
        install = launched.signal.signal

        def at_once(number, handler):  # before the worker listens
            found = install(number, handler)
            if getattr(handler, "__name__", "") == "forward" and number == signal.SIGINT:
                os.kill(os.getpid(), signal.SIGINT)
            return found

        monkeypatch.setattr(launched.signal, "signal", at_once)
    before = [signal.getsignal(number) for number in ENDING]
    status = launched.launch([sys.executable, "-c", WORKER.format(work=CASES[case].format(name))])
    assert status == (1 if case == "alone" else 128 + getattr(signal, name))
    assert [signal.getsignal(number) for number in ENDING] == before


def test_what_nohup_ignores_reaches_nobody():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        work = "os.kill(os.getppid(), signal.SIGHUP); os.kill(os.getpid(), signal.SIGHUP); return 0"
        assert launched.launch([sys.executable, "-c", WORKER.format(work=work)]) == 0
        assert not_ignored() == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("killed", ["the command", "the launcher"])
def test_none_is_left_when_a_parent_is_killed(tmp_path, killed):
    """A launcher between the command and the worker, as `accelerate` is."""
    seen = f"open({str(tmp_path / 'seen')!r}, 'w').write(str(os.getpid()) + ' ' + os.environ[launched.FOLDER])"
    worker = WORKER.format(work=f"{seen}; time.sleep(60)")
    between = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {worker!r}]).returncode)"
    command = f"from lupi_trainer.scripts import launched; launched.launch([{sys.executable!r}, '-c', {between!r}])"
    process = subprocess.Popen([sys.executable, "-c", command])
    try:
        until(lambda: (tmp_path / "seen").exists() and " " in (tmp_path / "seen").read_text())
        number, folder = (tmp_path / "seen").read_text().split(" ")
        launcher = int(Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[1])
        os.kill(process.pid if killed == "the command" else launcher, signal.SIGKILL)
        until(lambda: not is_alive(int(number)) and not is_alive(launcher) and not Path(folder).exists())
        process.wait(10)
    finally:
        process.kill()


def until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_process_that_does_not_end_with_the_others_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(launched, "GRACE", 0.1)
    (tmp_path / "stopped").touch()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        assert launched.wait(process, tmp_path) == -signal.SIGKILL


def test_one_signal_counts_once_and_another_later_counts_again(tmp_path, monkeypatch):
    """From the terminal, and from the command that forwards it."""
    before = {number: signal.getsignal(number) for number in ENDING}
    monkeypatch.setattr(launched, "end_with", lambda folder: None)
    signals._last.clear()
    try:
        launched.listen(tmp_path)
        for number in ENDING:
            with pytest.raises(KeyboardInterrupt) as raised:
                signal.raise_signal(number)
            assert status_of(raised.value) == 128 + number
            signal.raise_signal(number)
        monkeypatch.setattr(signals, "TWICE", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        (tmp_path / "asked").write_text("15")
        with pytest.raises(Signalled) as raised:
            launched.listen(tmp_path)
        assert raised.value.number == 15
    finally:
        signals._last.clear()
        for number, handler in before.items():
            signal.signal(number, handler)

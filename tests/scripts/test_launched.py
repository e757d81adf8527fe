"""Ctrl-C under `accelerate launch`: launchers leave it to the training, and all end with one line."""

import os
import signal
import sys

import pytest

from lupi_trainer.scripts import launched


WORKER = """
import os, signal, sys, time
from lupi_trainer.scripts import launched

def work(main):
    {work}

launched.run = work
sys.exit(launched.main("sft", []))
"""


@pytest.mark.parametrize("case", ["forwarded", "failed", "asked before", "alone"])
def test_an_interrupted_launch_has_the_status_of_one_and_no_other(case, tmp_path, monkeypatch):
    """The worker stands for all that is launched; it ignores Ctrl-C until it listens."""
    ask = "os.kill(os.getppid(), signal.SIGINT)"
    work = {
        "forwarded": f"{ask}; time.sleep(60)",
        # the connection to a process that was interrupted first is gone
        "failed": f"signal.signal(signal.SIGINT, signal.SIG_IGN); {ask}; time.sleep(0.2); raise RuntimeError('gone')",
        "asked before": "time.sleep(60)",
        "alone": "raise RuntimeError('a fault of its own')",
    }[case]
    if case == "asked before":
        listen = launched.signal.signal

        def at_once(number, handler):  # before the worker listens
            found = listen(number, handler)
            if getattr(handler, "__name__", "") == "forward":
                os.kill(os.getpid(), signal.SIGINT)
            return found

        monkeypatch.setattr(launched.signal, "signal", at_once)
    before = signal.getsignal(signal.SIGINT)
    status = launched.launch([sys.executable, "-c", WORKER.format(work=work)])
    assert status == (1 if case == "alone" else 130)
    assert signal.getsignal(signal.SIGINT) == before


def test_one_ctrl_c_counts_once_and_another_later_counts_again(tmp_path, monkeypatch):
    """From the terminal, and from the command that forwards it."""
    before = signal.getsignal(signal.SIGINT)
    try:
        launched.listen(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(launched, "TWICE", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        (tmp_path / "asked").touch()
        with pytest.raises(KeyboardInterrupt):
            launched.listen(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)

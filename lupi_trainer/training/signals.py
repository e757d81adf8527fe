"""SIGTERM, SIGHUP and Ctrl-C: they end a process by an exception, or a training at its next step. Nothing heavy is
imported here."""

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from types import FrameType


TWICE = 1.0  # seconds: one signal may come from the terminal or a scheduler, and from the command that forwards it
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signalled(KeyboardInterrupt):
    """A signal that ends the process.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, text: str = ""):
        super().__init__(*filter(None, [text]))
        self.number = number


def status_of(error: BaseException) -> int:
    """The exit status after Ctrl-C or another signal, as shells have it."""
    return 128 + getattr(error, "number", signal.SIGINT)


class AtNextStep:
    """What SIGTERM asks for while a training can end at its next step.

    Attributes:
        asked: whether there was one.
        active: whether steps are being taken.
    """

    def __init__(self) -> None:
        self.asked = self.active = False


_training: AtNextStep | None = None
_last: dict[int, float] = {}


def answer(number: int, frame: FrameType | None) -> None:
    """The handler of signals: the first SIGTERM in a training that saves is kept until its next step.

    Raises:
        Signalled: any other, but for the same one again within a second.
    """
    now = time.monotonic()
    if now - _last.get(number, -TWICE) < TWICE:
        return
    _last[number] = now
    if number == signal.SIGTERM and _training is not None and _training.active and not _training.asked:
        _training.asked = True
        if os.environ.get("RANK", "0") == "0":
            os.write(2, b"SIGTERM: a checkpoint is saved after this step, and the run ends there\n")
        return
    raise Signalled(number)


def not_ignored(signals: Iterable[int] = ENDING) -> list[int]:
    """Those of the signals that whoever started this process (`nohup`) does not want ignored."""
    return [n for n in signals if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None], signals: Iterable[int]) -> Generator[None]:
    """Inside, signals have a handler, and afterwards the one that they had."""
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


@contextmanager
def answering() -> Generator[None]:
    """Inside, SIGTERM and SIGHUP are answered, where they would end the process; Python answers Ctrl-C by itself."""
    signals = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        signals = []
    _last.clear()
    with handled(answer, signals):
        yield


@contextmanager
def ending_at_next_step(wish: AtNextStep) -> Generator[None]:
    """Inside, SIGTERM is kept in `wish` while it is active."""
    global _training
    before, _training = _training, wish
    try:
        yield
    finally:
        _training = before

"""One run a folder: a file that says who trains into it, and whose time moves on as long as they do.

Whether a process of this machine still runs is asked of the system. Of another machine, or of another container, only
the file tells, which may lie on a disk that they share: its holder touches it every few seconds, and clocks of several
machines are never compared. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..data.credentials import without_secrets


logger = logging.getLogger(__name__)

FILE = "run.lock"
BEAT = 5.0  # seconds from one touch to the next
PATIENCE = 60.0  # seconds without one after which a holder elsewhere is taken to have ended; disks may be slow to tell
_TICK = 0.5  # seconds


class RunTaken(ValueError):
    """Another run trains into the folder; the message names it."""


def _start_of(pid: int) -> str | None:
    """When a process of this machine was started, so that its number cannot be another's; `None` if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except OSError:
        return None
    with suppress(ProcessLookupError):  # a system without /proc
        os.kill(pid, 0)
        return ""
    return None


def _place() -> str:
    """Where a process number means the same: this machine since it was started, and this container."""
    parts = [socket.gethostname()]
    for read in (Path("/proc/sys/kernel/random/boot_id").read_text, lambda: os.readlink("/proc/self/ns/pid")):
        with suppress(OSError):
            parts.append(read().strip())
    return " ".join(parts)


@dataclass(frozen=True)
class Holder:
    """Who trains into a folder: host, process and command, and what tells them from all others."""

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    since: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))
    command: str = field(
        default_factory=lambda: without_secrets(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))[:120]
    )
    place: str = field(default_factory=_place)
    start: str | None = field(default_factory=lambda: _start_of(os.getpid()))
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since} ({self.command})"

    def runs(self) -> bool | None:
        """Whether it still runs; `None` where that cannot be asked from here."""
        return None if self.place != _place() else _start_of(self.pid) == self.start


def read(path: Path) -> Holder | None:
    """Who a lock names; `None` where there is none, or no more than its beginning."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Holder(**content) if type(content["pid"]) is int else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def taken(folder: str | Path) -> str | None:
    """What is said of a folder into which a process of this machine trains; `None` if none is known to."""
    holder = read(Path(folder) / FILE)
    if holder is None or not holder.runs() or holder.pid == os.getpid():
        return None
    return _refusal(folder, holder)


def _refusal(folder: str | Path, holder: Holder | None) -> str:
    return f"{folder} is trained into by {holder or 'another run'}: wait for its end, or take another output_dir"


def _beats(path: Path, content: bytes) -> bool:
    """Whether a lock is touched while it is looked at."""
    end, first = time.monotonic() + PATIENCE, None
    while time.monotonic() < end:
        try:
            with open(path, "rb") as file:  # opened anew, since only then a disk that is shared tells what is new
                now = (os.fstat(file.fileno()).st_mtime_ns, file.read())
        except FileNotFoundError:
            return False
        first = first or now
        if now != first or now[1] != content:
            return True
        time.sleep(_TICK)
    return False


class RunLock:
    """The lock of this process on a folder; see [`holding`].

    Raises:
        RunTaken: another run has it.
        OSError: nothing can be written there.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.path, self.count = Path(folder), Path(folder) / FILE, 1
        self.is_new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.holder = Holder()
        while not self._create():
            self._remove_if_stale()
        self.over = threading.Event()
        threading.Thread(target=self._beat, name="run-lock", daemon=True).start()

    def _create(self) -> bool:
        try:
            number = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with open(number, "w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self.holder), indent=1))
        return True

    def _remove_if_stale(self) -> None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        holder = read(self.path)
        runs = None if holder is None else holder.runs()
        if runs is None:
            who = holder or "whoever holds it"
            logger.warning(f"{self.path}: looking for up to {PATIENCE:g} seconds whether {who} still runs")
            runs = _beats(self.path, content)
        if runs:
            raise RunTaken(_refusal(self.folder, holder))
        aside = self.path.with_name(f"{FILE}.{self.holder.token}")
        with suppress(FileNotFoundError):
            self.path.rename(aside)
            if aside.read_bytes() != content:  # another one was quicker, and has it now
                with suppress(OSError):
                    os.link(aside, self.path)
            else:
                logger.warning(f"{self.path}: {holder or 'a run'} has ended without taking its lock away")
            aside.unlink()

    def _beat(self) -> None:
        while not self.over.wait(BEAT):
            with suppress(OSError):
                if self.is_ours():
                    os.utime(self.path)

    def is_ours(self) -> bool:
        """Whether nobody has taken it over, as from a process that was halted for long."""
        found = read(self.path)
        return found is not None and found.token == self.holder.token

    def release(self) -> None:
        self.over.set()
        if self.is_ours():
            self.path.unlink(missing_ok=True)
        if self.is_new:
            with suppress(OSError):  # something was written
                self.folder.rmdir()


_held: dict[str, RunLock] = {}


@contextmanager
def holding(folder: str | Path) -> Generator[RunLock]:
    """Inside, this process has the lock on a folder; it may ask for it several times.

    Raises:
        RunTaken: another run has it.
    """
    name = os.path.realpath(folder)
    if (lock := _held.get(name)) is not None and lock.holder.pid == os.getpid():
        lock.count += 1
    else:
        lock = _held[name] = RunLock(folder)
    try:
        yield lock
    finally:
        lock.count -= 1
        if not lock.count:
            del _held[name]
            lock.release()


def require_held(folder: str | Path) -> None:
    """Before something is written: that no other run has taken the folder over.

    Raises:
        RunTaken: one has.
    """
    lock = _held.get(os.path.realpath(folder))
    if lock is not None and lock.holder.pid == os.getpid() and not lock.is_ours():
        raise RunTaken(_refusal(folder, read(lock.path)))

"""A training script under `accelerate launch`, and the signals there: the script ends as it would alone, the launchers
between are spared their tracebacks, and the exit status is that of the signal.

The launchers ignore Ctrl-C, SIGTERM and SIGHUP, which the processes of the training answer. A folder tells both sides
what the other does: `asked` holds the signal once there was one, `stopped` the exit status once a process has obeyed,
there is a `pid-N` for each process that listens, and the command holds a lock on `alive` until it ends in any way:
then the processes end, too.
"""

import fcntl
import importlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from ..training.signals import ENDING, Signalled, answer, handled, not_ignored, status_of
from . import leave, run


FOLDER = "LUPI_STOP_FOLDER"
SIGNALS = "LUPI_STOP_SIGNALS"  # those that are answered
GRACE = 30.0  # seconds that the other processes have after the first one has stopped
_TICK = 0.2  # seconds


def launch(command: list[str]) -> int:
    """Run a launcher whose processes run [`main`]; returns its exit status, or that of a signal."""
    with TemporaryDirectory(prefix="lupi-") as name, open(Path(name) / "alive", "w") as alive:
        folder, signals = Path(name), not_ignored()
        fcntl.flock(alive, fcntl.LOCK_EX)

        def forward(number: int, frame: FrameType | None) -> None:
            if not (folder / "asked").exists():
                write_whole(folder / "asked", str(int(number)))
            signal_all(folder, number)

        def ignore() -> None:  # in the launcher, which hands it down
            for number in signals:
                signal.signal(number, signal.SIG_IGN)

        environment = {**os.environ, FOLDER: name, SIGNALS: ",".join(str(int(n)) for n in signals)}
        environment["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # torchrun's handlers end in a traceback
        with handled(forward, signals):
            process = subprocess.Popen(command, env=environment, preexec_fn=ignore)
            try:
                status = wait(process, folder)
            finally:
                if process.poll() is None:
                    process.kill()
        return int((folder / "stopped").read_text()) if (folder / "stopped").exists() else status


def wait(process: subprocess.Popen, folder: Path) -> int:
    """The exit status of a launcher; it is killed where one process has stopped and others do not."""
    stopped = None
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_TICK)
        if (folder / "stopped").exists():
            stopped = stopped or time.monotonic()
            if time.monotonic() - stopped > GRACE:
                process.kill()


def signal_all(folder: Path, number: int) -> None:
    """Send a signal to all processes that listen."""
    for listening in folder.glob("pid-*"):
        with suppress(ProcessLookupError):  # it has ended
            os.kill(int(listening.name.removeprefix("pid-")), number)


def listen(folder: Path) -> None:
    """Answer signals from now on, and end with the command that launched this process.

    Raises:
        Signalled: there was one already.
    """
    for number in map(int, os.environ.get(SIGNALS, ",".join(str(int(n)) for n in ENDING)).split(",")):
        signal.signal(number, answer)
    threading.Thread(target=end_with, args=(folder,), daemon=True).start()
    (folder / f"pid-{os.getpid()}").touch()
    if (folder / "asked").exists():
        raise Signalled(int((folder / "asked").read_text() or signal.SIGINT))


def end_with(folder: Path) -> None:
    """Wait until the lock on `alive` is free, which is when whoever holds it has ended, and end this process."""
    with suppress(OSError), open(folder / "alive") as alive:
        fcntl.flock(alive, fcntl.LOCK_SH)
        shutil.rmtree(folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGKILL)


def main(script: str, args: list[str]) -> int:
    """Run a training script; 0 where it was interrupted, since launchers have tracebacks for everything else."""
    folder = Path(os.environ[FOLDER])
    try:
        listen(folder)
        status = run(lambda: importlib.import_module(f"lupi_trainer.scripts.{script}").main(args))
    except KeyboardInterrupt as error:
        status = status_of(error)
    except Exception:
        # another process that was interrupted first leaves this one alone in the middle of their work
        if not (folder / "asked").exists():
            raise
        status = 128 + int((folder / "asked").read_text() or signal.SIGINT)
    if status <= 128:
        return status
    write_whole(folder / "stopped", str(status))
    return 0


def write_whole(path: Path, text: str) -> None:
    """Write a file that another process waits for."""
    part = path.with_name(f"{path.name}-{os.getpid()}")
    part.write_text(text)
    part.replace(path)


if __name__ == "__main__":
    leave(lambda: main(sys.argv[1], sys.argv[2:]))

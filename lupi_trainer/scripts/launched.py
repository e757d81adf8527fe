"""A training script under `accelerate launch`, and Ctrl-C there: the script ends as it would alone, the launchers
between are spared their tracebacks, and the exit status is that of an interruption.

The launchers ignore Ctrl-C, which the processes of the training answer. A folder tells both sides what the other does:
`asked` is there once there was one, `stopped` once a process has obeyed, and `pid-N` for each process that listens.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from . import INTERRUPTED, leave, run


FOLDER = "LUPI_STOP_FOLDER"
TWICE = 1.0  # seconds: one Ctrl-C may come from the terminal, and from the command that forwards it


def launch(command: list[str]) -> int:
    """Run a launcher whose processes run [`main`]; returns its exit status, or that of an interruption."""
    with TemporaryDirectory(prefix="lupi-") as name:
        folder = Path(name)

        def forward(number: int, frame: FrameType | None) -> None:
            (folder / "asked").touch()
            for listening in folder.glob("pid-*"):
                try:
                    os.kill(int(listening.name.removeprefix("pid-")), signal.SIGINT)
                except ProcessLookupError:  # it has ended
                    pass

        # torchrun's own handler of Ctrl-C would end in a traceback
        environment = {**os.environ, FOLDER: name, "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGHUP,SIGQUIT"}
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the launchers inherit
        try:
            process = subprocess.Popen(command, env=environment)
            signal.signal(signal.SIGINT, forward)
            status = process.wait()
        finally:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)
        return INTERRUPTED if (folder / "stopped").exists() else status


def listen(folder: Path) -> None:
    """Answer Ctrl-C from now on.

    Raises:
        KeyboardInterrupt: there was one already.
    """
    last = -TWICE

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= TWICE:
            last = now
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    (folder / f"pid-{os.getpid()}").touch()
    if (folder / "asked").exists():
        raise KeyboardInterrupt


def main(script: str, args: list[str]) -> int:
    """Run a training script; 0 where it was interrupted, since launchers have tracebacks for everything else."""
    folder = Path(os.environ[FOLDER])
    try:
        listen(folder)
        status = run(lambda: importlib.import_module(f"lupi_trainer.scripts.{script}").main(args))
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception:
        # another process that was interrupted first leaves this one alone in the middle of their work
        if not (folder / "asked").exists():
            raise
        status = INTERRUPTED
    if status != INTERRUPTED:
        return status
    (folder / "stopped").touch()
    return 0


if __name__ == "__main__":
    leave(lambda: main(sys.argv[1], sys.argv[2:]))

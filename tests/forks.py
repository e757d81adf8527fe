"""Processes forked from one that has imported what the tests import, and has run none of them.

Each starts in a fraction of a second, where importing torch and the libraries around it takes many.
"""

import atexit
import contextlib
import importlib
import inspect
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import warnings
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from tqdm import tqdm


CONTEXT = multiprocessing.get_context("forkserver")  # whose processes have no thread of another's


def start() -> None:
    """Make this process's server of forks: a fork of what it is now, instead of a new Python."""
    tqdm.get_lock()  # made here, it is not made by every fork, of which those that are killed would leave it
    resource_tracker.ensure_running()
    before = set(os.listdir("/proc/self/fd"))

    def fork(path: str, arguments: list[str], handed: list[int]) -> int:
        if process := os.fork():
            return process
        for name in set(os.listdir("/proc/self/fd")) - before - set(map(str, handed)):
            with contextlib.suppress(OSError):
                os.close(int(name))  # above all, the end whose closing tells the server that nobody needs it
        for stream in (1, 2):  # what a fork has to say, it hands over in a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        try:
            forkserver.main(*handed, [])
        finally:
            os._exit(0)

    with mock.patch.object(util, "spawnv_passfds", fork):
        forkserver.ensure_running()


def _be(arguments: list[str]) -> None:
    """Run a module (-m) or code (-c) as this process's program. Never returns."""
    kind, program, *rest = arguments
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    sys.argv = [program, *rest]
    atexit._clear()  # what pytest left for the end is not this program's
    importlib.reload(warnings).simplefilter("default")  # pytest may be keeping them for itself
    status = 1
    try:
        if kind == "-m":
            sys.modules.pop(program, None)
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


EXECUTE = subprocess.Popen._execute_child
EXECUTED_WITH = list(inspect.signature(EXECUTE).parameters)


def execute_or_fork(process: subprocess.Popen, *given) -> None:
    """In place of what starts `subprocess`'s processes: a Python that a fork starts is a fork, too."""
    known = dict(zip(EXECUTED_WITH, (process, *given)))
    python, *arguments = known["args"] if isinstance(known["args"], (list, tuple)) else [known["args"]]
    while arguments and arguments[0] == "-u":
        del arguments[0]
    if python != sys.executable or arguments[0] not in ("-m", "-c"):
        return EXECUTE(process, *given)
    process.pid = os.fork()
    if not process.pid:
        for stream, name in enumerate(("p2cread", "c2pwrite", "errwrite")):
            if known[name] not in (-1, stream):
                os.dup2(known[name], stream)
        if known["start_new_session"]:
            os.setsid()
        if known["cwd"]:
            os.chdir(known["cwd"])
        if known["env"] is not None:
            os.environ.clear()
            os.environ.update(known["env"])
        _be(arguments)
    process._child_created = True
    for mine, theirs in (("p2cwrite", "p2cread"), ("c2pread", "c2pwrite"), ("errread", "errwrite")):
        if known[mine] != -1:
            os.close(known[theirs])


def _program(arguments: list[str], cwd: str, environment: dict[str, str], folder: str) -> None:
    os.setsid()
    with mock.patch.object(subprocess.Popen, "_execute_child", execute_or_fork), contextlib.ExitStack() as stack:
        streams = [stack.enter_context(open(Path(folder, name), "w")) for name in ("stdout", "stderr")]
        sys.path.insert(0, cwd)
        started = subprocess.Popen(
            [sys.executable, *arguments], stdout=streams[0], stderr=streams[1], cwd=cwd, env=environment
        )
    os._exit(started.wait() % 256)


def launch(*arguments: str, folder: str, cwd=".", env: dict[str, str] | None = None):
    """As `subprocess.Popen([sys.executable, *arguments])`, writing to files in a folder; -m and -c are known."""
    environment = dict(os.environ) if env is None else env
    process = CONTEXT.Process(target=_program, args=([*arguments], str(Path(cwd).resolve()), environment, folder))
    process.start()
    return process


def run(*arguments: str, timeout: float = 240, **options):
    """As `subprocess.run([sys.executable, *arguments], capture_output=True, text=True)`; see `launch`."""
    with TemporaryDirectory() as folder:
        process = launch(*arguments, folder=folder, **options)
        process.join(timeout)
        out, err = (Path(folder, name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(arguments, timeout, out, err)
        return subprocess.CompletedProcess([*arguments], process.exitcode, out, err)

"""Training scripts, one a method, for `accelerate launch` and for the command `lupi`."""

import atexit
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import NoReturn

from ..data.credentials import guard_output, without_secrets
from ..training.signals import answering, status_of
from .quiet import quiet_early


quiet_early()  # before what says it is imported


@contextmanager
def setting_up() -> Generator[None]:
    """While a run is set up, whatever a library says of its recipe is one line, and not a traceback.

    Raises:
        RecipeError: in place of a library's error (its cause); errors of this package pass as they are.
        Stopped: Ctrl-C, or another signal that ends the process.
    """
    from ..training.progress import quiet_bars
    from ..training.stopping import Stopped
    from .recipe_words import RecipeError, one_line
    from .run_notes import collect_warnings

    collect_warnings()
    try:
        with quiet_bars():
            yield
    except KeyboardInterrupt as stop:
        raise Stopped("stopped before the first step", stop) from None
    except Exception as error:
        if _is_ours(error):
            raise
        raise RecipeError(f"the run cannot be set up: {one_line(error)}") from error


def stopped(error: KeyboardInterrupt) -> int:
    """The exit status after Ctrl-C or another signal, of which one process says where it came."""
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):  # a terminal that is gone
            print(str(error) or "stopped", file=sys.stderr, flush=True)
    return status_of(error)


def run(main: Callable[[], int | None]) -> int:
    """Run a script and return its exit status; what the user can mend is said in one line, without a traceback."""
    from .recipe_words import RecipeError

    guard_output()
    try:
        with answering():
            return main() or 0
    except KeyboardInterrupt as stop:
        return stopped(stop)
    except Exception as error:
        # its message names the record or the key
        ours = isinstance(error, (ValueError, TypeError, ArithmeticError, RuntimeError, OSError)) and _is_ours(error)
        if not ours and not isinstance(error, RecipeError) and not _is_of_a_file(error) and not _is_remote(error):
            raise
        print(f"error: {without_secrets(str(error))}", file=sys.stderr)
        return 2


def _is_of_a_file(error: BaseException) -> bool:
    """Whether it is an error of a file that it names, or of a disk without room."""
    from ..training.full_disk import DiskFull

    if isinstance(error, (DiskFull, FileNotFoundError)):
        return True
    return isinstance(error, OSError) and error.filename is not None


def _is_remote(error: BaseException) -> bool:
    """Whether the Hub or a teacher's server has failed."""
    from ..publishing.push import HubError  # here, where the libraries that raise it are loaded
    from ..teachers.wire import TeacherServerError

    return isinstance(error, (HubError, TeacherServerError))


def leave(main: Callable[[], int | None]) -> NoReturn:
    """Run a script as this process's last work, and end the process with its exit status.

    One of several processes ends without the interpreter's own tear-down: that one frees the process group while it
    holds the interpreter's lock, and joins worker threads (gloo's) that may still need the lock to let go of a tensor,
    which hangs the process, and with it the launch. What registered for the exit (W&B, for one) still runs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        sys.exit(run(main))
    try:
        status = run(main)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _is_ours(error: BaseException) -> bool:
    """Whether the error was raised by this package itself, and not inside a library."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_globals.get("__name__", "").startswith("lupi_trainer")

"""Training scripts, one a method, for `accelerate launch` and for the command `lupi`."""

import atexit
import os
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NoReturn


INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


@contextmanager
def setting_up() -> Generator[None]:
    """While a run is set up, whatever a library says of its recipe is one line, and not a traceback.

    Raises:
        RecipeError: in place of a library's error (its cause); errors of this package pass as they are.
    """
    from ..training.progress import quiet_bars
    from .recipe_parser import RecipeError, one_line

    try:
        with quiet_bars():
            yield
    except Exception as error:
        if _is_ours(error):
            raise
        raise RecipeError(f"the run cannot be set up: {one_line(error)}") from error


def stopped(error: KeyboardInterrupt) -> int:
    """The exit status after Ctrl-C, of which one process says where it came."""
    if os.environ.get("RANK", "0") == "0":
        print(str(error) or "stopped before the first step", file=sys.stderr, flush=True)
    return INTERRUPTED


def run(main: Callable[[], int | None]) -> int:
    """Run a script and return its exit status; what the user can mend is said in one line, without a traceback."""
    from ..publishing.push import HubError
    from ..teachers.wire import TeacherServerError
    from .recipe_parser import RecipeError

    try:
        return main() or 0
    except KeyboardInterrupt as stop:
        return stopped(stop)
    except (RecipeError, FileNotFoundError, HubError, TeacherServerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ValueError, TypeError, ArithmeticError) as error:
        # its message names the record or the key
        if _is_ours(error):
            print(f"error: {error}", file=sys.stderr)
            return 2
        raise


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
    except BaseException:
        traceback.print_exc()
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

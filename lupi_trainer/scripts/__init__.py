"""Training scripts, one a method, for `accelerate launch` and for the command `lupi`."""

import sys
from collections.abc import Callable


def run(main: Callable[[], int | None]) -> int:
    """Run a script and return its exit status; what the user can mend is said in one line, without a traceback."""
    from ..recipe_parser import RecipeError

    try:
        return main() or 0
    except (RecipeError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ValueError, TypeError) as error:
        # raised while the run is set up: its message names the record or the key
        if _is_ours(error):
            print(f"error: {error}", file=sys.stderr)
            return 2
        raise


def _is_ours(error: BaseException) -> bool:
    """Whether the error was raised by this package itself, and not inside a library."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_globals.get("__name__", "").startswith("lupi_trainer")

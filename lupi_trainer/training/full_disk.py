"""A disk without room: how it is known, whatever library says it."""

import errno
import re


_WORDS = re.compile(r"No space left on device|Disk quota exceeded|os error 28\b|PytorchStreamWriter failed writing")


class DiskFull(OSError):
    """Nothing more could be written; the message says what is whole, and how the run goes on."""


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is that of a disk without room."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False

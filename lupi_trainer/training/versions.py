"""The newest TRL and transformers that the trainers are tested with; a newer one is used, and said once.

The oldest ones are the lower bounds in pyproject.toml. `make test-versions` runs the quick tests with both ends.
"""

import warnings
from importlib.metadata import version

from packaging.version import Version


NEWEST_TESTED = {"trl": "1.16", "transformers": "5.24"}


def warn_if_newer() -> None:
    """Warn of an installed release (its first two numbers) that is newer than what is tested."""
    newer = [
        f"{name} {installed} (tested up to {tested})"
        for name, tested in NEWEST_TESTED.items()
        if Version(installed := version(name)).release[:2] > Version(tested).release
    ]
    if newer:
        warnings.warn(
            f"not tested with {' and '.join(newer)}: should training fail, install the release that is tested",
            RuntimeWarning,
            stacklevel=2,
        )

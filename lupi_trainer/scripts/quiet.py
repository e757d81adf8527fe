"""Lines of other libraries that are about nothing which a user of a recipe can change: not shown.

Each is named by its own words; whatever else a library says is shown as before.
"""

import logging
import warnings


# logger -> beginnings of messages
MESSAGES: dict[str, tuple[str, ...]] = {
    # of a faster product of 4-bit weights on a CPU, which `kernels` would download
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward from kernels-community",),
}
# beginnings of warnings (regular expressions), each with its category
WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # TRL's own default and calls have the older names
    (r"`(is_)?gradient_checkpointing\w*` is deprecated", FutureWarning),
)


class _Without(logging.Filter):
    """Leaves out messages by how they begin."""

    def __init__(self, beginnings: tuple[str, ...]):
        super().__init__()
        self.beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginnings)


def quiet_early() -> None:
    """Before libraries are imported: what they say while they are."""
    for name, beginnings in MESSAGES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Without) for known in logger.filters):
            logger.addFilter(_Without(beginnings))
    for message, category in WARNINGS:
        warnings.filterwarnings("ignore", message, category)

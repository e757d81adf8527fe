"""A bar for what takes long and is not a training step: rollouts and closed-book questions."""

from __future__ import annotations

import time

from rich.console import Console
from rich.control import Control
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class WorkBar:
    """A context in which `update` shows what is done; silent where the output is not a terminal.

    The bar appears after `delay` seconds, so that short work shows none, and is gone when the work is.

    Args:
        what: one word for the work.
        total: rows to be done.
        enabled: `False` shows nothing.
        console: where it is shown (default: standard error).
        delay: seconds.
    """

    def __init__(
        self, what: str, total: int, enabled: bool = True, console: Console | None = None, delay: float = 1.0
    ):
        self.what, self.total, self.delay = what, total, delay
        self.console = console or Console(stderr=True)
        self.enabled = enabled and self.console.is_terminal
        self.bar: Progress | None = None

    def __enter__(self) -> WorkBar:
        self.start = time.perf_counter()
        return self

    def update(self, done: int, tokens: int, acceptance: float | None = None) -> None:
        """Rows done so far, tokens written so far, and the share of drafted tokens that were accepted."""
        seconds = time.perf_counter() - self.start
        if not self.enabled or seconds < self.delay:
            return
        if self.bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.console.control(Control.move_to_column(0))  # over the training bar's line, which draws itself again
            self.bar.start()
            self.task = self.bar.add_task(self.what, total=self.total, note="")
        note = f"{tokens / seconds:,.0f} tokens/s"
        if acceptance is not None:
            note += f", {acceptance:.0%} accepted"
        self.bar.update(self.task, completed=done, note=note)

    def on_round(self, stats) -> None:
        """[`WorkBar.update`] with the `RolloutStats` of a rollout that is under way."""
        self.update(stats.finished, stats.committed, stats.accepted / max(stats.drafted, 1))

    def __exit__(self, *error) -> None:
        if self.bar is not None:
            self.bar.refresh()
            self.bar.stop()

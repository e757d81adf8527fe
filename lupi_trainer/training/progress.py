"""The bars: of what takes long and is not a training step (rollouts, questions), and of a training around them."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.control import Control
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


REDRAWN_EVERY = 0.1  # seconds: more often nobody sees


@contextmanager
def quiet_bars(everywhere: bool = False) -> Generator[None]:
    """Inside, other libraries show no bars of weights, shards and records: not beside one of ours (`everywhere`), and
    never where there is no terminal, but a file that they would fill."""
    import datasets
    from transformers.utils import logging as transformers_logging

    if sys.stderr.isatty() and not everywhere:
        yield
        return
    with ExitStack() as before:
        if transformers_logging.is_progress_bar_enabled():
            transformers_logging.disable_progress_bar()
            before.callback(transformers_logging.enable_progress_bar)
        if datasets.are_progress_bars_disabled() is False:
            datasets.disable_progress_bars()
            before.callback(datasets.enable_progress_bars)
        yield


def _stream_handlers() -> Iterator[logging.StreamHandler]:
    """The handlers of all loggers that write to a stream."""
    loggers = [logging.root, *(x for x in logging.root.manager.loggerDict.values() if isinstance(x, logging.Logger))]
    for handler in {id(h): h for logger in loggers for h in logger.handlers}.values():
        if isinstance(handler, logging.StreamHandler):
            yield handler


class Bar:
    """One line at the bottom of a terminal; what is printed or logged meanwhile comes above it, in complete lines.

    Args:
        what: left of the bar.
        total: how much is to be done.
        done: how much of it was done before.
        console: where it is shown (default: standard error).
        enabled: `False` shows nothing, and so does a console that is no terminal.
    """

    def __init__(
        self, what: str, total: int, done: int = 0, console: Console | None = None, enabled: bool = True
    ) -> None:
        self.console = console or Console(stderr=True)
        self.shown = enabled and self.console.is_terminal
        self.what, self.total, self.done, self.text = what, total, done, ""
        self.drawn = 0.0
        self.progress: Progress | None = None
        self.turned: list[tuple[logging.StreamHandler, object]] = []

    def __enter__(self) -> Bar:
        if not self.shown:
            return self
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        # what goes to a file stays there; and no thread draws, so that there is none to be interrupted
        self.progress = Progress(
            *columns, console=self.console, transient=True, redirect_stdout=sys.stdout.isatty(), auto_refresh=False
        )
        self.console.control(Control.move_to_column(0))  # over the line of a bar that is not ours
        streams = sys.stderr, sys.stdout
        self.progress.start()
        now = sys.stderr, sys.stdout
        for handler in _stream_handlers():  # which were made with the streams of then
            for stream, turned in zip(streams, now):
                if handler.stream is stream is not turned:
                    self.turned.append((handler, stream))
                    handler.setStream(turned)
        self.task = self.progress.add_task(self.what, total=self.total, completed=self.done, note=self.text)
        self.progress.refresh()
        return self

    def step(self, done: int) -> None:
        """So much is done by now."""
        self.done = done
        self._draw(0.0)

    def note(self, text: str) -> None:
        """What goes on meanwhile, right of the bar."""
        self.text = text
        self._draw(REDRAWN_EVERY if text else 0.0)

    def at(self, done: int, text: str) -> None:
        """So much is done by now, and what goes on meanwhile; called as often as one likes."""
        self.done, self.text = done, text
        self._draw(REDRAWN_EVERY)

    def _draw(self, after: float) -> None:
        if self.progress is not None and time.monotonic() - self.drawn >= after:
            self.drawn = time.monotonic()
            self.progress.update(self.task, completed=self.done, note=self.text, refresh=True)

    def __exit__(self, *error) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
        for handler, stream in self.turned:
            handler.setStream(stream)
        self.turned.clear()


class WorkBar:
    """A context in which `update` shows what is done; silent where the output is not a terminal.

    The bar appears after `delay` seconds, so that short work shows none, and is gone when the work is.

    Args:
        what: one word for the work.
        total: rows to be done.
        enabled: `False` shows nothing.
        console: where it is shown (default: standard error).
        delay: seconds.
        within: the bar that is shown already: the work becomes its note, so that there is one bar at a time.
    """

    def __init__(
        self,
        what: str,
        total: int,
        enabled: bool = True,
        console: Console | None = None,
        delay: float = 1.0,
        within: Bar | None = None,
    ):
        self.what, self.total, self.delay, self.within = what, total, delay, within
        self.bar = Bar(what, total, console=console, enabled=enabled and within is None)
        self.enabled = enabled and (self.bar if within is None else within).shown
        self.begun = False

    def __enter__(self) -> WorkBar:
        self.start = time.perf_counter()
        return self

    def update(self, done: int, tokens: int | None = None, acceptance: float | None = None) -> None:
        """Rows done so far, tokens written so far, and the share of drafted tokens that were accepted."""
        seconds = time.perf_counter() - self.start
        if not self.enabled or seconds < self.delay:
            return
        notes = [] if tokens is None else [f"{tokens / seconds:,.0f} tokens/s"]
        if acceptance is not None:
            notes.append(f"{acceptance:.0%} accepted")
        if self.within is not None:
            self.within.note(", ".join([f"{self.what} {done} of {self.total}", *notes]))
            return
        if not self.begun:
            self.bar.__enter__()
            self.begun = True
        self.bar.at(done, ", ".join(notes))

    def on_round(self, stats) -> None:
        """[`WorkBar.update`] with the `RolloutStats` of a rollout that is under way."""
        self.update(stats.finished, stats.committed, stats.accepted / max(stats.drafted, 1))

    def __exit__(self, *error) -> None:
        if self.within is not None:
            self.within.note("")
        elif self.begun:
            self.bar.__exit__(*error)

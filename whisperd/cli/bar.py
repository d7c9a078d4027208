"""A progress bar with the time left, on a terminal's stderr; nothing at all elsewhere.

Files count as done in fractions, as far as the daemon says how much of each is transcribed, so that one long
file moves the bar too.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol

from whisperd.client.results import Transcript
from whisperd.client.sync import Pending

REFRESH_S = 0.2


class Bar(Protocol):
    """What the batch tells about its progress; `started` and `finished` come from any thread."""

    shows_progress: bool

    def started(self, pending: Pending[Transcript]) -> None:
        """A request is under way."""

    def finished(self, pending: Pending[Transcript] | None) -> None:
        """An input is done with, whether it worked or not; None where it was never sent."""

    def refresh(self) -> None:
        """To be called now and then."""

    def hidden(self) -> contextlib.AbstractContextManager[None]:
        """Takes the bar off the screen while something is printed."""


class NoBar:
    """For pipes, files and --quiet."""

    shows_progress = False

    def started(self, pending: Pending[Transcript]) -> None:
        """Not shown."""

    def finished(self, pending: Pending[Transcript] | None) -> None:
        """Not shown."""

    def refresh(self) -> None:
        """Not shown."""

    def hidden(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class RichBar:
    """A bar of the whole command, `count` inputs long."""

    shows_progress = True

    def __init__(self, count: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._lock = threading.Lock()
        self._running: set[Pending[Transcript]] = set()
        self._done = 0
        self._count = count
        self._progress = Progress(
            TextColumn("transcribing"),
            BarColumn(),
            TextColumn("{task.fields[done]}/{task.total} files"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,  # results are for stdout, wherever that goes
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("", total=count, done=0)

    def __enter__(self) -> RichBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def started(self, pending: Pending[Transcript]) -> None:
        with self._lock:
            self._running.add(pending)

    def finished(self, pending: Pending[Transcript] | None) -> None:
        with self._lock:
            self._done += 1
            if pending is not None:
                self._running.discard(pending)

    def refresh(self) -> None:
        with self._lock:
            fractions = sum(_fraction(pending) for pending in self._running)
            self._progress.update(self._task, completed=self._done + fractions, done=self._done)

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()


def _fraction(pending: Pending[Transcript]) -> float:
    if pending.progress is None:
        return 0.0
    done_s, total_s = pending.progress
    return min(1.0, done_s / total_s) if total_s > 0 else 0.0


@contextlib.contextmanager
def bar_for(count: int, quiet: bool) -> Iterator[Bar]:
    """The bar that fits stderr."""
    if quiet or not sys.stderr.isatty():
        yield NoBar()
        return
    with RichBar(count) as bar:
        yield bar

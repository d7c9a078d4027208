"""A progress bar with the time left, on a terminal's stderr; nothing at all elsewhere.

The bar measures bytes, the only size that is known of all files before the first is opened; a file counts in
fractions, as far as the daemon says how much of it is transcribed, so that one long file moves the bar too.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from whisperd.cli.inputs import Input
from whisperd.client.results import Transcript
from whisperd.client.sync import Pending

REFRESH_S = 0.2


class Bar(Protocol):
    """What the batch tells about its progress; `started` and `finished` come from any thread."""

    shows_progress: bool

    def started(self, input: Input, pending: Pending[Transcript]) -> None:
        """The input's request is under way."""

    def finished(self, input: Input) -> None:
        """The input is done with, whether it worked or not."""

    def refresh(self) -> None:
        """To be called now and then."""

    def hidden(self) -> contextlib.AbstractContextManager[None]:
        """Takes the bar off the screen while something is printed."""


class NoBar:
    """For pipes, files and --quiet."""

    shows_progress = False

    def started(self, input: Input, pending: Pending[Transcript]) -> None:
        """Not shown."""

    def finished(self, input: Input) -> None:
        """Not shown."""

    def refresh(self) -> None:
        """Not shown."""

    def hidden(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class RichBar:
    """A bar of the whole command."""

    shows_progress = True

    def __init__(self, inputs: Sequence[Input]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._lock = threading.Lock()
        self._running: dict[Input, Pending[Transcript]] = {}
        self._sizes = {input: _size_bytes(input) for input in inputs}
        self._files_done = self._bytes_done = 0
        self._progress = Progress(
            TextColumn("transcribing"),
            BarColumn(),
            TextColumn(f"{{task.fields[files]}}/{len(inputs)} files"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,  # results are for stdout, wherever that goes
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("", total=sum(self._sizes.values()), files=0)

    def __enter__(self) -> RichBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def started(self, input: Input, pending: Pending[Transcript]) -> None:
        with self._lock:
            self._running[input] = pending

    def finished(self, input: Input) -> None:
        with self._lock:
            self._files_done += 1
            self._bytes_done += self._sizes[input]
            self._running.pop(input, None)

    def refresh(self) -> None:
        with self._lock:
            done = self._bytes_done + sum(
                self._sizes[input] * _fraction(pending) for input, pending in self._running.items()
            )
            self._progress.update(self._task, completed=done, files=self._files_done)

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()


def _size_bytes(input: Input) -> int:
    """At least 1: also an empty or missing file is something to get done."""
    try:
        return max(1, Path(input.source).stat().st_size)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return 1


def _fraction(pending: Pending[Transcript]) -> float:
    if pending.progress is None:
        return 0.0
    done_s, total_s = pending.progress
    return min(1.0, done_s / total_s) if total_s > 0 else 0.0


@contextlib.contextmanager
def bar_for(inputs: Sequence[Input], quiet: bool) -> Iterator[Bar]:
    """The bar that fits stderr."""
    if quiet or not sys.stderr.isatty():
        yield NoBar()
        return
    with RichBar(inputs) as bar:
        yield bar

"""A deterministic engine and media stage without model, numpy or processes, for tests and for client developers.

`whisperd serve --model fake` speaks the whole protocol with them: every input is "speech" whose text tells the
content, so that a client can check that it got the reply to what it sent. One second of audio per 32,000 bytes of
input, cut into windows like any other. No randomness, no clock but the one that it is given.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from whisperd.child import Program
from whisperd.cost import CostModel
from whisperd.errors import WhisperdError
from whisperd.inference.process import ModelTraits
from whisperd.jobs import Samples, Window
from whisperd.media.answers import Slice
from whisperd.media.pool import MediaPool, Part, Prepared
from whisperd.messages import SAMPLE_RATE, Segment, WindowResult, Word
from whisperd.worker import Worker

_BYTES_PER_SECOND = 32_000  # as if every input were 16-bit mono at 16 kHz
_LANGUAGES = ("en", "de", "fr", "es", "zh")
_PART_WINDOWS = 2
_SLOW = re.compile(rb"SLOW (\d+(?:\.\d+)?)")


Heard = TypeVar("Heard")


def digest_of(data: bytes) -> str:
    """What the fake engine says of an input: the first eight hex digits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:8]


class FakeMedia(MediaPool):
    """Media workers that only count bytes. An empty input, or one that begins with `BAD`, is unreadable; one that
    begins with `SILENCE` holds no speech. Long audio is told in parts of two windows."""

    def __init__(self) -> None:
        super().__init__(0, 1.0, 1.0)
        self._worker = Worker("media", Program("whisperd.testing", {}), callbacks=None)  # type: ignore[arg-type]
        self._worker.state = "ready"  # for `status` and `health`: there is no process

    @property
    def workers(self) -> list[Worker]:
        return [self._worker]

    def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def prepare(
        self,
        message: dict[str, Any],
        fd: int,
        priority: str,
        on_digest: Callable[[str], None],
        on_part: Callable[[Part], None],
    ) -> Prepared:
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        await _tell(on_digest, digest_of(data))
        if not data or data.startswith(b"BAD"):
            raise WhisperdError("audio_unreadable", "the fake media stage was told that this is bad")
        samples = max(1, len(data) * SAMPLE_RATE // _BYTES_PER_SECOND)
        duration_s = samples / SAMPLE_RATE
        if duration_s > message["max_audio_s"]:
            raise WhisperdError("audio_too_long", f"{duration_s:.1f} s are more than {message['max_audio_s']} s")
        silent = data.startswith(b"SILENCE") and message["vad"] is not False
        step = int(message["window_s"] * SAMPLE_RATE)
        windows = [] if silent else [_slice(at, min(samples, at + step)) for at in range(0, samples, step)]
        told = 0
        held: Samples | None = Samples(os.dup(fd), samples)
        while len(windows) - told > _PART_WINDOWS and not message["first_only"]:
            part, held = Part(held, windows[told : told + _PART_WINDOWS]), None
            told += _PART_WINDOWS
            await _tell(on_part, part)
        return Prepared(held, windows[told:], 0.0 if silent else duration_s, 0.0, 0.0, [])


async def _tell(listener: Callable[[Heard], None], heard: Heard) -> None:
    """As with real workers, not from inside the job's own task: it may end the job, and with it that task."""
    refused: list[WhisperdError] = []

    def tell() -> None:
        try:
            listener(heard)
        except WhisperdError as error:
            refused.append(error)

    asyncio.get_running_loop().call_soon(tell)
    await asyncio.sleep(0)
    if refused:
        raise refused[0]


def _slice(start: int, stop: int) -> Slice:
    return Slice(start, stop, (stop - start) / SAMPLE_RATE, stop)


class FakeEngine:
    """An engine whose text for a window is the digest of the whole input and the window's number. An input that begins
    with `SLOW` and a number keeps its batch that many seconds, so that others queue up behind it.

    `gate` holds batches back until it is set, so that a test decides what queues up; `fail_next` makes the next
    batches raise what it holds.
    """

    def __init__(self, name: str = "fake", lanes: int = 2) -> None:
        self.name = name
        self.lanes = lanes
        self.express_lanes = 0
        self.usual_rows = 8
        self.cost = CostModel()
        self.traits: ModelTraits | None = None
        self.changed: Callable[[], None] = lambda: None
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail_next: list[Exception] = []
        self.batches: deque[list[Window]] = deque(maxlen=64)  # the latest; all of them would be a leak
        self._flying = 0

    def start(self) -> None:
        self.traits = ModelTraits(multilingual=True, languages=frozenset(_LANGUAGES))
        self.changed()

    def capacity(self) -> int:
        return self.lanes if self.traits else 0

    def in_flight(self) -> int:
        return self._flying

    def health(self) -> tuple[str, WhisperdError | None]:
        return ("busy" if self._flying else "ready") if self.traits else "starting", None

    def workers(self) -> list[Worker]:
        return []

    async def drain(self) -> None:
        self.traits = None

    async def submit(self, windows: Sequence[Window]) -> list[WindowResult]:
        self._flying += 1
        self.batches.append(list(windows))
        slow_s = max(_slow_s(window) for window in windows)
        try:
            await self.gate.wait()
            if slow_s:
                await asyncio.sleep(slow_s)
            if self.fail_next:
                raise self.fail_next.pop(0)
            return [_result(window) for window in windows]
        finally:
            self._flying -= 1
            self.changed()


def _slow_s(window: Window) -> float:
    samples = window.job.samples
    found = _SLOW.match(samples.read(0, 8)) if samples else None
    return float(found[1]) if found else 0.0


def _result(window: Window) -> WindowResult:
    job = window.job
    language = job.work.row.language or job.language or "en"
    if job.work.row.task == "detect":
        return WindowResult((), "en", 0.9, languages=(("en", 0.9), ("de", 0.1)))
    text = f" {job.digest} {window.index}"
    duration_s = round(window.duration_s, 3)
    words = None
    if job.work.row.words:
        half_s = round(duration_s / 2, 3)
        words = (Word(f" {job.digest}", 0.0, half_s, 1.0), Word(f" {window.index}", half_s, duration_s, 1.0))
    segment = Segment(0, 0.0, duration_s, text, -0.1, 0.01, 1.0, job.work.options.temperatures[0], words)
    return WindowResult((segment,), language, 0.9)

"""A deterministic engine and media stage without model, numpy or processes, for tests and for client developers.

`whisperd serve --model fake` speaks the whole protocol with them: every input is "speech" whose text tells the
content, so that a client can check that it got the reply to what it sent. One second of audio per 32,000 bytes of
input, cut into windows like any other. No randomness, no clock but the one that it is given.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from whisperd.errors import WhisperdError
from whisperd.inference.process import ModelTraits
from whisperd.jobs import Samples, Window
from whisperd.media.pool import MediaPool, Prepared
from whisperd.messages import SAMPLE_RATE, Segment, WindowResult, Word
from whisperd.worker import Worker

_BYTES_PER_SECOND = 32_000  # as if every input were 16-bit mono at 16 kHz
_LANGUAGES = ("en", "de", "fr", "es", "zh")


class FakeClock:
    """Time that moves when it is told to."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def digest_of(data: bytes) -> str:
    """What the fake engine says of an input: the first eight hex digits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:8]


class FakeMedia(MediaPool):
    """Media workers that only count bytes. An empty input, or one that begins with `BAD`, is unreadable; one that
    begins with `SILENCE` holds no speech."""

    def __init__(self) -> None:
        super().__init__(0, 1.0, 1.0)
        self._worker = Worker("media", "whisperd.testing", callbacks=None)  # type: ignore[arg-type]
        self._worker.state = "ready"  # for `status` and `health`: there is no process

    @property
    def workers(self) -> list[Worker]:
        return [self._worker]

    def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def prepare(
        self, message: dict[str, Any], fd: int, priority: str, on_digest: Callable[[str], None]
    ) -> Prepared:
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        asyncio.get_running_loop().call_soon(on_digest, digest_of(data))
        await asyncio.sleep(0)  # it may end the job: as with real workers, not from inside the job's own task
        if not data or data.startswith(b"BAD"):
            raise WhisperdError("audio_unreadable", "the fake media stage was told that this is bad")
        samples = max(1, len(data) * SAMPLE_RATE // _BYTES_PER_SECOND)
        duration_s = samples / SAMPLE_RATE
        if duration_s > message["max_audio_s"]:
            raise WhisperdError("audio_too_long", f"{duration_s:.1f} s are more than {message['max_audio_s']} s")
        silent = data.startswith(b"SILENCE") and message["vad"] is not False
        step = int(message["window_s"] * SAMPLE_RATE)
        windows = [] if silent else [(at, min(samples, at + step)) for at in range(0, samples, step)]
        return Prepared(
            Samples(os.dup(fd), samples),
            duration_s,
            0.0 if silent else duration_s,
            windows,
            [(stop - start) / SAMPLE_RATE for start, stop in windows],
            [stop for _, stop in windows],
            0.0,
            0.0,
            [],
        )


class FakeEngine:
    """An engine whose text for a window is the digest of the whole input and the window's number.

    `gate` holds batches back until it is set, so that a test decides what queues up; `fail_next` makes the next
    batches raise what it holds.
    """

    def __init__(self, name: str = "fake", lanes: int = 2) -> None:
        self.name = name
        self.lanes = lanes
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
        try:
            await self.gate.wait()
            if self.fail_next:
                raise self.fail_next.pop(0)
            return [_result(window) for window in windows]
        finally:
            self._flying -= 1
            self.changed()


def _result(window: Window) -> WindowResult:
    job = window.job
    language = job.work.row.language or job.language or "en"
    if job.work.row.task == "detect":
        return WindowResult((), "en", 0.9, 0.0, languages=(("en", 0.9), ("de", 0.1)))
    text = f" {job.digest} {window.index}"
    duration_s = round(window.duration_s, 3)
    words = None
    if job.work.row.words:
        half_s = round(duration_s / 2, 3)
        words = (Word(f" {job.digest}", 0.0, half_s, 1.0), Word(f" {window.index}", half_s, duration_s, 1.0))
    segment = Segment(0, 0.0, duration_s, text, -0.1, 0.01, 1.0, job.work.options.temperatures[0], words)
    return WindowResult((segment,), language, 0.9, 0.0)

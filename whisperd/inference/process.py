"""The engine boundary as the scheduler sees it, and its real implementation: an inference worker process.

`submit(windows) -> results`, `capacity()`, `health()`, `drain()` are all that the scheduler knows. The shipped fake
in `whisperd.testing` has the same face.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from whisperd.child import INFERENCE
from whisperd.cost import CPU, SHAPES, CostModel
from whisperd.errors import WhisperdError
from whisperd.jobs import Window
from whisperd.log import log
from whisperd.messages import WindowResult
from whisperd.worker import Callbacks, NotSent, Worker, loss

# How far beyond what such a batch usually takes an engine may be silent before it counts as hung.
_PATIENCE = 8.0
_RECYCLE_FACTOR, _RECYCLE_EXTRA_BYTES = 3, 1024**3
_USUAL_ROWS = {"cpu": 8, "cuda": 32}
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


class BatchFailed(Exception):
    """The engine refused a batch but lives on; nothing is known of which row is to blame."""


@dataclass(frozen=True, slots=True)
class ModelTraits:
    """What the engine says of its model once it is loaded."""

    multilingual: bool
    languages: frozenset[str]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How a model is run: device, CTranslate2 compute type, batches side by side (lanes), threads for each, lanes
    besides for short work. "auto", 0 and -1 are settled by the worker, which can ask the device."""

    device: str
    compute_type: str
    lanes: int
    threads: int
    hang_timeout_s: float
    rss_max_bytes: int
    express_lanes: int = -1


class Engine(Protocol):
    """All that the scheduler knows of what turns windows into text."""

    traits: ModelTraits | None  # None until it is ready
    changed: Callable[[], None]  # called when capacity or state changed
    express_lanes: int  # batches that it takes besides, for short work beside long
    usual_rows: int  # in a batch, where no setting says otherwise
    cost: CostModel  # of its batches

    def start(self) -> None: ...
    def capacity(self) -> int: ...  # batches that it takes at a time; 0 while it takes none
    def in_flight(self) -> int: ...
    async def submit(self, windows: Sequence[Window]) -> list[WindowResult]: ...
    def health(self) -> tuple[str, WhisperdError | None]: ...
    async def drain(self) -> None: ...
    def workers(self) -> list[Worker]: ...


@dataclass
class _Batch:
    results: dict[int, WindowResult]
    windows: Sequence[Window]
    began: float
    done: asyncio.Future[list[WindowResult]]


def _nobody() -> None:
    """Who listens before somebody does."""


class WorkerEngine:
    """One model in one process on one device; as many batches at a time as it has lanes."""

    def __init__(self, path: Path, settings: EngineSettings) -> None:
        self.path = path
        self.settings = settings
        self.changed: Callable[[], None] = _nobody
        self.traits: ModelTraits | None = None
        self.error: WhisperdError | None = None
        self._batches: dict[int, _Batch] = {}
        self._numbers = 0
        self.cost = CostModel()
        self.express_lanes = 0
        self.usual_rows = _USUAL_ROWS["cpu"]
        self._lanes = 0  # as the worker settled it
        self._scale = 1.0
        self._rss_ready_bytes = 0
        self._recycling = False
        self.worker = Worker(
            "inference",
            INFERENCE,
            Callbacks(self._ready, self._message, self._lost, self._failed),
            hello={
                "path": str(self.path),
                "device": self.settings.device,
                "compute_type": self.settings.compute_type,
                "lanes": self.settings.lanes,
                "threads": self.settings.threads,
                "express": self.settings.express_lanes,
            },
        )

    def start(self) -> None:
        """Starts loading; `changed` is called when the outcome is known."""
        self.error = None
        self.worker.start()

    def capacity(self) -> int:
        return self._lanes if self.worker.state == "ready" and not self._recycling else 0

    def in_flight(self) -> int:
        return len(self._batches)

    def health(self) -> tuple[str, WhisperdError | None]:
        """The worker's state, and why it does not start if it does not."""
        state = self.worker.state
        return ("busy" if state == "ready" and self._batches else state), self.error

    def workers(self) -> list[Worker]:
        return [self.worker]

    async def submit(self, windows: Sequence[Window]) -> list[WindowResult]:
        """Decodes a batch of compatible windows. Raises WorkerLost (NotSent if it never went out) or BatchFailed."""
        self._numbers += 1
        number = self._numbers
        loop = asyncio.get_running_loop()
        message, fds = _batch_message(number, windows)
        try:
            self.worker.send(message, fds)
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise NotSent(f"the daemon lacks resources: {error.strerror}") from error
            raise
        batch = _Batch({}, windows, loop.time(), loop.create_future())
        self._batches[number] = batch
        self._watch()
        return await batch.done

    async def drain(self) -> None:
        """Ends the process; what it holds of memory goes back to the system."""
        await self.worker.stop()

    def _watch(self) -> None:
        """Each batch may be silent for the floor, or a multiple of what the batches in hand usually take."""
        if not self._batches:
            self.worker.expect_beats(None)
            return
        usual_s = sum(self.cost.seconds(batch.windows) for batch in self._batches.values())
        limit_s = self.settings.hang_timeout_s * self._scale
        if self.cost.measured:
            limit_s = max(limit_s, _PATIENCE * usual_s)
        self.worker.expect_beats(limit_s, self._batches)

    def _ready(self, message: dict[str, Any]) -> None:
        try:
            traits, lanes, express, scale = _introduction(message)
        except (KeyError, TypeError, ValueError) as error:
            self._senseless(error)
            return
        self.traits, self._lanes, self.express_lanes, self._scale = traits, lanes, express, scale
        self._on_device(str(message.get("device")))
        self._rss_ready_bytes = self.worker.rss_bytes()
        self._recycling = False
        log.info(
            "model ready",
            path=str(self.path),
            pid=self.worker.pid,
            rss_bytes=self._rss_ready_bytes,
            **{name: message.get(name) for name in ("device", "compute_type", "lanes", "express", "threads")},
        )
        self.changed()

    def _on_device(self, device: str) -> None:
        """What was learned of one worker holds for its successor, which does the same on the same machine."""
        shape = SHAPES.get(device, CPU)
        if not self.cost.measured:
            self.cost = CostModel(shape, self._scale)
        self.usual_rows = _USUAL_ROWS.get(device, _USUAL_ROWS["cpu"])

    def _message(self, message: dict[str, Any], fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)  # an inference worker has none to give
        try:
            number, event = int(message["batch"]), message["event"]
            batch = self._batches.get(number)
            if batch is None:
                return
            if event == "row":
                batch.results[int(message["row"])] = WindowResult.from_wire(message["result"])
        except (KeyError, TypeError, ValueError) as error:
            self._senseless(error)
            return
        if event == "done":
            self._finish(number, batch)
        elif event == "error":
            self._refused(number, batch, str(message.get("message")))

    def _senseless(self, error: Exception) -> None:
        """A worker that is not understood cannot be waited for: it is replaced, and what it had is done again."""
        self.worker.kill(f"sent a message that makes no sense: {type(error).__name__}: {error}")

    def _refused(self, number: int, batch: _Batch, reason: str) -> None:
        del self._batches[number]
        self._watch()
        if not batch.done.done():
            batch.done.set_exception(BatchFailed(reason))
        self.changed()

    def _finish(self, number: int, batch: _Batch) -> None:
        rows = len(batch.windows)
        missing = [row for row in range(rows) if row not in batch.results]
        if missing:
            self._refused(number, batch, f"the engine left out rows {missing} of {rows}")
            return
        del self._batches[number]
        self.cost.learn(batch.windows, asyncio.get_running_loop().time() - batch.began)
        self.worker.praise()
        self._watch()
        if not batch.done.done():
            batch.done.set_result([batch.results[row] for row in range(rows)])
        self._recycle_if_grown()
        self.changed()

    def _recycle_if_grown(self) -> None:
        """A worker that grew out of proportion is replaced when its lanes are empty; nothing is lost by it."""
        limit = self.settings.rss_max_bytes or self._rss_ready_bytes * _RECYCLE_FACTOR + _RECYCLE_EXTRA_BYTES
        if self.worker.rss_bytes() > limit:
            self._recycling = True
        if self._recycling and not self._batches:
            self.worker.kill(f"grew beyond {limit} bytes")

    def _lost(self, reason: str) -> None:
        batches, self._batches = self._batches, {}
        for batch in batches.values():
            if not batch.done.done():
                batch.done.set_exception(loss(reason))
        self.changed()

    def _failed(self, kind: str, message: str) -> None:
        self.error = WhisperdError(kind if kind == "model_load_failed" else "model_load_failed", message)
        log.error("model does not load", path=str(self.path), reason=message)
        self.changed()


def _introduction(message: dict[str, Any]) -> tuple[ModelTraits, int, int, float]:
    """Traits, lanes, express lanes and patience from a worker's `ready`. Raises KeyError, TypeError or ValueError."""
    lanes, express, scale = int(message["lanes"]), int(message["express"]), float(message["scale"])
    if lanes < 1 or express < 0 or not math.isfinite(scale) or scale <= 0:
        raise ValueError(f"{lanes} lanes, {express} express lanes and a scale of {scale}")
    return ModelTraits(bool(message["multilingual"]), frozenset(message["languages"])), lanes, express, scale


def _batch_message(number: int, windows: Sequence[Window]) -> tuple[dict[str, Any], list[int]]:
    """The worker's message and the descriptors of the samples, each once."""
    fds: list[int] = []
    places: dict[int, int] = {}
    rows = []
    for window in windows:
        samples = window.job.samples
        assert samples is not None, "a window is made from samples"
        if samples.fd not in places:
            places[samples.fd] = len(fds)
            fds.append(samples.fd)
        row = window.job.work.row
        rows.append(
            {
                "fd": places[samples.fd],
                "start": window.start,
                "stop": window.stop,
                "language": row.language or window.job.language,
                "task": row.task,
                "words": row.words,
                "sure_speech_s": window.sure_speech_s,
                "speech_stop": window.stop if window.speech_stop is None else window.speech_stop,
            }
        )
    options = dataclasses.asdict(windows[0].job.work.options)
    return {"batch": number, "frames": max(window.frames for window in windows), "options": options, "rows": rows}, fds

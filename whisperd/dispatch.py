"""From the line of waiting windows to the engine and back, and the policy on death.

A death in a batch blames nobody: its windows are tried again, each alone in the engine. Only a window that was
alone twice when the engine died is given up as `poison_input`, and its content is remembered, so that the same
input does not cost two more workers when it comes again. A batch that never reached the engine is no death: its
windows go back into the line as they were.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from whisperd.batching import Batcher, Bounds
from whisperd.errors import WhisperdError
from whisperd.inference.process import BatchFailed, Engine
from whisperd.jobs import Job, Window
from whisperd.lanes import Flight, Lanes, Room
from whisperd.log import log
from whisperd.messages import WindowResult
from whisperd.worker import NotSent, WorkerLost

ALONE_TRIES = 2
# What keeps a batch from being sent (no descriptors, an engine that died just now) does not pass within one turn of
# the loop; trying again at once would only spin.
NOT_SENT_PAUSE_S = 0.25


class Outcomes(Protocol):
    """Who hears what became of windows."""

    def window_started(self, window: Window, batch_rows: int) -> None: ...
    def window_returned(self, window: Window) -> None: ...  # it was started in vain, and waits again
    def window_done(self, window: Window, result: WindowResult) -> None: ...
    def window_failed(self, window: Window, error: WhisperdError) -> None: ...
    def batch_done(self, rows: int, busy_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What the settings say of batches: rows at most (0: as suits the engine's device), and seconds that a batch of
    long jobs or bulk should last at most."""

    rows: int = 0
    slow_s: float = math.inf


@dataclass
class Dispatcher:
    """Feeds one engine from one batcher, as fast as the engine takes it and no faster."""

    engine: Engine
    batcher: Batcher
    outcomes: Outcomes
    limits: Limits = Limits()
    last_used: float = 0.0
    _unfinished: set[Job] = field(default_factory=set)  # more windows will come of them
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _pause: asyncio.TimerHandle | None = None  # after a batch that could not be sent
    _now: Callable[[], float] = field(default_factory=lambda: asyncio.get_running_loop().time)

    def __post_init__(self) -> None:
        self.last_used = self._now()
        self._lanes = Lanes(self.batcher, self.limits.slow_s)

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done, and nothing will come of jobs that were begun."""
        return not self._lanes.flights and not self.batcher and not self._unfinished

    def add(self, windows: Sequence[Window]) -> None:
        """Queues a job's windows and hands out what the engine can take."""
        self.batcher.add(windows)
        if windows:
            job = windows[0].job
            if job.more_to_come:
                self._unfinished.add(job)
            self.judge(job)
        self.pump()

    def judge(self, job: Job) -> None:
        """Fails a job that waits and whose deadline is sure to be missed, rather than let it wait in vain."""
        late_s = self._lanes.late_s(job, self._now(), self._room(), self.engine.cost)
        if late_s is not None and job.windows:
            told = f"deadline_ms = {job.work.deadline_ms} cannot be met: the wait is about {late_s:.1f} s from now"
            self.outcomes.window_failed(job.windows[0], WhisperdError("deadline_exceeded", told))

    def discard(self, job: Job) -> None:
        """The job is over: its waiting windows go, those in the engine come back to nobody."""
        self._unfinished.discard(job)
        self.batcher.discard(job)

    def replace_engine(self, successor: Engine) -> Engine:
        """From now on batches go to the successor; what flies lands from the old engine, which is returned."""
        old, self.engine = self.engine, successor
        successor.changed = self.pump
        return old

    def pump(self) -> None:
        """Hands out batches while the engine has room. Called whenever something changed."""
        state, error = self.engine.health()
        if state == "failed" and error:
            self.last_used = self._now()
            self._fail_waiting(error)
            return
        if self._pause:
            return  # its end is a pump of its own
        while flight := self._lanes.next(self._now(), self._room(), self.engine.cost):
            self._launch(flight)

    def _room(self) -> Room:
        engine = self.engine
        return Room(engine.capacity(), engine.express_lanes, self.limits.rows or engine.usual_rows)

    def _launch(self, flight: Flight) -> None:
        for window in flight.windows:
            self.outcomes.window_started(window, len(flight.windows))
        task = asyncio.get_running_loop().create_task(self._fly(flight, self.engine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fly(self, flight: Flight, engine: Engine) -> None:
        wanted = [window for window in flight.windows if not window.job.over]
        if not wanted:
            self._land(flight)
            self.pump()
            return
        flight.windows = wanted  # the samples of jobs that ended since the launch are gone
        try:
            results = await engine.submit(flight.windows)
            if len(results) != len(flight.windows):
                raise BatchFailed(f"{len(results)} results for {len(flight.windows)} windows")
        except NotSent as error:
            self._land(flight)
            log.warning("batch not sent", rows=len(flight.windows), reason=str(error))
            self._put_back(flight)
            self._rest()
        except WorkerLost as error:
            self._land(flight)
            self._try_again(flight, WhisperdError("poison_input", f"this audio ended the engine twice: {error}"))
        except Exception as error:  # a batch must never vanish: whatever went wrong, its windows are answered for
            self._land(flight)
            log.error("batch failed", rows=len(flight.windows), reason=f"{type(error).__name__}: {error}")
            self._try_again(flight, WhisperdError("internal", f"the engine failed on this audio: {error}"))
        else:
            self._land(flight)
            self.outcomes.batch_done(len(flight.windows), self._now() - flight.began)
            for window, result in zip(flight.windows, results, strict=True):
                if not window.job.over:
                    self._deliver(window, result)
        self.pump()

    def _deliver(self, window: Window, result: WindowResult) -> None:
        try:
            self.outcomes.window_done(window, result)
        except Exception as error:  # a result that nobody can use must not take its neighbours with it
            log.exception("result cannot be used", job=window.job.id)
            self.outcomes.window_failed(window, WhisperdError("internal", f"{type(error).__name__}: {error}"))

    def _land(self, flight: Flight) -> None:
        self._lanes.land(flight)
        self.last_used = self._now()

    def _try_again(self, flight: Flight, last_word: WhisperdError) -> None:
        for window in flight.windows:
            if window.job.over:
                continue
            window.deaths_alone += flight.alone
            if window.deaths_alone >= ALONE_TRIES:
                self.outcomes.window_failed(window, last_word)
            else:
                self.outcomes.window_returned(window)
                self.batcher.add_suspect(window)

    def _put_back(self, flight: Flight) -> None:
        """Nobody looked at these windows: they wait again as what they were before."""
        for window in flight.windows:
            if window.job.over:
                continue
            self.outcomes.window_returned(window)
            if window.suspect:
                self.batcher.add_suspect(window)
            else:
                self.batcher.add([window])

    def _rest(self) -> None:
        if self._pause is None:
            self._pause = asyncio.get_running_loop().call_later(NOT_SENT_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self.pump()

    def _fail_waiting(self, error: WhisperdError) -> None:
        """The engine will not come: nobody waits in vain."""
        while self.batcher.suspect_waits():
            self.outcomes.window_failed(self.batcher.next_suspect(), error)
        while batch := self.batcher.next_batch(Bounds(rows=64)):
            for window in batch:
                if not window.job.over:
                    self.outcomes.window_failed(window, error)
        for job in list(self._unfinished):
            if job.more_to_come and not job.over:
                self.outcomes.window_failed(job.windows[0], error)

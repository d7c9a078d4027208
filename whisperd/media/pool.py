"""The media workers and the line before them: one input per worker at a time, the most urgent first."""

from __future__ import annotations

import asyncio
import heapq
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from whisperd.errors import WhisperdError
from whisperd.jobs import Samples
from whisperd.worker import Callbacks, Worker, WorkerLost

# One thread each: several workers side by side use the cores, and a client's audio gains little from more.
_ENVIRON = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_RANK = {"interactive": 0, "normal": 1, "bulk": 2}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a media worker made of an input. `windows` are [start, stop) in samples."""

    samples: Samples
    duration_s: float
    speech_s: float
    windows: list[tuple[int, int]]
    sure_speech_s: list[float]  # of each window: seconds that the detector is sure of
    speech_stop: list[int]  # of each window: the sample behind the last sure speech
    media_ms: float
    vad_ms: float
    warnings: list[str]


class _Seat:
    """One media worker and the job in its hands."""

    def __init__(self, pool: MediaPool) -> None:
        self.pool = pool
        self.taken = False  # given to a job, from then until the worker has answered or died
        self.task: asyncio.Future[Prepared] | None = None
        self.on_digest: Callable[[str], None] | None = None
        self.worker = Worker(
            "media",
            "whisperd.media.worker",
            Callbacks(self._ready, self._message, self._lost, self._failed),
            environ=_ENVIRON,
        )

    def _ready(self, _message: dict[str, Any]) -> None:
        self.pool.seat_freed()

    def _lost(self, reason: str) -> None:
        self._settle(WorkerLost(reason))

    def _failed(self, _kind: str, message: str) -> None:
        self.pool.seats_failed(message)

    def _settle(self, outcome: Prepared | Exception) -> None:
        task, self.task, self.taken = self.task, None, False
        self.worker.expect_beats(None)
        if task is None or task.done():
            if isinstance(outcome, Prepared):
                outcome.samples.close()
        elif isinstance(outcome, Exception):
            task.set_exception(outcome)
        else:
            task.set_result(outcome)
        self.pool.seat_freed()

    def _message(self, message: dict[str, Any], fds: list[int]) -> None:
        event = message["event"]
        if event == "digest" and self.on_digest:
            self.on_digest(message["digest"])
        elif event == "prepared" and len(fds) == 1:
            self.worker.praise()
            count = os.fstat(fds[0]).st_size // 4
            self._settle(
                Prepared(
                    Samples(fds[0], count),
                    message["duration_s"],
                    message["speech_s"],
                    [(start, stop) for start, stop in message["windows"]],
                    message["sure_speech_s"],
                    message["speech_stop"],
                    message["media_ms"],
                    message["vad_ms"],
                    message["warnings"],
                )
            )
            return
        elif event == "failed":
            self.worker.praise()
            self._settle(WhisperdError(message["kind"], message["message"]))
        for fd in fds:
            os.close(fd)


class MediaPool:
    """`count` media workers. Waiting is by priority, then by arrival."""

    def __init__(self, count: int, hang_timeout_s: float, decode_timeout_s: float) -> None:
        self._hang_timeout_s = hang_timeout_s
        self._decode_timeout_s = decode_timeout_s
        self._seats = [_Seat(self) for _ in range(count)]
        self._line: list[tuple[int, int, asyncio.Future[_Seat]]] = []
        self._arrivals = 0
        self._paused = False

    @property
    def workers(self) -> list[Worker]:
        return [seat.worker for seat in self._seats]

    def busy(self, worker: Worker) -> bool:
        """Whether the worker has a job in hand."""
        return any(seat.worker is worker and seat.taken for seat in self._seats)

    def start(self) -> None:
        for seat in self._seats:
            seat.worker.start()

    async def stop(self) -> None:
        await asyncio.gather(*(seat.worker.stop() for seat in self._seats))

    def pause(self, paused: bool) -> None:
        """While paused, no further input is begun; what workers have in hand is finished."""
        self._paused = paused
        self.seat_freed()

    async def prepare(
        self, message: dict[str, Any], fd: int, priority: str, on_digest: Callable[[str], None]
    ) -> Prepared:
        """Decodes one input. The caller keeps `fd`. `on_digest` hears the content's hash before decoding begins.

        Raises WhisperdError for what is wrong with the audio, WorkerLost if the worker died of it or beside it.
        """
        seat = await self._acquire(priority)
        try:
            seat.worker.send(message, [fd])
        except BaseException:
            seat.taken = False
            raise
        seat.task = task = asyncio.get_running_loop().create_future()
        seat.on_digest = on_digest
        seat.worker.expect_beats(self._hang_timeout_s)
        try:
            async with asyncio.timeout(self._decode_timeout_s):
                return await asyncio.shield(task)
        except TimeoutError:
            seat.task = None  # its death is no news to anybody
            seat.worker.kill("took longer than max_decode_s for one input")
            raise WhisperdError(
                "audio_too_long", f"decoding took longer than {self._decode_timeout_s:g} s (setting max_decode_s)"
            ) from None
        except asyncio.CancelledError:
            # The job is over. The worker's answer, if one comes, finds nobody and gives its memory back.
            task.add_done_callback(_drop)
            raise

    async def _acquire(self, priority: str) -> _Seat:
        if not self._line:
            for seat in self._seats:
                if seat.worker.state == "failed":
                    seat.worker.start()  # someone wants it again: another try
            free = self._free()
            if free:
                free.taken = True
                return free
        turn: asyncio.Future[_Seat] = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        heapq.heappush(self._line, (_RANK[priority], self._arrivals, turn))
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                turn.result().taken = False
                self.seat_freed()
            raise

    def _free(self) -> _Seat | None:
        if self._paused:
            return None
        return next((seat for seat in self._seats if seat.worker.state == "ready" and not seat.taken), None)

    def seat_freed(self) -> None:
        """Gives free workers to those who wait."""
        while self._line and (seat := self._free()):
            _, _, turn = heapq.heappop(self._line)
            if not turn.done():
                seat.taken = True
                turn.set_result(seat)

    def seats_failed(self, message: str) -> None:
        """A worker does not start; when none is left, nobody waits in vain."""
        if all(seat.worker.state == "failed" for seat in self._seats):
            line, self._line = self._line, []
            for _, _, turn in line:
                if not turn.done():
                    turn.set_exception(WhisperdError("worker_lost", message))


def _drop(task: asyncio.Future[Prepared]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().samples.close()

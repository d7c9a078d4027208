"""The media workers and the line before them: one input per worker at a time, the most urgent first.

The line and the seats decide who is worked for, and nothing a worker says can upset them: a message that makes no
sense ends the worker (`answers`), and whatever ends it settles the input it had. Time belongs to the seat, not to
who waits: an input whose job was cancelled keeps its limits, and has them made shorter.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from collections.abc import Callable
from typing import Any, TypeVar

from whisperd.child import Program
from whisperd.errors import WhisperdError
from whisperd.jobs import PRIORITY_RANK
from whisperd.log import log
from whisperd.media.answers import Hearing, Nonsense, Part, Prepared, digest_of, failure_of
from whisperd.worker import Callbacks, NotSent, Worker, loss

__all__ = ["MediaPool", "Part", "Prepared"]

# One thread for each library: several workers side by side use the cores, and a client's audio gains little from more.
# And one heap, though long audio is searched for speech by a thread of its own.
_ENVIRON = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
ABANDONED_GRACE_S = 2.0  # for input that nobody waits for any more: most is done by then, and a restart costs a second
START_AGAIN_S = 30.0  # between two tries with a worker that does not start


Heard = TypeVar("Heard")


class _Seat:
    """One media worker and the input in its hands.

    It is free, given (`taken`, nothing sent yet) or at work (`_request` is set) until the worker has answered or died.
    """

    def __init__(self, pool: MediaPool, module: str) -> None:
        self.pool = pool
        self.taken = False
        self._request: dict[str, Any] | None = None
        self._answer: asyncio.Future[Prepared] | None = None  # None too when nobody waits for it any more
        self._on_digest: Callable[[str], None] | None = None  # None once the hash was heard
        self._on_part: Callable[[Part], None] | None = None
        self._hearing: Hearing | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._failed_at: float | None = None  # when the worker was given up
        self._to_start = True
        self.worker = Worker(
            "media", Program(module, _ENVIRON), Callbacks(self._ready, self._message, self._lost, self._failed)
        )

    def begin(
        self,
        request: dict[str, Any],
        fd: int,
        on_digest: Callable[[str], None],
        on_part: Callable[[Part], None],
        limit_s: float,
        hang_s: float,
    ) -> asyncio.Future[Prepared]:
        """Hands the input over to the worker. The answer must be awaited at once and directly, so that whoever cancels
        the task cancels it too.

        Raises NotSent when there is no worker, OSError when there are no descriptors: nothing is begun then.
        """
        self.worker.send(request, [fd])
        loop = asyncio.get_running_loop()
        self._request = request
        self._answer = answer = loop.create_future()
        self._on_digest, self._on_part = on_digest, on_part
        self._hearing = Hearing(request)
        self._limit = loop.call_later(limit_s, self._too_long, limit_s)
        self.worker.expect_beats(hang_s)
        return answer

    def release(self) -> None:
        """Given in vain."""
        self.taken = False
        self.pool.seat_freed()

    def abandon(self, answer: asyncio.Future[Prepared], grace_s: float) -> None:
        """Nobody waits for `answer` any more. The worker may finish within the grace, so as not to be replaced."""
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            answer.result().close()  # it came in the same moment
        if self._answer is answer:
            self._answer = None
            self._stop_limit()
            self._limit = asyncio.get_running_loop().call_later(grace_s, self._end, "its job is over")

    def start(self) -> None:
        self._to_start = False
        self._failed_at = None
        self.worker.start()

    def start_if_not_begun(self) -> None:
        if self._to_start:
            self.start()

    def start_again(self, after_s: float) -> None:
        """Another try with a worker that was given up so long ago."""
        if self._failed_at is not None and asyncio.get_running_loop().time() - self._failed_at >= after_s:
            self.start()

    async def stop(self) -> None:
        self._stop_limit()
        await self.worker.stop()

    def _too_long(self, limit_s: float) -> None:
        text = f"decoding took longer than {limit_s:g} s (setting max_decode_s)"
        self._end("took longer than max_decode_s for one input", WhisperdError("audio_too_long", text))

    def _end(self, reason: str, outcome: WhisperdError | None = None, blame: bool = False) -> None:
        """Ends the worker, and with it what it has in hand. Without blame it is replaced as if it had never crashed."""
        if outcome and self._answer and not self._answer.done():
            self._answer.set_exception(outcome)
        self.worker.kill(reason, blame=blame)

    def _ready(self, _message: dict[str, Any]) -> None:
        self.pool.seat_freed()

    def _lost(self, reason: str) -> None:
        if self._request is not None:  # else it was free, or will be found dead by whom it was given to
            self._settle(loss(reason))

    def _failed(self, _kind: str, message: str) -> None:
        self._failed_at = asyncio.get_running_loop().time()
        self.pool.seats_failed(message)

    def _settle(self, outcome: Prepared | Exception) -> None:
        answer, self._answer, self._request, self.taken = self._answer, None, None, False
        self._on_digest = self._on_part = self._hearing = None
        self._stop_limit()
        self.worker.expect_beats(None)
        if answer is None or answer.done():
            if isinstance(outcome, Prepared):
                outcome.close()
        elif isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)
        self.pool.seat_freed()

    def _stop_limit(self) -> None:
        if self._limit:
            self._limit.cancel()
            self._limit = None

    def _message(self, message: dict[str, Any], fds: list[int]) -> None:
        kept = False
        try:
            outcome = self._understand(message, fds)
            kept = isinstance(outcome, Part)
        except Nonsense as error:
            self._end(f"it sent {error}", blame=True)
            return
        finally:
            if not kept:
                for fd in fds:
                    os.close(fd)
        if isinstance(outcome, Part) and not isinstance(outcome, Prepared):
            self._heard_part(outcome)
        elif outcome:
            self.worker.praise()
            self._settle(outcome)

    def _understand(self, message: dict[str, Any], fds: list[int]) -> Part | Exception | None:
        """The input's outcome or a part of it, if the message brings it. Raises Nonsense."""
        request, event = self._request, message.get("event")
        if request is None or self._hearing is None or message.get("job") != request["job"]:
            raise Nonsense("a message about an input that it does not have")
        if event == "prepared":
            return self._hearing.prepared(message, fds)
        if event == "windows":
            return self._hearing.part(message, fds)
        if event == "failed":
            return failure_of(message)
        if event == "dropped" and self._on_digest is None and not self._wanted():
            return WhisperdError("cancelled", "its job is over")  # which nobody hears
        if event == "digest" and self._on_digest:
            self._heard_digest(request, digest_of(message))
        elif event != "beat":
            raise Nonsense("an event out of place")
        return None

    def _heard_digest(self, request: dict[str, Any], digest: str) -> None:
        """Tells the job what its content is, then the worker whether that is still wanted."""
        on_digest, self._on_digest = self._on_digest, None
        if on_digest and self._wanted():
            self._tell(on_digest, digest)
        self.worker.send({"op": "go" if self._wanted() else "drop", "job": request["job"]})

    def _heard_part(self, part: Part) -> None:
        if self._on_part and self._wanted():
            self._tell(self._on_part, part)
        else:
            part.close()

    def _tell(self, listener: Callable[[Heard], None], heard: Heard) -> None:
        try:
            listener(heard)
        except Exception as error:
            if not isinstance(error, WhisperdError):  # a fault of ours: it is this job's alone
                log.exception("a job could not take what was found of it", job=self._request and self._request["job"])
            if self._answer and not self._answer.done():
                self._answer.set_exception(error)

    def _wanted(self) -> bool:
        """Whether somebody waits. A task that was cancelled just now does not, although it has yet to find out."""
        return self._answer is not None and not self._answer.done()


class MediaPool:
    """`count` media workers. Waiting is by priority, then by arrival."""

    def __init__(
        self,
        count: int,
        hang_timeout_s: float,
        decode_timeout_s: float,
        *,
        abandoned_grace_s: float = ABANDONED_GRACE_S,
        start_again_s: float = START_AGAIN_S,
        module: str = "whisperd.media.worker",
    ) -> None:
        self._hang_timeout_s = hang_timeout_s
        self._decode_timeout_s = decode_timeout_s
        self._abandoned_grace_s = abandoned_grace_s
        self._start_again_s = start_again_s
        self._seats = [_Seat(self, module) for _ in range(count)]
        self._line: list[tuple[int, int, asyncio.Future[_Seat]]] = []
        self._arrivals = 0
        self._failure = ""  # why the last worker was given up

    @property
    def workers(self) -> list[Worker]:
        return [seat.worker for seat in self._seats]

    def busy(self, worker: Worker) -> bool:
        """Whether the worker has a job in hand."""
        return any(seat.worker is worker and seat.taken for seat in self._seats)

    def start(self) -> None:
        """Starts the first; the others when they are wanted, or when `start_others` says that there is time for it."""
        for seat in self._seats:
            seat.worker.state = "starting"  # to whoever asks; it will be soon
        self._seats[0].start()

    def start_others(self) -> None:
        """Those that were not started yet."""
        for seat in self._seats:
            seat.start_if_not_begun()

    async def stop(self) -> None:
        await asyncio.gather(*(seat.stop() for seat in self._seats))

    async def prepare(
        self,
        message: dict[str, Any],
        fd: int,
        priority: str,
        on_digest: Callable[[str], None],
        on_part: Callable[[Part], None],
    ) -> Prepared:
        """Decodes one input. The caller keeps `fd`. `on_digest` hears the content's hash before decoding begins; if it
        cancels the task that waits here, nothing is decoded. `on_part` gets windows of long audio while the worker
        looks for more, and with the first of them the samples; what it raises ends the waiting here.

        Raises WhisperdError for what is wrong with the audio, WorkerLost if the worker died with it in hand, OSError
        if there are no descriptors left.
        """
        self._arrivals += 1
        place = PRIORITY_RANK[priority], self._arrivals
        while True:
            seat = await self._acquire(place)
            try:
                answer = seat.begin(
                    message, fd, on_digest, on_part, self._decode_timeout_s, self._hang_timeout_s
                )
            except NotSent:  # it died between being given and being used: not of this input
                seat.release()
                continue
            except BaseException:
                seat.release()
                raise
            try:
                return await answer
            except NotSent:  # lost for want of descriptors; the worker's backoff is the pause before another try
                continue
            except BaseException:  # cancelled, or what was told of it could not be taken; else the seat is settled
                seat.abandon(answer, self._abandoned_grace_s)
                raise

    async def _acquire(self, place: tuple[int, int]) -> _Seat:
        for seat in self._seats:
            seat.start_again(self._start_again_s)  # somebody wants it
        if self._all_failed():
            raise WhisperdError("worker_lost", self._failure)
        turn: asyncio.Future[_Seat] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._line, (*place, turn))
        self.seat_freed()
        alone = len(self._line) == 1 and self._seats[0].worker.state == "starting"
        if self._line and not alone:
            self.start_others()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                turn.result().release()
            raise

    def _free(self) -> _Seat | None:
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
        self._failure = message
        if self._line:
            self.start_others()
        if self._all_failed():
            line, self._line = self._line, []
            for _, _, turn in line:
                if not turn.done():
                    turn.set_exception(WhisperdError("worker_lost", message))

    def _all_failed(self) -> bool:
        return all(seat.worker.state == "failed" for seat in self._seats)

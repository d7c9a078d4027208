"""Calls that may hang, as a look at a dead file system does: made by threads, so that the loop never waits for them.

What is asked for during one turn of the loop makes a bunch, which one thread works off and answers together, because
waking up a thread and being woken by it costs several times what opening a file does. Where one call takes long, the
others of its bunch get another thread after `_PATIENCE_S`: a file system that hangs holds a thread for each call to
it, and delays its neighbours by milliseconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

_PATIENCE_S = 0.01
_AT_ONCE = 32  # answers in one turn of the loop: what their callers do next must not keep it from everything else
Result = TypeVar("Result")


@dataclass(eq=False, slots=True)
class _Call:
    """`undo` is for a result that nobody waits for any more."""

    work: Callable[[], Any]
    undo: Callable[[Any], None]
    answer: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None

    def make(self) -> None:
        try:
            self.result = self.work()
        except Exception as error:  # it is the caller's, who gets it with the answer
            self.error = error

    def deliver(self) -> None:
        if self.answer.done():
            self.drop()
        elif self.error is not None:
            self.answer.set_exception(self.error)
        else:
            self.answer.set_result(self.result)

    def drop(self) -> None:
        if self.error is None:
            self.undo(self.result)


class Offload:
    """Some threads, for any loop."""

    def __init__(self, threads: int, timeout_s: float, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._timeout_s = timeout_s
        self._gathering: _Bunch | None = None
        self._under_way: set[_Bunch] = set()

    async def call(self, work: Callable[[], Result], undo: Callable[[Result], None]) -> Result:
        """What `work` gives. Raises what it raises, and TimeoutError when it takes too long; a result that comes after
        that, or for a caller that was cancelled, is undone."""
        loop = asyncio.get_running_loop()
        if self._gathering is None or self._gathering.loop is not loop:
            self._gathering = _Bunch(loop, self._timeout_s, self._threads, self._under_way)
            loop.call_soon(self._begin, self._gathering)
        answer: asyncio.Future[Result] = loop.create_future()
        self._gathering.add(_Call(work, undo, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                undo(answer.result())  # it came in the same moment
            raise

    def _begin(self, bunch: _Bunch) -> None:
        self._gathering = None
        bunch.begin()

    @property
    def busy(self) -> bool:
        """Whether a thread is at work, or stuck; the interpreter would wait for it at its end."""
        return bool(self._under_way)


class _Bunch:
    """The calls of one turn of the loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, timeout_s: float, threads: ThreadPoolExecutor, under_way: set[_Bunch]
    ) -> None:
        self.loop = loop
        self._threads = threads
        self._under_way = under_way
        self._until = loop.time() + timeout_s
        self._calls: list[_Call] = []
        self._waiting: deque[_Call] = deque()
        self._finished: deque[_Call] = deque()
        self._left = 0  # to be delivered
        self._thread_due = False  # one was asked for and has not come yet
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: _Call) -> None:
        self._calls.append(call)
        self._waiting.append(call)
        self._left += 1

    def begin(self) -> None:
        self._under_way.add(self)
        self._timer = self.loop.call_later(_PATIENCE_S, self._look_after)
        self._get_thread()

    def _get_thread(self) -> None:
        self._thread_due = True
        try:
            self._threads.submit(self._work)
        except RuntimeError:  # the system gives no thread now: asked for again, until the time is over
            self._thread_due = False

    def _work(self) -> None:
        """In a thread."""
        self._thread_due = False
        while call := self._next():
            call.make()
            self._finished.append(call)
        try:
            self.loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # the loop is closed: nobody waits
            while self._finished:
                self._finished.popleft().drop()
            self._under_way.discard(self)

    def _next(self) -> _Call | None:
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def _deliver(self) -> None:
        for _ in range(min(len(self._finished), _AT_ONCE)):
            self._finished.popleft().deliver()
            self._left -= 1
        if self._finished:
            self.loop.call_soon(self._deliver)
        elif not self._left:
            self._under_way.discard(self)
            if self._timer:
                self._timer.cancel()

    def _look_after(self) -> None:
        """Somebody takes long."""
        self._deliver()
        if not self._left:
            return
        if self.loop.time() >= self._until:
            self._give_up()
            return
        if self._waiting and not self._thread_due:
            self._get_thread()
        later = self.loop.time() + _PATIENCE_S if self._waiting else self._until
        self._timer = self.loop.call_at(later, self._look_after)

    def _give_up(self) -> None:
        """What threads have in hand stays with them; the rest is not begun any more."""
        for call in self._calls:
            if not call.answer.done():
                call.answer.set_exception(TimeoutError())
        while self._next():
            self._left -= 1
        self._deliver()

"""Lines on their way from a link to its owner: in the order of each client, and fair between clients.

A read may bring thousands of lines, and hundreds of clients may have sent as many; working them all off at once would
keep the loop from everything else for seconds. So lines are handed on one of each client in turn, for a few
milliseconds, and then the loop has its own turn.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from typing import Protocol

from whisperd.framing import Line, LineSplitter
from whisperd.log import log

_TURN_S = 0.002  # of lines before the loop turns to other work


class Owner(Protocol):
    """Who a link belongs to."""

    def received(self, line: Line) -> None: ...
    def ended(self) -> None: ...  # no more lines will come; output is still wanted
    def lost(self) -> None: ...  # the other side is gone; called once, nothing follows
    def drained(self) -> None: ...  # the other side has read so much that SLOW_READER_BYTES are not exceeded any more


class Turns:
    """Whose line is next: one of each inbox in turn, a few milliseconds of work at a time for all of them together."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Inbox] = deque()
        self._running = False

    def join(self, inbox: Inbox) -> None:
        """Lines of this inbox are handed on until none is left."""
        self._waiting.append(inbox)
        if not self._running:
            self._running = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        until = self._loop.time() + _TURN_S
        try:
            while self._waiting and self._loop.time() < until:
                inbox = self._waiting.popleft()
                if inbox.hand_on():
                    self._waiting.append(inbox)
        finally:  # what one line raises must not end the turns of all
            self._running = bool(self._waiting)
            if self._running:
                self._loop.call_soon(self._run)


class Inbox:
    """Lines of one client on their way to the owner. `ready` is called when there is room for another chunk."""

    def __init__(self, max_line_bytes: int, turns: Turns, ready: Callable[[], None]) -> None:
        self._splitter = LineSplitter(max_line_bytes)
        self._lines: deque[Line] = deque()
        self._turns = turns
        self._ready = ready
        self._ended = False

    def take(self, owner: Owner, chunk: bytes, fds: list[int]) -> None:
        """To be called when not `full`. An empty chunk is the end of the input."""
        self._owner = owner
        self._ended = not chunk
        self._lines.extend(self._splitter.feed(chunk, fds) if chunk else self._splitter.finish())
        if self.hand_on():  # a single line need not wait for its turn
            self._turns.join(self)

    @property
    def full(self) -> bool:
        return bool(self._lines)

    def hand_on(self) -> bool:
        """The next line goes to the owner. True: there are more."""
        if self._lines:
            try:
                self._owner.received(self._lines.popleft())
            except Exception:  # a fault of ours: it costs this line, not those behind it
                log.exception("a line could not be taken")
        if self._lines:
            return True
        if self._ended:
            self._ended = False
            self._owner.ended()
        else:
            self._ready()
        return False

    def abandon(self) -> None:
        """The connection is gone."""
        for fd in [*self._splitter.abandon(), *(fd for line in self._lines for fd in line.fds)]:
            os.close(fd)
        self._lines.clear()
        self._ended = False

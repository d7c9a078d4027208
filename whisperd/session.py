"""One client's side of the conversation: its requests in flight, the order of its replies, its patience.

The rule: every request with an id opens a slot, every slot is answered once. With `ordered`, answers leave in the
order of the slots; without, as they come.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from whisperd.admission import Peer
from whisperd.framing import Line
from whisperd.jobs import Job
from whisperd.log import log
from whisperd.protocol import Id, Request, notification_line
from whisperd.transport import SLOW_READER_BYTES, Link


class Desk(Protocol):
    """What a session hands its events to."""

    def handle_line(self, session: Session, line: Line) -> None: ...
    def session_ended(self, session: Session) -> None: ...
    def session_lost(self, session: Session) -> None: ...
    def session_drained(self, session: Session) -> None: ...


@dataclass(eq=False, slots=True)
class Slot:
    """The place of one reply in the order of a session's replies."""

    line: bytes | None = None


@dataclass(eq=False, slots=True)
class Waiting:
    """A request in the backlog of a session that may have one."""

    request: Request
    slot: Slot
    size: int
    arrived: float
    timer: asyncio.TimerHandle | None = None  # its deadline


@dataclass(eq=False)
class Session:
    """A connection with its protocol state."""

    peer: Peer
    link: Link
    desk: Desk
    control: bool = False  # on the control socket
    stdio: bool = False
    ordered: bool = False
    output_max_bytes: int = 1 << 26
    on_dropped: Callable[[], None] = lambda: None  # a progress notification was left out
    jobs: dict[str | int, Job] = field(default_factory=dict)
    backlog: deque[Waiting] = field(default_factory=deque)
    backlog_ids: set[Id] = field(default_factory=set)
    control_slots: dict[Id, Slot] = field(default_factory=dict)  # of control requests that are not answered at once
    backlog_bytes: int = 0
    input_ended: bool = False
    gone: bool = False
    _slots: deque[Slot] = field(default_factory=deque)
    _held_bytes: int = 0  # of answers in those slots
    open_slots: int = 0

    def received(self, line: Line) -> None:
        if self.gone:
            close_fds(line.fds)
        else:
            self.desk.handle_line(self, line)

    def ended(self) -> None:
        self.input_ended = True
        self.desk.session_ended(self)

    def lost(self) -> None:
        if not self.gone:
            self.gone = True
            self.desk.session_lost(self)

    def drained(self) -> None:
        if not self.gone:
            self.desk.session_drained(self)

    @property
    def choked(self) -> bool:
        """Whether more answers would only pile up, because the client does not read or they wait for an earlier one;
        unless that one is next in the backlog: then everything waits for its turn."""
        if self.link.buffered() > SLOW_READER_BYTES:
            return True
        return self._held_bytes > SLOW_READER_BYTES and not (
            self.backlog and self._slots and self.backlog[0].slot is self._slots[0]
        )

    def steer_input(self, backlog_full: bool) -> None:
        """Reads no lines while the backlog is full, or while answers wait for an earlier one."""
        if backlog_full or self._held_bytes > SLOW_READER_BYTES:
            self.link.pause()
        else:
            self.link.resume()

    @property
    def quiet(self) -> bool:
        """Whether nothing is owed to this client."""
        return not self.jobs and not self.backlog and self.open_slots == 0

    def in_flight(self, id: Id) -> bool:
        """Whether a request with this id is not answered yet."""
        return id in self.jobs or id in self.backlog_ids or id in self.control_slots

    def open_slot(self) -> Slot:
        slot = Slot()
        self.open_slots += 1
        if self.ordered:
            self._slots.append(slot)
        return slot

    def answer(self, slot: Slot, line: bytes) -> None:
        """The one reply of a slot."""
        assert slot.line is None, "a slot is answered once"
        slot.line = line
        self.open_slots -= 1
        if self.gone:
            return
        if not self.ordered:
            self._write(line)
            return
        self._held_bytes += len(line)
        while self._slots and (ready := self._slots[0].line) is not None:
            self._slots.popleft()
            self._held_bytes -= len(ready)
            self._write(ready)
        if self._held_bytes > SLOW_READER_BYTES:
            self.link.pause()

    def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Progress: left out for a client that does not read, because only terminal replies are owed."""
        if self.gone:
            return
        if self.link.buffered() > SLOW_READER_BYTES:
            self.on_dropped()
            return
        self.link.write(notification_line(method, params))

    def _write(self, line: bytes) -> None:
        self.link.write(line)
        if self.link.buffered() > self.output_max_bytes:
            log.warning("client does not read its replies; dropped", client=self.peer.name)
            self.link.abort()


def close_fds(fds: list[int]) -> None:
    """Closes descriptors that nobody claimed."""
    for fd in fds:
        os.close(fd)
    fds.clear()

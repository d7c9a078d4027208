"""Bytes in and out of the process: Unix sockets on the event loop, stdin and stdout on two threads.

A link knows bytes, lines and descriptors; what a line means is its owner's business. Reading stops when the owner
says so and when the other side does not read what it was sent, so nothing here grows without bound.

Stdin and stdout get threads because a pipe's end may be a regular file, which no event loop can wait for, and
because making them non-blocking would change them for the parent as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from whisperd.channel import descriptors_of
from whisperd.inbox import Inbox, Owner, Turns

# What one read takes. Small, because pausing takes effect between reads only: a chunk full of requests for
# rpc.discover, 500 times smaller than their replies, stays well under output_max_bytes.
_CHUNK_BYTES = 64 * 1024
_GATHER_BYTES = 64 * 1024  # of replies that go out at one go; fewer wait for the end of the loop's turn
_FDS_MAX = 4  # per line, by the contract
SLOW_READER_BYTES = 1024 * 1024  # unread output beyond which nothing more is read and progress is dropped


class Link(Protocol):
    """What an owner may do with either kind."""

    def write(self, line: bytes) -> None: ...
    def buffered(self) -> int: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    async def flushed(self) -> None: ...


class HangupWatch:
    """Tells when a client that had half-closed goes away altogether: then there is nothing left to read that would.

    One epoll for all, because a client that leaves must not cost a descriptor: they may be what is short.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._left: dict[int, Callable[[], None]] = {}
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)

    def add(self, fd: int, left: Callable[[], None]) -> None:
        """Calls `left` once when the other side of this descriptor is gone; maybe at the loop's next turn."""
        self._left[fd] = left
        self._epoll.register(fd, 0)  # hang-ups are told whether they are asked for or not

    def discard(self, fd: int) -> None:
        """To be called before the descriptor is closed."""
        if self._left.pop(fd, None):
            self._epoll.unregister(fd)

    def _look(self) -> None:
        for fd, _ in self._epoll.poll(0):
            if left := self._left.get(fd):
                left()


class SocketLink:
    """One accepted stream socket."""

    def __init__(self, sock: socket.socket, max_line_bytes: int, hangups: HangupWatch, turns: Turns) -> None:
        self._socket = sock
        self._hangups = hangups
        self._inbox = Inbox(max_line_bytes, turns, self._steer)
        self._loop = asyncio.get_running_loop()
        self._outgoing: deque[bytes] = deque()
        self._sending = memoryview(b"")  # what of them is on its way
        self._buffered = 0
        self._wanted = False  # whether more input is
        self._reading = self._writing = False  # whether the loop watches the socket for it
        self._flushing = False  # it is due at the end of the loop's turn
        self._paused = False  # by the owner
        self._full = False  # by the other side, which does not read
        self._ended = False
        self._closing = False
        self._flushed = asyncio.Event()
        self._flushed.set()

    def start(self, owner: Owner) -> None:
        self._owner = owner
        self._steer()

    def _read(self) -> None:
        if not self._wanted:
            self._watch_input(False)
            return
        try:
            chunk, ancillary, _, _ = self._socket.recvmsg(
                _CHUNK_BYTES, socket.CMSG_SPACE(_FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            self._lose()
            return
        if not chunk:
            self._ended = True
            self._watch_input(False)
            self._hangups.add(self._socket.fileno(), self._lose)
        self._inbox.take(self._owner, chunk, descriptors_of(ancillary) if ancillary else [])
        self._steer()
        if self._flushing:
            self._flush_gathered()  # what is answered at once, such as `health`, need not wait for others' work

    def write(self, line: bytes) -> None:
        if self._socket.fileno() < 0:
            return
        self._outgoing.append(line)
        self._buffered += len(line)
        self._flushed.clear()
        if not self._writing and self._buffered >= _GATHER_BYTES:
            self._flush()
        elif not self._writing and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush_gathered)
        if self._buffered > SLOW_READER_BYTES and not self._full:
            self._full = True
            self._steer()

    def _flush_gathered(self) -> None:
        """What was written during this turn of the loop in one call: each one wakes up the reader."""
        self._flushing = False
        if self._buffered and not self._writing and self._socket.fileno() >= 0:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._buffered:
                if not self._sending:
                    self._sending = memoryview(self._gather())
                sent = self._socket.send(self._sending)
                self._buffered -= sent
                self._sending = self._sending[sent:]
        except BlockingIOError:
            self._watch_output(True)
            return
        except OSError:
            # Not from inside a write: its caller is in the middle of something.
            self._loop.call_soon(self._lose)
            return
        self._watch_output(False)
        self._flushed.set()
        if self._full:
            self._full = False
            self._steer()
            self._owner.drained()
        if self._closing:
            self._shut()

    def _gather(self) -> bytes:
        """The next lines to go out at one go; a long one goes alone, as it is."""
        lines = [self._outgoing.popleft()]
        size = len(lines[0])
        while self._outgoing and size + len(self._outgoing[0]) <= _GATHER_BYTES:
            lines.append(self._outgoing.popleft())
            size += len(lines[-1])
        return b"".join(lines)

    def buffered(self) -> int:
        return self._buffered

    def pause(self) -> None:
        self._paused = True
        self._steer()

    def resume(self) -> None:
        self._paused = False
        self._steer()

    def _steer(self) -> None:
        if self._ended or self._socket.fileno() < 0:
            return
        self._wanted = not (self._paused or self._full or self._inbox.full)
        if self._wanted:
            self._watch_input(True)  # to look away is left to `_read`: mostly input is wanted again before more comes

    def _watch_input(self, wanted: bool) -> None:
        if wanted and not self._reading:
            self._loop.add_reader(self._socket.fileno(), self._read)
        elif self._reading and not wanted:
            self._loop.remove_reader(self._socket.fileno())
        self._reading = wanted

    def _watch_output(self, wanted: bool) -> None:
        if wanted and not self._writing:
            self._loop.add_writer(self._socket.fileno(), self._flush)
        elif self._writing and not wanted:
            self._loop.remove_writer(self._socket.fileno())
        self._writing = wanted

    async def flushed(self) -> None:
        await self._flushed.wait()

    def close(self) -> None:
        """Closes when everything written has gone out."""
        self._closing = True
        if not self._buffered:
            self._shut()

    def abort(self) -> None:
        """Closes now; the owner hears that the other side was lost."""
        self._lose()

    def _lose(self) -> None:
        if self._socket.fileno() >= 0:
            self._shut()
            self._owner.lost()

    def _shut(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._watch_input(False)
        self._watch_output(False)
        self._hangups.discard(self._socket.fileno())
        self._socket.close()
        self._inbox.abandon()
        self._outgoing.clear()
        self._sending = memoryview(b"")
        self._buffered = 0
        self._flushed.set()


class StdioLink:
    """The parent's pipes: a thread that reads one descriptor, a thread that writes another."""

    def __init__(self, fd_in: int, fd_out: int, max_line_bytes: int, turns: Turns) -> None:
        self._in, self._out = fd_in, fd_out
        self._inbox = Inbox(max_line_bytes, turns, self._steer)
        self._loop = asyncio.get_running_loop()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC)
        self._may_read = threading.Event()
        self._paused = self._full = self._closed = self._lost = False
        self._gathered: list[bytes] = []  # during this turn of the loop
        self._outgoing: list[bytes] = []  # the writer's to take
        self._buffered = 0
        self._has_output = threading.Condition()
        self._flushed = asyncio.Event()
        self._flushed.set()

    def start(self, owner: Owner) -> None:
        self._owner = owner
        self._may_read.set()
        for target in (self._read_forever, self._write_forever):
            threading.Thread(target=target, name=f"stdio-{target.__name__}", daemon=True).start()

    def _read_forever(self) -> None:
        poll = select.poll()
        poll.register(self._in, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        poll.register(self._out, 0)  # tells only when nobody can read it any more
        while not self._closed:
            self._may_read.wait()
            ready = {fd for fd, _ in poll.poll()}
            if self._wake_read in ready:
                return
            if self._out in ready:
                self._post(self._lose)
                return
            try:
                chunk = os.read(self._in, _CHUNK_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                chunk = b""
            self._may_read.clear()  # until the loop has taken this one: no more than one chunk lies between
            if not self._post(self._take, chunk):
                return
            if not chunk:
                poll.unregister(self._in)
                self._may_read.set()  # from now on only for the parent's going away

    def _post(self, call: Callable[..., None], *args: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # the loop is closed: the daemon is over
            return False
        return True

    def _take(self, chunk: bytes) -> None:
        self._inbox.take(self._owner, chunk, [])

    def _write_forever(self) -> None:
        while True:
            with self._has_output:
                self._has_output.wait_for(lambda: self._outgoing or self._closed)
                if not self._outgoing:
                    return
                data = b"".join(self._outgoing)
                self._outgoing.clear()
            try:
                self._write_all(data)
            except OSError:
                self._post(self._lose)
                return
            if not self._post(self._wrote, len(data)):
                return

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._out, view) :]
            except BlockingIOError:  # the parent made its end, and so ours, non-blocking
                poll = select.poll()
                poll.register(self._out, select.POLLOUT)
                poll.poll()

    def _wrote(self, count: int) -> None:
        self._buffered -= count
        if self._buffered == 0:
            self._flushed.set()
        if self._full and self._buffered <= SLOW_READER_BYTES:
            self._full = False
            self._steer()
            self._owner.drained()

    def _lose(self) -> None:
        if self._lost:
            return
        self._lost = True
        self._gathered.clear()
        self._outgoing.clear()
        self._buffered = 0
        self._flushed.set()
        self.close()
        self._owner.lost()

    def write(self, line: bytes) -> None:
        if self._closed:
            return
        self._buffered += len(line)
        self._flushed.clear()
        if self._buffered > SLOW_READER_BYTES:
            self._full = True
        if not self._gathered:
            self._loop.call_soon(self._hand_over)
        self._gathered.append(line)

    def _hand_over(self) -> None:
        """Once in a turn of the loop: waking up the writer costs more than a reply does."""
        with self._has_output:
            self._outgoing += self._gathered
            self._gathered.clear()
            self._has_output.notify()

    def buffered(self) -> int:
        return self._buffered

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._steer()

    def _steer(self) -> None:
        if not self._paused and not self._full and not self._inbox.full:
            self._may_read.set()

    async def flushed(self) -> None:
        await self._flushed.wait()

    def abort(self) -> None:
        """Gives up what was not read; the owner hears that the other side was lost."""
        self._lose()

    def close(self) -> None:
        """Ends both threads, the writer when everything has gone out."""
        if self._closed:
            return
        self._closed = True
        self._hand_over()
        with contextlib.suppress(OSError):  # the reader may have ended and nobody listens any more
            os.write(self._wake_write, b"x")
        self._may_read.set()

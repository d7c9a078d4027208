"""Messages between the supervisor and a worker: length-prefixed JSON over a socket pair, with descriptors.

JSON, because a media worker handles untrusted bytes: whatever takes it over can send the supervisor values,
never code. Descriptors belong to the message that carries them: the sender attaches them to the first
bytes of the frame, and the kernel ends a read behind the buffer that carried some, so those collected
while a frame arrives are that frame's.
"""

from __future__ import annotations

import array
import asyncio
import errno
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import orjson

_HEADER = struct.Struct("<IB")  # body length in bytes, number of descriptors
_READ_BYTES = 256 * 1024
MESSAGE_MAX_BYTES = 16 * 1024 * 1024  # a window's result is < 100 kB; more is a broken or hostile worker
FDS_MAX = 64  # far under the kernel's 253, and more than a batch holds rows
# The kernel bounds the descriptors that one user has in flight on all sockets together (by the sender's limit of open
# files). When many clients have just sent theirs, ours must wait until some are received: that is no fault of ours.
_IN_FLIGHT_PAUSE_S = 0.01


# What the end of a channel is called when the kernel could not give us the descriptors of a message: a shortage of
# our own, and no word on whoever sent it.
OUT_OF_DESCRIPTORS = "out of descriptors"


class ChannelClosed(Exception):
    """The other side is gone, or sent something that is no frame, or (`OUT_OF_DESCRIPTORS`) we cannot take it."""


class Frames:
    """Bytes and descriptors in, whole messages out. Does no I/O."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: list[int] = []

    def feed(self, chunk: bytes, fds: Sequence[int]) -> list[tuple[dict[str, Any], list[int]]]:
        """The messages that this chunk completes. Raises ChannelClosed for what is no frame; `close` then closes
        all descriptors, those of the messages before it too."""
        self._buffer += chunk
        self._fds.extend(fds)
        messages: list[tuple[dict[str, Any], list[int]]] = []
        claimed = 0
        while len(self._buffer) >= _HEADER.size:
            length, fd_count = _HEADER.unpack_from(self._buffer)
            if length > MESSAGE_MAX_BYTES:
                raise ChannelClosed(f"a message of {length} bytes is over the limit of {MESSAGE_MAX_BYTES}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            if len(self._fds) - claimed < fd_count:
                raise ChannelClosed(f"{fd_count} descriptors announced, {len(self._fds) - claimed} came")
            messages.append((_parse(self._buffer[_HEADER.size : end]), self._fds[claimed:][:fd_count]))
            del self._buffer[:end]
            claimed += fd_count
        if len(self._fds) - claimed > FDS_MAX:
            raise ChannelClosed("more descriptors came than were announced")
        del self._fds[:claimed]
        return messages

    def close(self) -> None:
        """Closes descriptors whose message never came whole."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def _parse(body: bytearray) -> dict[str, Any]:
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ChannelClosed(f"a message is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ChannelClosed("a message is not a JSON object")
    return message


def encode_frame(message: dict[str, Any], fds: Sequence[int] = ()) -> bytes:
    body = orjson.dumps(message)
    if len(body) > MESSAGE_MAX_BYTES or len(fds) > FDS_MAX:
        raise ValueError(f"message of {len(body)} bytes with {len(fds)} descriptors is over the limits")
    return _HEADER.pack(len(body), len(fds)) + body


def receive_chunk(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One recvmsg; descriptors arrive close-on-exec. An empty chunk means the other side has closed.

    Raises ChannelClosed when descriptors were cut off: with room left in the buffer that is because this process may
    not have more (OUT_OF_DESCRIPTORS), without it because the sender sent more than any message may carry.
    """
    chunk, ancillary, flags, _address = sock.recvmsg(
        _READ_BYTES, socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
    )
    fds = descriptors_of(ancillary)
    if flags & socket.MSG_CTRUNC:
        filled = len(fds) >= FDS_MAX
        _close_all(fds)
        raise ChannelClosed(f"more than {FDS_MAX} descriptors came at once" if filled else OUT_OF_DESCRIPTORS)
    return chunk, fds


def descriptors_of(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in recvmsg's ancillary data."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


class Channel:
    """A worker's blocking end. `send` may be called from several threads that hold one lock of their own."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(True)
        self._frames = Frames()
        self._ready: list[tuple[dict[str, Any], list[int]]] = []

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """Waits for the next message. Raises ChannelClosed when the supervisor is gone."""
        while not self._ready:
            try:
                chunk, fds = receive_chunk(self._socket)
            except ConnectionResetError as error:  # it went with something of ours unread
                raise ChannelClosed("the supervisor closed the channel") from error
            if not chunk:
                raise ChannelClosed("the supervisor closed the channel")
            self._ready = self._frames.feed(chunk, fds)
        return self._ready.pop(0)

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Raises ChannelClosed when the supervisor is gone. The caller keeps its descriptors."""
        frame = encode_frame(message, fds)
        try:
            sent = self._send_fds(frame, fds) if fds else 0
            self._socket.sendall(memoryview(frame)[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed("the supervisor closed the channel") from error

    def _send_fds(self, frame: bytes, fds: Sequence[int]) -> int:
        while True:
            try:
                return socket.send_fds(self._socket, [frame], list(fds))
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                time.sleep(_IN_FLIGHT_PAUSE_S)


class AsyncChannel:
    """The supervisor's end, on its event loop. Calls `received` for each message and `closed` once at the end."""

    def __init__(
        self,
        sock: socket.socket,
        received: Callable[[dict[str, Any], list[int]], None],
        closed: Callable[[str], None],
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._received = received
        self._closed = closed
        self._frames = Frames()
        self._outgoing: deque[tuple[memoryview, list[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Queues a message. Descriptors are duplicated, so the caller may close its own at once."""
        frame = memoryview(encode_frame(message, fds))
        copies: list[int] = []
        try:
            copies.extend(os.dup(fd) for fd in fds)
        except OSError:
            _close_all(copies)
            raise
        self._outgoing.append((frame, copies))
        if len(self._outgoing) == 1:
            self._write()

    def close(self) -> None:
        """Closes without calling `closed`."""
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._frames.close()
        for _, fds in self._outgoing:
            _close_all(fds)
        self._outgoing.clear()

    def _fail(self, reason: str) -> None:
        if self._socket.fileno() >= 0:
            self.close()
            self._closed(reason)

    def _read(self) -> None:
        try:
            chunk, fds = receive_chunk(self._socket)
            if not chunk:
                raise ChannelClosed("it closed the channel")
            messages = self._frames.feed(chunk, fds)
        except BlockingIOError:
            return
        except (OSError, ChannelClosed) as error:
            self._fail(str(error))
            return
        for message, own in messages:
            self._received(message, own)

    def _write(self) -> None:
        if self._socket.fileno() < 0:
            return  # closed while it waited for descriptors in flight
        try:
            while self._outgoing:
                frame, fds = self._outgoing[0]
                sent = socket.send_fds(self._socket, [frame], fds) if fds else self._socket.send(frame)
                _close_all(fds)  # they went with the first byte
                self._outgoing[0] = (frame[sent:], [])
                if sent == len(frame):
                    self._outgoing.popleft()
            self._loop.remove_writer(self._socket)
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._write)
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                self._loop.remove_writer(self._socket)
                self._loop.call_later(_IN_FLIGHT_PAUSE_S, self._write)
                return
            # Not from inside a caller's send: what it did next would find the worker gone half-way.
            self._loop.call_soon(self._fail, str(error))


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    fds.clear()

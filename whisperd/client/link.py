"""The byte streams to a daemon: a Unix socket, or the pipes of a process that is ours.

A link moves bytes and knows nothing of requests. Reading blocks one thread; writing takes a deadline, because
a daemon that has stopped reading must not take its clients' timeouts away. A line of which a part was sent
cannot be taken back: giving up in the middle of one ends the link.
"""

from __future__ import annotations

import array
import collections
import contextlib
import errno
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Protocol

from whisperd.client.errors import ConnectionLost, Timeout
from whisperd.paths import default_socket_path

_READ_BYTES = 256 * 1024
_PIECE_BYTES = 64 * 1024  # one write; a socket's buffer holds about three of them
_STDERR_LINES = 20  # of a spawned daemon's last words, for the error message
_CONNECT_TIMEOUT_S = 10.0  # a daemon whose queue of connections stays full for so long is as good as dead
EXIT_GRACE_S = 10.0  # a batch in flight is finished within a few seconds; after that the daemon is killed


class Link(Protocol):
    """What a connection needs of a byte stream."""

    passes_descriptors: bool

    def read(self) -> bytes:
        """Waits for bytes; empty at the end of the stream."""

    def write(self, line: bytes, fds: Sequence[int], deadline: float | None) -> None:
        """Sends all of `line`. Raises Timeout where nothing of it was sent, ConnectionLost otherwise."""

    def epitaph(self) -> str:
        """Why the stream ended, as far as this side can tell."""

    def end(self) -> None:
        """Tells the daemon that nothing more comes; `read` returns empty once it has gone."""

    def kill(self) -> None:
        """Ends the stream at once, also under a writer that waits for room."""

    def release(self) -> None:
        """Gives the descriptors back. To be called when nobody reads or writes any more."""


class SocketLink:
    """A connected Unix stream socket."""

    passes_descriptors = True

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def read(self) -> bytes:
        try:
            return self._socket.recv(_READ_BYTES)
        except ConnectionResetError:
            return b""

    def write(self, line: bytes, fds: Sequence[int], deadline: float | None) -> None:
        def send(piece: memoryview, first: bool) -> int:
            if first and fds:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                return self._socket.sendmsg([piece], [rights], socket.MSG_DONTWAIT)
            return self._socket.send(piece, socket.MSG_DONTWAIT)

        _write_all(send, self._socket.fileno(), line, deadline)

    def epitaph(self) -> str:
        return "the daemon closed the connection"

    def end(self) -> None:
        with contextlib.suppress(OSError):  # the other side may have closed it already
            self._socket.shutdown(socket.SHUT_RDWR)

    kill = end

    def release(self) -> None:
        self._socket.close()


class SpawnedLink:
    """The stdin and stdout of a daemon that belongs to this process and ends with it."""

    passes_descriptors = False

    def __init__(
        self,
        command: Sequence[str],
        stderr: IO[bytes] | int | None = subprocess.PIPE,
        grace_s: float = EXIT_GRACE_S,
    ) -> None:
        """`stderr` is where the daemon's log goes; with PIPE its last lines are kept for error messages."""
        self._grace_s = grace_s
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C in a terminal is for this process to handle
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        self._last_words: collections.deque[str] = collections.deque(maxlen=_STDERR_LINES)
        self._listener: threading.Thread | None = None
        if self._process.stderr is not None:
            self._listener = threading.Thread(
                target=self._listen, args=(self._process.stderr,), name="whisperd-client-stderr", daemon=True
            )
            self._listener.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def read(self) -> bytes:
        return self._stdout.read(_READ_BYTES) or b""

    def write(self, line: bytes, fds: Sequence[int], deadline: float | None) -> None:
        assert not fds, "pipes carry no descriptors"
        fd = self._stdin.fileno()
        _write_all(lambda piece, _first: os.write(fd, piece), fd, line, deadline)

    def epitaph(self) -> str:
        try:
            code = self._process.wait(self._grace_s)
        except subprocess.TimeoutExpired:
            return "the daemon closed its output"
        if self._listener is not None:
            self._listener.join(self._grace_s)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        said = "\n".join(self._last_words)
        return f"the daemon {how}" + (f"; it last said:\n{said}" if said else "")

    def end(self) -> None:
        """Closes stdin, which ends the daemon; one that is still there after the grace is killed."""
        self._stdin.close()
        try:
            self._process.wait(self._grace_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def release(self) -> None:
        self._stdin.close()
        self._stdout.close()
        if self._listener is not None:
            self._listener.join(self._grace_s)

    def _listen(self, stream: IO[bytes]) -> None:
        with stream:
            while line := stream.readline(4096):
                self._last_words.append(line.decode("utf-8", "replace").rstrip())


def _write_all(
    send: Callable[[memoryview, bool], int], fd: int, line: bytes, deadline: float | None
) -> None:
    """Sends `line` in pieces, waiting for room until `deadline` (monotonic seconds)."""
    rest = memoryview(line)
    try:
        while rest:
            try:
                rest = rest[send(rest[:_PIECE_BYTES], len(rest) == len(line)) :]
            except BlockingIOError:
                if not _wait_for_room(fd, deadline):
                    if len(rest) == len(line):
                        raise Timeout("the daemon takes no more requests") from None
                    raise ConnectionLost("the daemon stopped reading in the middle of a request") from None
    except (BrokenPipeError, ConnectionResetError) as error:
        raise ConnectionLost("the connection to the daemon is closed") from error


def _wait_for_room(fd: int, deadline: float | None) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_WRITE)
        return bool(selector.select(None if deadline is None else max(0.0, deadline - time.monotonic())))


def connect(path: str | os.PathLike[str]) -> SocketLink:
    """Raises ConnectionLost where nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(_CONNECT_TIMEOUT_S)
        sock.connect(os.fspath(path))
        sock.settimeout(None)
    except OSError as error:
        sock.close()
        raise ConnectionLost(f"no daemon answers on {os.fspath(path)}: {error.strerror or error}") from error
    return SocketLink(sock)


def connect_default() -> SocketLink | None:
    """The daemon on the runtime directory's socket, or None where there is none."""
    path = default_socket_path()
    if not path.exists():
        return None
    try:
        return connect(path)
    except ConnectionLost as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.ECONNREFUSED, errno.ENOENT):
            return None  # a socket file that a killed daemon left behind
        raise


def spawn(model: str | None, args: Sequence[str], stderr: IO[bytes] | int | None) -> SpawnedLink:
    """A daemon of this Python's own, speaking on its stdin and stdout."""
    # -P: else modules that happen to lie in the working directory would be imported
    command = [sys.executable, "-P", "-m", "whisperd", "serve", "--stdio"]
    if model is not None:
        command += ["--model", model]
    return SpawnedLink([*command, *args], stderr)


def open_link(
    path: str | os.PathLike[str] | None,
    should_spawn: bool | None,
    model: str | None,
    args: Sequence[str],
    stderr: IO[bytes] | int | None,
) -> Link:
    """Connects or spawns, as the arguments of `Client` say. Raises ConnectionLost."""
    if path is not None:
        if should_spawn:
            raise ValueError("give a socket to connect to, or spawn=True, not both")
        return connect(Path(path))
    if not should_spawn:
        if link := connect_default():
            return link
        if should_spawn is False:
            raise ConnectionLost(f"no daemon answers on {default_socket_path()}")
    return spawn(model, args, stderr)

"""The two listening sockets: bound so that nobody can connect before the permissions are right.

A socket file that nobody answers on is a leftover and is replaced; one that somebody answers on belongs to a
daemon that runs, and the second daemon says so and stays out.
"""

from __future__ import annotations

import array
import asyncio
import errno
import grp
import os
import pwd
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from whisperd.admission import ALL_ROLES, Peer, roles_of
from whisperd.log import log

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_SO_PEERGROUPS = 59  # Linux; not in Python's socket module
_PEERGROUPS_BYTES = 1024  # what Python's getsockopt takes at most: 256 groups
_BACKLOG = 128
_RETRY_S = 1.0  # until accepting is tried again when the process is out of descriptors


class ListenError(Exception):
    """The socket cannot be had; the message says why and what to do."""


class Listener:
    """One bound socket. Hands every accepted connection to `accepted` with what the kernel says of its peer."""

    def __init__(
        self, path: Path, group: str | None, accepted: Callable[[socket.socket, Peer], None]
    ) -> None:
        """Binds and listens. Raises ListenError."""
        self.path = path
        self._accepted = accepted
        self._gid = _group_id(group) if group else None
        self._lock = _take_lock(path)
        try:
            _remove_leftover(path)
            self._socket = self._bind()
        except BaseException:
            os.close(self._lock)
            raise
        status = path.stat()
        self._identity = (status.st_dev, status.st_ino)
        self._counter = 0

    def _bind(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            sock.bind(str(self.path))
            # Nobody can connect until listen(), so group and mode are settled in time.
            if self._gid is not None:
                os.chown(self.path, -1, self._gid)
                self.path.chmod(0o660)
        except OSError as error:
            sock.close()
            raise ListenError(f"{self.path}: {error.strerror or error}") from error
        finally:
            os.umask(before)
        sock.listen(_BACKLOG)
        return sock

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            sock, _ = self._socket.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors: the listener stays readable, so look away for a moment instead of spinning.
            log.error("cannot accept a connection", reason=str(error))
            loop.remove_reader(self._socket)
            loop.call_later(_RETRY_S, self._resume)
            return
        sock.setblocking(False)
        self._counter += 1
        self._accepted(sock, self._peer(sock))

    def _resume(self) -> None:
        if self._socket.fileno() >= 0:
            self.start()

    def _peer(self, sock: socket.socket) -> Peer:
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, gid = _CREDENTIALS.unpack(data)
        groups = {gid, *_groups_of(sock, uid, gid)}
        return Peer(
            name=f"{self.path.stem}#{self._counter}:uid={uid}:pid={pid}",
            uid=uid,
            pid=pid,
            roles=roles_of(uid, groups, os.getuid(), self._gid),
            same_user=uid == os.getuid() or uid == 0,
        )

    def close(self) -> None:
        """Stops accepting and removes the file, if it is still ours."""
        if self._socket.fileno() < 0:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        try:
            status = self.path.lstat()
            if (status.st_dev, status.st_ino) == self._identity:
                self.path.unlink()
        except FileNotFoundError:
            log.debug("the socket file was gone", path=str(self.path))
        os.close(self._lock)


def stdio_peer() -> Peer:
    """The parent, who started us and may do everything."""
    return Peer("stdio", None, os.getppid(), ALL_ROLES, same_user=True)


def _groups_of(sock: socket.socket, uid: int, gid: int) -> list[int]:
    """The groups that the peer's process has, by the kernel; a service manager may give it some that no file lists."""
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _PEERGROUPS_BYTES)
    except OSError as error:  # it has more than fit, or the kernel is older than 4.13
        log.debug("asking the user database for the peer's groups", uid=uid, reason=str(error))
    else:
        return list(array.array("I", data))
    try:
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:  # a user that this system does not know has no further groups
        return []


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ListenError(f"there is no group {group!r} (socket_group)") from error


def _take_lock(path: Path) -> int:
    """Two daemons that start at once must not both take a leftover for theirs. Held while the socket is."""
    import fcntl

    lock_path = path.with_name(path.name + ".lock")
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ListenError(f"{lock_path}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise ListenError(_in_use(path)) from error
    return lock


def _remove_leftover(path: Path) -> None:
    """Removes a socket file that nobody answers on. Raises ListenError where somebody does."""
    if not path.is_socket():
        if path.exists() or path.is_symlink():
            raise ListenError(f"{path} exists and is no socket; remove it or choose another path")
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno == errno.EAGAIN or isinstance(error, TimeoutError):  # alive, with a full backlog
                raise ListenError(_in_use(path)) from error
            raise ListenError(f"{path}: {error.strerror or error}") from error
        else:
            raise ListenError(_in_use(path))


def _in_use(path: Path) -> str:
    return f"another daemon serves {path}; use it, stop it, or choose another path with --socket"

"""A client's audio into a descriptor that a media worker can be given. No byte of it is interpreted here.

Paths are opened so that nothing can happen by opening (no device, no waiting FIFO), and what is checked is the
file that was opened, not the name that was sent: a link that is moved in between changes nothing.
"""

from __future__ import annotations

import asyncio
import binascii
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from whisperd.errors import WhisperdError
from whisperd.offload import Offload, Result

_OPEN_TIMEOUT_S = 30.0
# A file system that hangs holds these threads and no other work of the daemon.
_OPENERS = Offload(16, _OPEN_TIMEOUT_S, "open-path")
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC}
_SLICE_CHARACTERS = 1 << 20  # a multiple of four: decoded at one go, about a millisecond of the loop


def open_path(path: str, roots: Sequence[str], relative_allowed: bool, max_bytes: int) -> int:
    """Opens a regular file for reading. Blocks on slow disks: call it in a thread.

    Raises WhisperdError: audio_not_found, audio_unreadable, audio_too_long, forbidden, invalid_params.
    """
    if not relative_allowed and not Path(path).is_absolute():
        raise WhisperdError("invalid_params", "a path must be absolute on a socket", pointer="/audio/path")
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if roots and not shortage(error):
            _check_inside(Path(path).resolve(), path, roots)  # outside, nobody learns what is there and what is not
        raise _open_error(path, error) from error
    try:
        if roots:
            _check_roots(handle, path, roots)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise WhisperdError("audio_unreadable", f"{path!r} is not a regular file")
        if status.st_size > max_bytes:
            raise _too_large(status.st_size, max_bytes)
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _open_error(path, error) from error
    finally:
        os.close(handle)


async def open_path_in_thread(path: str, roots: Sequence[str], relative_allowed: bool, max_bytes: int) -> int:
    """`open_path` without blocking the loop. A caller that is cancelled meanwhile leaks nothing."""
    return await _in_thread(lambda: open_path(path, roots, relative_allowed, max_bytes), os.close)


async def check_fd_in_thread(fd: int, max_bytes: int) -> None:
    """`check_fd` without blocking the loop; on a duplicate, because the caller may close its own meanwhile."""
    if _in_memory(fd):
        check_fd(fd, max_bytes)
        return
    own = os.dup(fd)

    def check() -> None:
        try:
            check_fd(own, max_bytes)
        finally:
            os.close(own)

    await _in_thread(check, lambda _nothing: None)


async def _in_thread(work: Callable[[], Result], undo: Callable[[Result], None]) -> Result:
    """Raises audio_unreadable when the file system does not answer."""
    try:
        return await _OPENERS.call(work, undo)
    except TimeoutError:
        raise WhisperdError("audio_unreadable", f"its file system did not answer for {_OPEN_TIMEOUT_S:g} s") from None


def stuck() -> bool:
    """Whether a thread waits for a file system; the interpreter would wait for it at its end."""
    return _OPENERS.busy


def shortage(error: BaseException) -> WhisperdError | None:
    """What to answer when the machine ran short of something, which is nobody's fault and passes; else None."""
    if isinstance(error, OSError) and error.errno in _SHORTAGES:
        return WhisperdError("overloaded", f"the daemon lacks resources: {error.strerror}", retry_after_ms=1000)
    return None


def _open_error(path: str, error: OSError) -> WhisperdError:
    if short := shortage(error):
        return short
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return WhisperdError("audio_not_found", f"there is no file {path!r}")
    return WhisperdError("audio_unreadable", f"{path!r} cannot be opened: {error.strerror}")


def _check_roots(handle: int, path: str, roots: Sequence[str]) -> None:
    _check_inside(Path(f"/proc/self/fd/{handle}").readlink(), path, roots)


def _check_inside(real: Path, path: str, roots: Sequence[str]) -> None:
    if not any(real.is_relative_to(Path(root).resolve()) for root in roots):
        raise WhisperdError("forbidden", f"{path!r} is outside the directories that this daemon may read (allow_root)")


def take_fd(fds: Sequence[int], index: int) -> int:
    """A descriptor of our own for the one that the client passed. The client's stay the caller's to close."""
    if index >= len(fds):
        raise WhisperdError(
            "invalid_params", f"{len(fds)} descriptors came with this line, so there is no {index}", pointer="/audio/fd"
        )
    try:
        return os.dup(fds[index])
    except OSError as error:
        raise shortage(error) or error from error


def _in_memory(fd: int) -> bool:
    """Whether no file system has to be asked: only files in memory can be sealed. This itself asks none."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def check_fd(fd: int, max_bytes: int) -> None:
    """Whether a passed descriptor is a file to read. Asks its file system, which may be slow: call it in a thread."""
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise WhisperdError("audio_unreadable", f"the passed file cannot be looked at: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise WhisperdError(
            "invalid_params", "a passed descriptor must be a regular file or a memory file", pointer="/audio/fd"
        )
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_ACCMODE == os.O_WRONLY or flags & os.O_PATH:
        raise WhisperdError("invalid_params", "a passed descriptor must be open for reading", pointer="/audio/fd")
    if status.st_size > max_bytes:
        raise _too_large(status.st_size, max_bytes)


async def spool_base64(data: str, max_bytes: int) -> int:
    """Decodes base64 into a memory file, giving way to other work between slices.

    Raises WhisperdError invalid_params or audio_too_long.
    """
    if len(data) // 4 * 3 > max_bytes:
        raise WhisperdError("audio_too_long", f"the audio is larger than max_audio_bytes ({max_bytes})")
    fd = os.memfd_create("whisperd-input", os.MFD_CLOEXEC)
    try:
        for start in range(0, len(data), _SLICE_CHARACTERS):
            last = start + _SLICE_CHARACTERS >= len(data)
            decoded = binascii.a2b_base64(data[start : start + _SLICE_CHARACTERS], strict_mode=True)
            if not last and len(decoded) != _SLICE_CHARACTERS // 4 * 3:
                raise ValueError("padding before the end")
            _write_all(fd, decoded)
            if not last:
                await asyncio.sleep(0)
    except (ValueError, binascii.Error) as error:
        os.close(fd)
        compact = "".join(data.split())
        if len(compact) != len(data):  # `base64` wraps its lines; that is no reason to refuse them
            return await spool_base64(compact, max_bytes)
        raise WhisperdError("invalid_params", f"not base64: {error}", pointer="/audio/data") from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _too_large(size: int, max_bytes: int) -> WhisperdError:
    return WhisperdError("audio_too_long", f"{size} bytes are more than max_audio_bytes ({max_bytes})")

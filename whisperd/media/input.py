"""A client's bytes as the media worker sees them: read by position, hashed, never trusted to stay put.

The descriptor that arrives may share its file offset with the client who passed it, so no read here uses
or moves that offset. libsndfile, which can only read from an offset, gets a description of our own: the
file opened afresh through /proc, and where that is refused (in the media worker's sandbox every regular
file, elsewhere a file of another user) a copy in memory, if the file is small. FFmpeg reads by position
and needs neither.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from whisperd.errors import WhisperdError

_BLOCK_BYTES = 4 << 20
# Beyond this a copy costs more memory than it is worth: FFmpeg reads all that libsndfile reads. An hour of
# 16 kHz mono WAV is 110 MB; compressed audio and clips are far below.
COPY_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class AudioHints:
    """What the client says of its bytes. Decides for raw PCM, and where the bytes themselves say nothing."""

    format: str | None = None
    sample_rate: int | None = None
    channels: int | None = None
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class AudioInput:
    """An open input. `offset_is_ours`: reading from the offset of `fd` disturbs nobody."""

    fd: int
    size_bytes: int
    offset_is_ours: bool

    def read_at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes; fewer only at the end of what the input held when it came."""
        return _read_at(self.fd, max(0, min(count, self.size_bytes - offset)), offset)


@contextmanager
def opened(fd: int, max_bytes: int, on_block: Callable[[], None]) -> Iterator[tuple[AudioInput, str]]:
    """The input behind `fd`, which stays the caller's, and its content's hash (BLAKE2b, 16 bytes, hex).

    `on_block` is called for each block read. Raises WhisperdError for what is no regular file, is empty
    or over `max_bytes`.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise WhisperdError("audio_unreadable", "the input is not a regular file; pass a file or a memfd")
    if status.st_size == 0:
        raise WhisperdError("audio_unreadable", "the input is empty (0 bytes)")
    if status.st_size > max_bytes:
        raise WhisperdError(
            "audio_too_long",
            f"the input has {status.st_size} bytes, the limit is {max_bytes}; send it in parts or compressed",
        )
    private, copy = _private_descriptor(fd, status.st_size)
    try:
        digest = _hash(fd, status.st_size, copy=private if copy else None, on_block=on_block)
        yield AudioInput(fd if private is None else private, status.st_size, private is not None), digest
    finally:
        if private is not None:
            os.close(private)


def _private_descriptor(fd: int, size_bytes: int) -> tuple[int | None, bool]:
    """A description nobody else has, and whether it is an empty memory file that wants a copy; or none."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC), False
    except OSError:  # refused by the sandbox, by the file's mode or for lack of /proc: each has the same remedy
        if size_bytes > COPY_MAX_BYTES:
            return None, False
    return os.memfd_create("whisperd-input", os.MFD_CLOEXEC), True


def _hash(fd: int, size_bytes: int, copy: int | None, on_block: Callable[[], None]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    offset = 0
    while offset < size_bytes:
        block = _read_at(fd, min(_BLOCK_BYTES, size_bytes - offset), offset)
        if not block:
            break  # the file was cut since; what is missing will be missed by the decoder
        digest.update(block)
        if copy is not None:
            write_all(copy, block, offset)
        offset += len(block)
        on_block()
    return digest.hexdigest()


def _read_at(fd: int, count: int, offset: int) -> bytes:
    try:
        return os.pread(fd, count, offset)
    except OSError as error:  # write-only, or a failing disk or network behind it: the client's to mend
        raise WhisperdError("audio_unreadable", f"reading the input failed: {error.strerror}") from error


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`, however many calls that takes."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written

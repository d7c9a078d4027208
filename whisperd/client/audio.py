"""What a caller may give as audio, and how it travels: a path, a descriptor, or base64.

Over a socket the client opens files itself and passes descriptors, because the daemon may run as somebody
else or in another directory; bytes travel in a memory file, which costs nothing to send. Over stdio there are
no descriptors: the spawned daemon has the same rights, so a path will do, and bytes become base64. What is no
regular file (a pipe, a terminal) is read to its end first: the daemon wants something it can seek in.

A descriptor is open only while its line is being sent, so that many requests can be under way at once.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from whisperd.client.errors import AudioNotFound, AudioTooLong
from whisperd.media.containers import headerless_codec

STREAM_MAX_BYTES = 2 * 1024**3  # of a pipe without end; the daemon refuses larger files too
_READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Pcm:
    """Bare samples: little-endian, channels interleaved. `format` is "pcm_s16le" or "pcm_f32le"."""

    samples: bytes | bytearray | memoryview
    format: str = "pcm_s16le"
    sample_rate: int = 16_000  # Hz
    channels: int = 1


Bytes = bytes | bytearray | memoryview
Audio = str | os.PathLike[str] | Bytes | IO[bytes] | Pcm


class Attachment:
    """One request's audio, which can be sent more than once until `close`."""

    def __init__(self, audio: Audio, by_descriptor: bool) -> None:
        """Raises AudioTooLong for a stream without end."""
        self._by_descriptor = by_descriptor
        self._path: str | None = None
        self._content: Bytes | None = None
        self._fd = -1
        self._hints: dict[str, Any] = {}
        if isinstance(audio, Pcm):
            self._content, self._by_descriptor = audio.samples, False
            self._hints = {
                "format": audio.format,
                "sample_rate": audio.sample_rate,
                "channels": audio.channels,
            }
        elif isinstance(audio, bytes | bytearray | memoryview):
            self._content = audio
        elif isinstance(audio, str | os.PathLike):
            self._path = os.path.abspath(os.fsdecode(audio))  # noqa: PTH100 - links are the daemon's to resolve
            self._hints = _format_hint(self._path) if by_descriptor else {}
        elif by_descriptor and _is_whole_regular_file(audio):
            self._fd = os.dup(audio.fileno())
            self._hints = _format_hint(str(getattr(audio, "name", "")))
        elif hasattr(audio, "read"):
            self._content = _read_all(audio)
        else:
            raise TypeError(f"audio is a path, bytes, an open binary file or Pcm, not {type(audio).__name__}")

    @contextlib.contextmanager
    def ready(self) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """The request's `audio` object and the descriptors that must go with its line.

        Raises AudioNotFound where a file cannot be opened.
        """
        if self._path is None:
            with self._ready_content(self._content) as ready:
                yield ready
            return
        with open(_open_for_reading(self._path), "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                if self._content is None:
                    self._content = _read_all(file)  # kept: a pipe gives its bytes once
                with self._ready_content(self._content) as ready:
                    yield ready
            elif self._by_descriptor:
                yield {"fd": 0, **self._hints}, [file.fileno()]
            elif _is_utf8(self._path):
                yield {"path": self._path}, []
            else:  # JSON cannot carry such a name
                yield {"data": _base64(_read_all(file))}, []

    def close(self) -> None:
        """Lets go of the audio; a second call does nothing."""
        self._content = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    @contextlib.contextmanager
    def _ready_content(self, content: Bytes | None) -> Iterator[tuple[dict[str, Any], list[int]]]:
        if content is None:
            yield {"fd": 0, **self._hints}, [self._fd]
        elif self._by_descriptor:
            with open(os.memfd_create("whisperd-audio", os.MFD_CLOEXEC), "r+b", buffering=0) as memory:
                rest = memoryview(content).cast("B")
                while rest:
                    rest = rest[memory.write(rest) :]
                memory.seek(0)
                yield {"fd": 0, **self._hints}, [memory.fileno()]
        else:
            yield {"data": _base64(content), **self._hints}, []


def _open_for_reading(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except ValueError as error:  # a NUL in the name
        raise AudioNotFound.local(f"{path!r}: {error}") from error
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # says nothing about the file
        raise AudioNotFound.local(f"{path}: {error.strerror}") from error
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise AudioNotFound.local(f"{path}: is a directory")
    return fd


def _format_hint(name: str) -> dict[str, Any]:
    """A descriptor has no name, so the codec that only a suffix marks is sent as `format`."""
    codec = headerless_codec(None, Path(name).suffix)
    return {"format": codec} if codec else {}


def _base64(content: Bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _is_utf8(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_whole_regular_file(file: IO[bytes]) -> bool:
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.tell() == 0
    except (OSError, AttributeError):  # io.UnsupportedOperation is an OSError: not a file of the system
        return False


def _read_all(stream: IO[bytes]) -> bytearray:
    content = bytearray()
    while chunk := stream.read(_READ_BYTES):
        content += chunk
        if len(content) > STREAM_MAX_BYTES:
            raise AudioTooLong.local(f"the stream is longer than {STREAM_MAX_BYTES} bytes")
    return content

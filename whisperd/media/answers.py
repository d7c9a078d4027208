"""What a media worker says, checked before anything is made of it.

The worker has read untrusted bytes, and whatever took it over speaks with its voice. So nothing of a message is used
that has not passed here: types, ranges, and whether it fits the input that was sent. What can be found out without the
worker is not taken from it: the duration comes from the size of the memory file, and the kernel is asked whether that
file is sealed, because the inference workers read it. There is no mending: a message is right, or it is `Nonsense`.
"""

from __future__ import annotations

import fcntl
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whisperd.errors import WhisperdError
from whisperd.jobs import Samples
from whisperd.messages import SAMPLE_RATE

TEXT_MAX = 1000  # characters of a reason or a warning; the worker cuts its own there
WARNINGS_MAX = 32
_ERROR_KINDS = frozenset({"audio_unreadable", "audio_too_long", "internal"})  # all that media/ raises
_DIGEST = re.compile(r"[0-9a-f]{32}")  # see `input.opened`
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_SAMPLE_BYTES = 4
# Cutting costs, and speech is parted by long silences: more windows than this are no plan but an attack on the queue.
_WINDOWS_PER_S = 4


class Nonsense(Exception):
    """A message that no sound worker sends."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One window of the audio: [start, stop) in samples, the seconds of it that the detector is sure of, and the sample
    behind the last sure speech."""

    start: int
    stop: int
    sure_speech_s: float
    speech_stop: int


@dataclass(frozen=True, slots=True)
class Part:
    """Windows that are settled while the worker still looks for more; `samples` come with the first part."""

    samples: Samples | None
    windows: list[Slice]

    def close(self) -> None:
        """For parts that nobody takes."""
        if self.samples:
            self.samples.close()


@dataclass(frozen=True, slots=True)
class Prepared(Part):
    """What a media worker made of an input. `windows` are those that no part brought; so are `samples`, which are None
    only where a part had them."""

    speech_s: float
    media_ms: float
    vad_ms: float
    warnings: list[str]


def digest_of(message: Mapping[str, Any]) -> str:
    """The content's hash. Raises Nonsense."""
    digest = message.get("digest")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise Nonsense("a digest that is none")
    return digest


def failure_of(message: Mapping[str, Any]) -> WhisperdError:
    """What the worker says is wrong with the input. Raises Nonsense, also for errors that are not its to give."""
    kind = message.get("kind")
    if not isinstance(kind, str) or kind not in _ERROR_KINDS:
        raise Nonsense("an error of a kind that decoding cannot have")
    return WhisperdError(kind, _text(message.get("message")))


class Hearing:
    """What a worker says of one input: any number of parts, then the end."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        """Of the request `max_audio_s`, `window_s` and `first_only` are looked at."""
        self._request = request
        self._samples = 0  # how many there are, once they came
        self._stop = 0  # of the last window
        self._windows = 0

    def part(self, message: Mapping[str, Any], fds: Sequence[int]) -> Part:
        """Windows that are settled; of the first part the one descriptor becomes the answer's.

        Raises Nonsense; then all descriptors stay the caller's.
        """
        if self._request["first_only"]:
            raise Nonsense("windows in parts where one was asked for")
        part = Part(self._take_samples(fds), self._take_windows(message))
        if not part.windows:
            raise Nonsense("a part without windows")
        return part

    def prepared(self, message: Mapping[str, Any], fds: Sequence[int]) -> Prepared:
        """The end; like `part` where there was none."""
        samples = self._take_samples(fds)
        windows = self._take_windows(message)
        warnings = _list(message.get("warnings"), "warnings")
        if len(warnings) > WARNINGS_MAX:
            raise Nonsense(f"{len(warnings)} warnings")
        return Prepared(
            samples=samples,
            windows=windows,
            speech_s=_seconds(message.get("speech_s"), "speech_s", self._samples / SAMPLE_RATE),
            media_ms=_seconds(message.get("media_ms"), "media_ms"),
            vad_ms=_seconds(message.get("vad_ms"), "vad_ms"),
            warnings=[_text(warning) for warning in warnings],
        )

    def _take_samples(self, fds: Sequence[int]) -> Samples | None:
        if len(fds) != (0 if self._samples else 1):
            raise Nonsense(f"{len(fds)} descriptors beside an answer")
        if self._samples:
            return None
        self._samples = _sample_count(fds[0], self._request["max_audio_s"])
        return Samples(fds[0], self._samples)

    def _take_windows(self, message: Mapping[str, Any]) -> list[Slice]:
        longest = int(self._request["window_s"] * SAMPLE_RATE)
        pairs = _windows(message.get("windows"), self._stop, self._samples, longest)
        self._windows += len(pairs)
        if self._windows > 1 + _WINDOWS_PER_S * (1 + self._samples // SAMPLE_RATE):
            raise Nonsense(f"{self._windows} windows of {self._samples} samples")
        if pairs:
            self._stop = pairs[-1][1]
        sure_s = _sure_speech(message.get("sure_speech_s"), len(pairs))
        stops = _speech_stop(message.get("speech_stop"), pairs)
        return [Slice(*pair, sure, stop) for pair, sure, stop in zip(pairs, sure_s, stops, strict=True)]


def _sample_count(fd: int, max_audio_s: float) -> int:
    """Samples in the memory file, once the kernel has said that nobody can change or cut it any more."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise Nonsense(f"samples that are no memory file: {error.strerror}") from error
    if seals & _SEALS != _SEALS:
        raise Nonsense("samples that are not sealed")
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
        raise Nonsense("samples that cannot be read")
    count, rest = divmod(os.fstat(fd).st_size, _SAMPLE_BYTES)
    if rest or not 0 < count <= max_audio_s * SAMPLE_RATE:
        raise Nonsense(f"{count} samples and {rest} bytes")
    return count


def _windows(value: Any, before: int, sample_count: int, longest: int) -> list[tuple[int, int]]:
    """In order, apart, behind `before` and inside the samples, none longer than was asked for."""
    pairs = _list(value, "windows")
    windows = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(_is_int(edge) for edge in pair):
            raise Nonsense("a window that is no pair of samples")
        start, stop = pair
        if not before <= start < stop <= sample_count or stop - start > longest:
            raise Nonsense(f"a window from {start} to {stop} behind {before} in {sample_count} samples")
        windows.append((start, stop))
        before = stop
    return windows


def _sure_speech(value: Any, count: int) -> list[float]:
    seconds = [_seconds(each, "sure_speech_s") for each in _list(value, "sure_speech_s")]
    if len(seconds) != count:
        raise Nonsense(f"sure_speech_s of {len(seconds)} windows, not {count}")
    return seconds


def _speech_stop(value: Any, windows: Sequence[tuple[int, int]]) -> list[int]:
    stops = _list(value, "speech_stop")
    if len(stops) != len(windows):
        raise Nonsense(f"speech_stop of {len(stops)} windows, not {len(windows)}")
    for at, (start, stop) in zip(stops, windows, strict=True):
        if not _is_int(at) or not start <= at <= stop:
            raise Nonsense("speech that ends outside its window")
    return stops


def _seconds(value: Any, name: str, at_most: float = math.inf) -> float:
    """A number that is finite and not negative; milliseconds too."""
    if not (_is_int(value) or isinstance(value, float)) or not math.isfinite(value) or not 0 <= value <= at_most:
        raise Nonsense(f"{name} that is no length of time")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > TEXT_MAX:
        raise Nonsense("a text that is none, or too long")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise Nonsense(f"{name} that is no list")
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

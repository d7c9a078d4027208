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
class Prepared:
    """What a media worker made of an input. `windows` are [start, stop) in samples."""

    samples: Samples
    duration_s: float
    speech_s: float
    windows: list[tuple[int, int]]
    sure_speech_s: list[float]  # of each window: seconds that the detector is sure of
    speech_stop: list[int]  # of each window: the sample behind the last sure speech
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


def prepared_of(message: Mapping[str, Any], fds: Sequence[int], request: Mapping[str, Any]) -> Prepared:
    """The samples and windows for `request`, of which `max_audio_s` and `window_s` are looked at.

    The one descriptor becomes the answer's. Raises Nonsense; then all descriptors stay the caller's.
    """
    if len(fds) != 1:
        raise Nonsense(f"{len(fds)} descriptors beside an answer")
    count = _sample_count(fds[0], request["max_audio_s"])
    windows = _windows(message.get("windows"), count, int(request["window_s"] * SAMPLE_RATE))
    warnings = _list(message.get("warnings"), "warnings")
    if len(warnings) > WARNINGS_MAX:
        raise Nonsense(f"{len(warnings)} warnings")
    return Prepared(
        samples=Samples(fds[0], count),
        duration_s=count / SAMPLE_RATE,
        speech_s=_seconds(message.get("speech_s"), "speech_s", count / SAMPLE_RATE),
        windows=windows,
        sure_speech_s=_sure_speech(message.get("sure_speech_s"), len(windows)),
        speech_stop=_speech_stop(message.get("speech_stop"), windows),
        media_ms=_seconds(message.get("media_ms"), "media_ms"),
        vad_ms=_seconds(message.get("vad_ms"), "vad_ms"),
        warnings=[_text(warning) for warning in warnings],
    )


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


def _windows(value: Any, sample_count: int, longest: int) -> list[tuple[int, int]]:
    """In order, apart, inside the samples, none longer than was asked for."""
    pairs = _list(value, "windows")
    if len(pairs) > 1 + _WINDOWS_PER_S * (1 + sample_count // SAMPLE_RATE):
        raise Nonsense(f"{len(pairs)} windows of {sample_count} samples")
    windows = []
    before = 0
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

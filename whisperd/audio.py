"""An input's bytes to samples: which reader is asked, when a second one is, and what counts as audio.

The container is found from the bytes. libsndfile reads what it reads well, FFmpeg (through PyAV) the rest and
whatever libsndfile could not read to its end; of two attempts the longer one counts. A file that breaks off is
audio with a warning, as long as anything could be decoded. FFmpeg gets the input by position and nothing else:
listed demuxers and decoders only, no protocol, and an input that refers to other files does not get them.

No wide exception is caught here: what the libraries raise for bad audio is named, anything else is our bug.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import av
import av.stream
import numpy as np
import soundfile
from numpy.typing import NDArray

from whisperd import containers
from whisperd.audio_input import AudioInput
from whisperd.errors import WhisperdError
from whisperd.sample_file import Block, SampleFile

_BLOCK_SAMPLES = 1 << 17  # of all channels together: half a MB, some seconds of audio, milliseconds of work
_END_BYTES = 1 << 16  # looked at on both ends of the input; an Ogg page is never longer
_PCM = {"pcm_s16le": "<i2", "pcm_f32le": "<f4"}
_PCM_CHANNELS_MAX = 64
_TELEPHONE_HZ = 8_000  # what headerless mu-law and A-law are, unless the client says otherwise
_SHORTER_S = 0.5  # headers may be wrong by this: encoders count their padding differently
_LENGTH_UNKNOWN = 1 << 62  # libsndfile's count of frames for a stream that does not say
_KNOWN = "wav, flac, mp3, ogg, opus, m4a, mp4, webm, mkv, aac, wma, ac3, aiff, au, caf"

Blocks = Iterator[tuple[Block, int]]  # samples of shape (frames, channels), and their rate in Hz


@dataclass(frozen=True, slots=True)
class AudioHints:
    """What the client says of its bytes. Decides for raw PCM, and where the bytes themselves say nothing."""

    format: str | None = None
    sample_rate: int | None = None
    channels: int | None = None
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """`fd`: a sealed memory file of `sample_count` float32 samples (16 kHz, mono, little-endian); the caller's."""

    fd: int
    sample_count: int
    warnings: tuple[str, ...]


class _Unreadable(Exception):
    """This reader gets nothing, or nothing more, out of the input; the message says why."""


class _OpensOtherFiles(Exception):
    """The input asked FFmpeg to open something else."""


@dataclass(slots=True)
class _Attempt:
    """One reader's go at the input: what it wrote, what it learnt, and why it stopped, unless at the end."""

    samples: SampleFile
    on_block: Callable[[], None]
    recognised: bool = False
    announced_s: float = 0.0  # by the header; 0: it does not say
    stopped_by: str = ""
    damaged: int = 0
    notes: list[str] = field(default_factory=list)

    def run(self, blocks: Blocks) -> None:
        try:
            for block, rate_hz in blocks:
                self.samples.write(block, rate_hz)
                self.on_block()
        except _Unreadable as error:
            self.stopped_by = str(error)

    def ends_early(self) -> str | None:
        if self.stopped_by:
            return f"decoding stopped at {self.samples.duration_s:.2f} s ({self.stopped_by})"
        if self.announced_s - self.samples.duration_s > _SHORTER_S:
            return f"{self.samples.duration_s:.2f} s came, the header announces {self.announced_s:.2f} s"
        return None


def decode_audio(
    source: AudioInput, hints: AudioHints, *, max_audio_s: float, on_block: Callable[[], None]
) -> DecodedAudio:
    """Decodes the whole input. `on_block` is called between pieces of work that take far below half a second.

    Raises WhisperdError: `audio_unreadable`, or `audio_too_long` as soon as `max_audio_s` is passed.
    """
    head = source.read_at(0, _END_BYTES)
    attempts: list[_Attempt] = []
    try:
        for reader in _readers(source, hints, head, attempts):
            attempts.append(_Attempt(SampleFile(max_audio_s), on_block))
            attempts[-1].run(reader(attempts[-1]))
        best = max(attempts, key=lambda attempt: attempt.samples.sample_count)
        if not best.samples.sample_count:
            raise WhisperdError("audio_unreadable", _why_unreadable(attempts, source, head))
        best.samples.finish()
        warnings = tuple(_warnings(best, source, head))
        return DecodedAudio(best.samples.detach(), best.samples.sample_count, warnings)
    finally:
        for attempt in attempts:
            attempt.samples.close()


def _readers(
    source: AudioInput, hints: AudioHints, head: bytes, attempts: list[_Attempt]
) -> Iterator[Callable[[_Attempt], Blocks]]:
    """The readers to ask, one after the other; `attempts` tells how those before fared."""
    if hints.format in _PCM:
        yield partial(_read_pcm, source, hints)
        return
    if source.offset_is_ours and containers.libsndfile_reads(head):
        yield partial(_read_libsndfile, source)
        if attempts[0].samples.sample_count and not attempts[0].ends_early():
            return
    yield partial(_read_ffmpeg, source, head)
    codec = containers.headerless_codec(hints.format, hints.suffix)
    if codec and not containers.signature(head) and not any(attempt.recognised for attempt in attempts):
        yield partial(_read_headerless, source, hints, codec)


def _read_pcm(source: AudioInput, hints: AudioHints, attempt: _Attempt) -> Blocks:
    dtype = np.dtype(_PCM[hints.format or ""])
    rate_hz, channels = hints.sample_rate or 0, hints.channels or 1
    if not rate_hz or not 0 < channels <= _PCM_CHANNELS_MAX:
        raise WhisperdError(
            "audio_unreadable", f"{hints.format} needs sample_rate, and channels between 1 and {_PCM_CHANNELS_MAX}"
        )
    attempt.recognised = True
    frame_bytes = channels * dtype.itemsize
    rest = source.size_bytes % frame_bytes
    if rest:
        attempt.notes.append(f"the last {rest} bytes are not a whole sample of {frame_bytes} bytes: left out")
    step = _BLOCK_SAMPLES // channels * frame_bytes
    for offset in range(0, source.size_bytes - rest, step):
        data = source.read_at(offset, min(step, source.size_bytes - rest - offset))
        values = np.frombuffer(data, dtype, count=len(data) // frame_bytes * channels)
        yield _as_float(values.reshape(-1, channels)), rate_hz


def _read_libsndfile(source: AudioInput, attempt: _Attempt) -> Blocks:
    os.lseek(source.fd, 0, os.SEEK_SET)
    try:
        file = soundfile.SoundFile(source.fd, closefd=False)
    except soundfile.LibsndfileError as error:
        raise _Unreadable(error.error_string) from error
    with file:
        attempt.recognised = True
        if file.frames < _LENGTH_UNKNOWN:
            attempt.announced_s = file.frames / file.samplerate
        frames = max(1, _BLOCK_SAMPLES // file.channels)
        while True:
            try:
                block = file.read(frames, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise _Unreadable(error.error_string) from error
            if not len(block):
                return
            yield block, file.samplerate


def _read_headerless(source: AudioInput, hints: AudioHints, codec: str, attempt: _Attempt) -> Blocks:
    options = {}
    if codec != "g722":  # which has one rate and one channel by definition
        options = {
            "sample_rate": str(hints.sample_rate or _TELEPHONE_HZ),
            "ch_layout": f"{hints.channels or 1} channels",
        }
    return _read_ffmpeg(source, b"", attempt, codec, options)


def _read_ffmpeg(
    source: AudioInput,
    head: bytes,
    attempt: _Attempt,
    demuxer: str | None = None,
    options: dict[str, str] | None = None,
) -> Blocks:
    limits: dict[str, str] = {
        "format_whitelist": demuxer or containers.FFMPEG_DEMUXERS,
        "codec_whitelist": containers.FFMPEG_DECODERS,
        "protocol_whitelist": "none",
    }
    try:
        container = av.open(
            _ByPosition(source),
            mode="r",
            format=demuxer,
            container_options={**limits, **(options or {})},
            metadata_errors="replace",
            io_open=_refuse_to_open,
        )
    except (av.FFmpegError, _OpensOtherFiles) as error:
        raise _Unreadable(_reason(error)) from error
    with container:
        attempt.recognised = True
        stream = container.streams.best("audio")
        if stream is None:
            raise _Unreadable("there is no audio stream in it")
        context = stream.codec_context
        if context is None or context.codec.name not in containers.FFMPEG_DECODERS.split(","):
            raise _Unreadable("its audio codec is not supported")
        context.thread_count = 1
        for other in container.streams:
            if other is not stream:
                other.discard = av.stream.Discard.all
        if containers.announces_length(container.format.name, head):
            attempt.announced_s = _announced_s(container, stream)
        yield from _gathered(_frames(container.demux(stream), attempt))


def _frames(packets: Iterator[Any], attempt: _Attempt) -> Iterator[Any]:
    """Decoded frames; damaged packets are counted and passed over, as players do."""
    while True:
        attempt.on_block()
        try:
            packet = next(packets, None)
        except (av.FFmpegError, _OpensOtherFiles) as error:
            attempt.stopped_by = _reason(error)
            return
        if packet is None:
            return
        try:
            frames = packet.decode()
        except av.FFmpegError:
            attempt.damaged += 1
            continue
        yield from frames


def _gathered(frames: Iterator[Any]) -> Blocks:
    """Frames of a few milliseconds put together to blocks, while rate and channels stay the same."""
    blocks: list[Block] = []
    rate_hz = size = 0
    for frame in frames:
        values = frame.to_ndarray()
        shaped = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
        block = _as_float(shaped)
        if blocks and (frame.sample_rate != rate_hz or block.shape[1] != blocks[0].shape[1]):
            yield np.concatenate(blocks), rate_hz
            blocks, size = [], 0
        blocks.append(block)
        rate_hz = frame.sample_rate
        size += block.size
        if size >= _BLOCK_SAMPLES:
            yield np.concatenate(blocks), rate_hz
            blocks, size = [], 0
    if blocks:
        yield np.concatenate(blocks), rate_hz


def _as_float(values: NDArray[Any]) -> Block:
    """Full scale is 1, whatever the type was."""
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - np.float32(128)) / np.float32(128)
    if values.dtype.kind == "i":
        return values.astype(np.float32) / np.float32(-float(np.iinfo(values.dtype).min))
    return values.astype(np.float32)


def _announced_s(container: Any, stream: Any) -> float:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if container.duration and not container.streams.video:
        return float(container.duration) / av.time_base
    return 0.0


def _reason(error: Exception) -> str:
    if isinstance(error, _OpensOtherFiles):
        return "it refers to other files, and those are never opened"
    return str(getattr(error, "strerror", error))


def _refuse_to_open(_url: str, _flags: int, _options: dict[str, str]) -> Any:
    raise _OpensOtherFiles


def _why_unreadable(attempts: list[_Attempt], source: AudioInput, head: bytes) -> str:
    recognised = [attempt for attempt in attempts if attempt.recognised]
    if recognised:
        return f"no audio could be decoded: {recognised[-1].stopped_by or 'it is empty or damaged'}"
    begins_like = containers.signature(head)
    if begins_like:
        return f"it begins like {begins_like}, but the rest is damaged or missing ({source.size_bytes} bytes came)"
    return (
        f"no known kind of audio was recognised in these {source.size_bytes} bytes; send one of {_KNOWN}, "
        "or name the format of audio without a header"
    )


def _warnings(best: _Attempt, source: AudioInput, head: bytes) -> Iterator[str]:
    tail = source.read_at(max(0, source.size_bytes - _END_BYTES), _END_BYTES)
    early = best.ends_early() or containers.missing_end(head, tail, source.size_bytes)
    if early:
        yield f"audio ends early: {early}"
    if best.damaged:
        yield f"damaged parts that were left out: {best.damaged}"
    if best.samples.replaced:
        yield f"samples that are no numbers or absurdly large, replaced by silence: {best.samples.replaced}"
    yield from best.notes


class _ByPosition:
    """The file object FFmpeg reads from: a position of its own over the input, nobody else's offset."""

    def __init__(self, source: AudioInput) -> None:
        self._source = source
        self._position = 0

    def read(self, count: int) -> bytes:
        data = self._source.read_at(self._position, count)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._source.size_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

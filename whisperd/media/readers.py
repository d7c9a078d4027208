"""The ways to read audio: raw PCM by itself, containers with libsndfile, everything else with FFmpeg (PyAV).

Each reader is a generator of blocks that notes in its `Attempt` what it learns on the way, so that what was
read before a file breaks off is kept. FFmpeg gets the input by position and nothing else: listed demuxers and
decoders only, no protocol, and an input that refers to other files does not get them.

No wide exception is caught: what the libraries raise for bad audio is named, anything else is our bug.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import av
import av.stream
import numpy as np
import soundfile
from numpy.typing import NDArray

from whisperd.errors import WhisperdError
from whisperd.media import containers
from whisperd.media.input import AudioHints, AudioInput
from whisperd.media.sample_file import Block, SampleFile

PCM = {"pcm_s16le": "<i2", "pcm_f32le": "<f4"}  # by the client's word alone; numpy's names
_PCM_CHANNELS_MAX = 64
_TELEPHONE_HZ = 8_000  # what headerless mu-law and A-law are, unless the client says otherwise
_BLOCK_SAMPLES = 1 << 17  # of all channels together: half a MB, some seconds of audio, milliseconds of work
_SHORTER_S = 0.5  # headers may be wrong by this: encoders count their padding differently
_LENGTH_UNKNOWN = 1 << 62  # libsndfile's count of frames for a stream that does not say

Blocks = Generator[tuple[Block, int], None, None]  # samples of shape (frames, channels), and their rate in Hz


class Unreadable(Exception):
    """This reader gets nothing, or nothing more, out of the input; the message says why."""


class _OpensOtherFiles(Exception):
    """The input asked FFmpeg to open something else."""


@dataclass(slots=True)
class Attempt:
    """One reader's go at the input: what it wrote, what it learnt, and why it stopped, unless at the end."""

    samples: SampleFile
    on_block: Callable[[], None]
    on_written: Callable[[SampleFile], None]
    recognised: bool = False
    announced_s: float = 0.0  # by the header; 0: it does not say
    stopped_by: str = ""
    damaged: int = 0
    notes: list[str] = field(default_factory=list)

    def run(self, blocks: Blocks) -> None:
        """Writes all blocks. Raises WhisperdError for what no other reader could mend."""
        with closing(blocks):
            try:
                for block, rate_hz in blocks:
                    self.samples.write(block, rate_hz)
                    self.on_written(self.samples)
                    self.on_block()
            except Unreadable as error:
                self.stopped_by = str(error)
        self.samples.flush()

    def ends_early(self) -> str | None:
        """How this attempt shows that the input broke off; None: it was read to its end."""
        if self.stopped_by:
            return f"decoding stopped at {self.samples.duration_s:.2f} s ({self.stopped_by})"
        if self.announced_s - self.samples.duration_s > _SHORTER_S:
            return f"{self.samples.duration_s:.2f} s came, the header announces {self.announced_s:.2f} s"
        return None


def read_pcm(source: AudioInput, hints: AudioHints, attempt: Attempt) -> Blocks:
    dtype = np.dtype(PCM[hints.format or ""])
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


def read_libsndfile(source: AudioInput, attempt: Attempt) -> Blocks:
    os.lseek(source.fd, 0, os.SEEK_SET)
    try:
        file = soundfile.SoundFile(source.fd, closefd=False)
    except soundfile.LibsndfileError as error:
        raise Unreadable(error.error_string) from error
    with file:
        attempt.recognised = True
        if file.frames < _LENGTH_UNKNOWN:
            attempt.announced_s = file.frames / file.samplerate
        frames = max(1, _BLOCK_SAMPLES // file.channels)
        while True:
            try:
                block = file.read(frames, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise Unreadable(error.error_string) from error
            if not len(block):
                return
            yield block, file.samplerate


def read_headerless(source: AudioInput, hints: AudioHints, codec: str, attempt: Attempt) -> Blocks:
    options = {}
    if codec != "g722":  # which has one rate and one channel by definition
        options = {
            "sample_rate": str(hints.sample_rate or _TELEPHONE_HZ),
            "ch_layout": f"{hints.channels or 1} channels",
        }
    return read_ffmpeg(source, b"", attempt, codec, options)


def read_ffmpeg(
    source: AudioInput,
    head: bytes,
    attempt: Attempt,
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
        raise Unreadable(_reason(error)) from error
    with container:
        attempt.recognised = True
        stream = container.streams.best("audio")
        if stream is None:
            raise Unreadable("there is no audio stream in it")
        context = stream.codec_context
        if context is None or context.codec.name not in containers.FFMPEG_DECODERS.split(","):
            raise Unreadable("its audio codec is not supported")
        context.thread_count = 1
        for other in container.streams:
            if other is not stream:
                other.discard = av.stream.Discard.all
        if containers.announces_length(container.format.name, head):
            attempt.announced_s = _announced_s(container, stream)
        yield from _gathered(_frames(container.demux(stream), attempt))


def _frames(packets: Iterator[Any], attempt: Attempt) -> Iterator[Any]:
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

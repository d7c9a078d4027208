"""Decoded audio: blocks of any rate and channels in, 16 kHz mono float32 in a memory file out.

Nothing is sized by what a header claims: the file grows with what was really decoded, a few blocks are
in memory at a time, and the limit on seconds is checked with each block. Channels are mixed by their
mean, so that speech on one side of a call is heard; what is not a number becomes silence, because a
single NaN would spread through resampling, log-mel and attention.
"""

from __future__ import annotations

import fcntl
import os
from typing import Any

import av
import av.filter
import numpy as np
from numpy.typing import NDArray

from whisperd.errors import WhisperdError
from whisperd.media.input import write_all
from whisperd.messages import SAMPLE_RATE

RATE_MIN_HZ = 1_000  # below there is no speech to be found …
RATE_MAX_HZ = 768_000  # … and above there is no converter: the header lies
# 64 taps per phase and this cutoff pass 7 kHz unchanged and stop 8.5 kHz by 90 dB; libswresample's defaults
# lose 0.4 dB and stop 26 dB there, which is heard as hiss folded into the consonants.
_TAPS = 64
_RESAMPLER = f"{SAMPLE_RATE}:filter_size={_TAPS}:cutoff=0.97"
# Full scale is 1. Files of floats that were meant as 16-bit integers are left alone; more is no signal.
_ABSURD = 65_536.0
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

Block = NDArray[np.float32]  # shape (frames, channels)


class SampleFile:
    """The output of one attempt at an input. Close it, or take its descriptor with `detach`."""

    def __init__(self, max_audio_s: float) -> None:
        self.sample_count = 0  # at 16 kHz
        self.replaced = 0  # samples that were not numbers
        self._max_audio_s = max_audio_s
        self._resampler: _Resampler | None = None
        self._fd = os.memfd_create("whisperd-samples", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)

    @property
    def duration_s(self) -> float:
        return self.sample_count / SAMPLE_RATE

    def write(self, block: Block, rate_hz: int) -> None:
        """Appends a block; the rate may change from one to the next.

        Raises WhisperdError: `audio_too_long` as soon as the limit is passed, `audio_unreadable` for a
        rate that cannot be true.
        """
        if not RATE_MIN_HZ <= rate_hz <= RATE_MAX_HZ:
            raise WhisperdError("audio_unreadable", f"a sample rate of {rate_hz} Hz is not that of real audio")
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
        mono = self._clean(np.ascontiguousarray(mono))
        if self._resampler and self._resampler.rate_hz != rate_hz:
            self.flush()
        if rate_hz == SAMPLE_RATE:
            self._append(mono)
            return
        if not self._resampler:
            self._resampler = _Resampler(rate_hz)
        for resampled in self._resampler.convert(mono):
            self._append(resampled)

    def flush(self) -> None:
        """Writes what the resampler still holds; call it after the last block."""
        if self._resampler:
            for resampled in self._resampler.finish():
                self._append(resampled)
            self._resampler = None

    def duplicate(self) -> int:
        """Another descriptor of the memory file, the caller's."""
        return os.dup(self._fd)

    def seal(self) -> None:
        """From now on nobody can change the memory file, whoever gets its descriptor."""
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS)

    def detach(self) -> int:
        """The descriptor of the memory file, which becomes the caller's."""
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        """Gives the memory back, unless the descriptor was taken; a second call does nothing."""
        if self._fd >= 0:
            os.close(self.detach())

    def _clean(self, mono: NDArray[np.float32]) -> NDArray[np.float32]:
        good = np.abs(mono) <= _ABSURD  # false for NaN too
        if good.all():
            return mono
        self.replaced += int(mono.size - np.count_nonzero(good))
        return np.where(good, mono, np.float32(0))

    def _append(self, mono: NDArray[np.float32]) -> None:
        if (self.sample_count + mono.size) > self._max_audio_s * SAMPLE_RATE:
            raise WhisperdError(
                "audio_too_long",
                f"the audio is longer than the limit of {self._max_audio_s:g} s; send it in parts",
            )
        write_all(self._fd, mono.astype("<f4", copy=False).tobytes(), self.sample_count * 4)
        self.sample_count += mono.size


class _Resampler:
    """libswresample for mono float32, block by block. A graph of our own, because only there the number of
    threads can be set: the ready-made one starts one per core for each input."""

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self._frames_in = self._frames_out = 0
        self._graph = av.filter.Graph()
        self._graph.threads = 1
        source = self._graph.add(
            "abuffer",
            sample_rate=str(rate_hz),
            sample_fmt="flt",
            channel_layout="mono",
            time_base=f"1/{rate_hz}",
        )
        convert = self._graph.add("aresample", _RESAMPLER)
        # Without this one the sink would take whatever format comes first in libswresample's list.
        shape = self._graph.add("aformat", sample_fmts="flt", channel_layouts="mono")
        self._graph.link_nodes(source, convert, shape, self._graph.add("abuffersink")).configure()

    def convert(self, mono: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """What comes out for a block; the filter holds back a few milliseconds."""
        if not mono.size:
            return []
        frame = av.AudioFrame.from_ndarray(mono[np.newaxis], format="flt", layout="mono")
        frame.sample_rate = self.rate_hz
        self._frames_in += mono.size
        return self._push(frame)

    def finish(self) -> list[NDArray[np.float32]]:
        """What was still held back; nothing can be converted afterwards."""
        # Of audio shorter than its filter libswresample makes nothing at all, so that gets silence behind it.
        expected = max(1, round(self._frames_in * SAMPLE_RATE / self.rate_hz)) - self._frames_out
        filter_frames = 2 * _TAPS * max(1, -(-self.rate_hz // SAMPLE_RATE))
        if self._frames_in >= filter_frames:
            return self._push(None)
        rest = self.convert(np.zeros(filter_frames, np.float32)) + self._push(None)
        return [np.concatenate(rest)[:expected]]

    def _push(self, frame: av.AudioFrame | None) -> list[NDArray[np.float32]]:
        self._graph.push(frame)
        blocks: list[NDArray[np.float32]] = []
        while True:
            try:
                pulled: Any = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return blocks
            blocks.append(pulled.to_ndarray()[0])
            self._frames_out += blocks[-1].size

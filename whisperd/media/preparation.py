"""One input made ready for the engine: bytes → samples → speech probabilities → windows.

Knows no process and no channel. Everything here may die of its input; see `media.worker` for who watches.
"""

from __future__ import annotations

import array
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from whisperd.errors import WhisperdError
from whisperd.media.audio import decode_audio
from whisperd.media.input import AudioHints, opened, write_all
from whisperd.media.vad import SpeechDetector, sample_blocks
from whisperd.media.windows import WindowPlan, needs_probabilities, plan_windows
from whisperd.messages import SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Preparation:
    """`samples_fd`, the holder's: a sealed memory file with all samples, 16 kHz mono float32."""

    samples_fd: int
    sample_count: int
    plan: WindowPlan
    media_ms: float
    vad_ms: float
    warnings: tuple[str, ...]

    def to_wire(self) -> dict[str, Any]:
        """The fields of the worker's message; the samples travel beside it."""
        return {
            "duration_s": self.sample_count / SAMPLE_RATE,
            "speech_s": self.plan.speech_samples / SAMPLE_RATE,
            "windows": [[window.start, window.stop] for window in self.plan.windows],
            "sure_speech_s": [round(seconds, 3) for seconds in self.plan.sure_speech_s],
            "speech_stop": list(self.plan.speech_stop),
            "media_ms": self.media_ms,
            "vad_ms": self.vad_ms,
            "warnings": list(self.warnings),
        }


class Preparer:
    """The libraries and the speech detector, loaded."""

    def __init__(self) -> None:
        self._detector = SpeechDetector()

    def prepare(
        self,
        fd: int,
        request: Mapping[str, Any],
        on_digest: Callable[[str], None],
        on_block: Callable[[], None],
    ) -> Preparation:
        """Prepares the input behind `fd`, which stays the caller's.

        `request` has format, sample_rate, channels, suffix, vad, window_s, max_audio_s and max_bytes.
        `on_digest` gets the hash of the content before anything is decoded, and may raise to prevent it; `on_block`
        is called between pieces of work. Raises WhisperdError for what is wrong with the input.
        """
        began_s = time.perf_counter()
        hints = AudioHints(
            request["format"], request["sample_rate"], request["channels"], request["suffix"] or ""
        )
        with opened(fd, request["max_bytes"], on_block) as (source, digest):
            on_digest(digest)
            decoded = decode_audio(source, hints, max_audio_s=request["max_audio_s"], on_block=on_block)
        decoded_s = time.perf_counter()
        try:
            plan = self._plan(decoded.fd, decoded.sample_count, request["vad"], request["window_s"], on_block)
        except BaseException:
            os.close(decoded.fd)
            raise
        return Preparation(
            samples_fd=decoded.fd,
            sample_count=decoded.sample_count,
            plan=plan,
            media_ms=(decoded_s - began_s) * 1000,
            vad_ms=(time.perf_counter() - decoded_s) * 1000,
            warnings=decoded.warnings,
        )

    def _plan(
        self, samples_fd: int, sample_count: int, vad: bool | str, window_s: float, on_block: Callable[[], None]
    ) -> WindowPlan:
        probabilities = array.array("f")  # a list of floats for a day of audio would take 90 MB
        if needs_probabilities(sample_count, vad=vad, window_s=window_s):
            for part in self._detector.probabilities(sample_blocks(samples_fd, sample_count)):
                probabilities.extend(part)
                on_block()
        return plan_windows(probabilities, sample_count, vad=vad, window_s=window_s)

    def warm_up(self) -> None:
        """Uses every library once, in failure too, so that nothing is left to be loaded from files later."""
        u_law = bytes(range(256)) * 40
        wav = (
            b"RIFF\x24\x50\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00"
            b"\x40\x1f\x00\x00\x80\x3e\x00\x00\x02\x00\x10\x00data\x00\x50\x00\x00" + bytes(0x5000)
        )
        self._try(wav, "")
        self._try(u_law, ".ulaw")
        for broken in (b"no audio", wav[:40], b"fLaC" + bytes(2000)):
            try:
                self._try(broken, "")
            except WhisperdError:
                continue
            raise AssertionError("a broken input was taken for audio")

    def _try(self, content: bytes, suffix: str) -> None:
        fd = os.memfd_create("whisperd-warm-up", os.MFD_CLOEXEC)
        try:
            write_all(fd, content, 0)
            request = {"format": None, "sample_rate": None, "channels": None, "suffix": suffix, "vad": "auto"}
            limits = {"window_s": 30.0, "max_audio_s": 60.0, "max_bytes": 1 << 20}
            preparation = self.prepare(fd, {**request, **limits}, lambda _digest: None, lambda: None)
            os.close(preparation.samples_fd)
        finally:
            os.close(fd)

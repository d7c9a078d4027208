"""One input made ready for the engine: bytes → samples → speech probabilities → windows.

Knows no process and no channel. Everything here may die of its input; see `media.worker` for who watches.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from whisperd.errors import WhisperdError
from whisperd.media.audio import decode_audio
from whisperd.media.input import AudioHints, opened, write_all
from whisperd.media.listener import Listener
from whisperd.media.vad import SpeechDetector
from whisperd.media.windows import FRAME_SAMPLES, Planner, WindowPlan, needs_probabilities
from whisperd.messages import SAMPLE_RATE

# Hears a part of the plan, and with the first part the descriptor of the samples, which stays the worker's.
OnPart = Callable[[int | None, WindowPlan], None]


@dataclass(frozen=True, slots=True)
class Preparation:
    """`samples_fd`, the holder's: a sealed memory file with all samples, 16 kHz mono float32. `plan` is what no part
    told before; `parted`: there were such parts."""

    samples_fd: int
    plan: WindowPlan
    speech_samples: int
    parted: bool
    media_ms: float
    vad_ms: float
    warnings: tuple[str, ...]

    def to_wire(self) -> dict[str, Any]:
        """The fields of the worker's message; the samples travel beside it."""
        return {
            **self.plan.to_wire(),
            "speech_s": self.speech_samples / SAMPLE_RATE,
            "media_ms": self.media_ms,
            "vad_ms": self.vad_ms,
            "warnings": list(self.warnings),
        }


class _Told:
    """What was said of an input while it was still looked at."""

    def __init__(self, samples_fd: int, on_part: OnPart | None) -> None:
        self.samples_fd = samples_fd
        self.parted = False
        self.speech_samples = 0
        self._on_part = on_part

    def tell(self, part: WindowPlan) -> WindowPlan:
        """Tells a part that has windows; returns what was not told."""
        if not part.windows or self._on_part is None:
            return part
        self._on_part(None if self.parted else self.samples_fd, part)
        self.parted = True
        self.speech_samples += part.speech_samples
        return WindowPlan((), 0, (), ())


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
        on_part: OnPart,
    ) -> Preparation:
        """Prepares the input behind `fd`, which stays the caller's.

        `request` has format, sample_rate, channels, suffix, vad, window_s, first_only, max_audio_s and max_bytes.
        `on_digest` gets the hash of the content before anything is decoded, and may raise to prevent it; `on_block`
        is called between pieces of work; `on_part` gets windows of long audio as soon as they are settled. Where
        `first_only` is true, the first window is all that is looked for. Raises WhisperdError for what is wrong with
        the input.
        """
        began_s = time.perf_counter()
        hints = AudioHints(
            request["format"], request["sample_rate"], request["channels"], request["suffix"] or ""
        )
        with closing(Listener(self._detector)) as listener:
            with opened(fd, request["max_bytes"], on_block) as (source, digest):
                on_digest(digest)
                decoded = decode_audio(
                    source,
                    hints,
                    max_audio_s=request["max_audio_s"],
                    on_block=on_block,
                    on_written=listener.written if not request["first_only"] else lambda _file: None,
                )
            decoded_s = time.perf_counter()
            try:
                told = _Told(decoded.fd, on_part if not request["first_only"] else None)
                plan = _plan(told, listener, decoded.sample_count, request, on_block)
            except BaseException:
                os.close(decoded.fd)
                raise
        return Preparation(
            samples_fd=decoded.fd,
            plan=plan,
            speech_samples=told.speech_samples + plan.speech_samples,
            parted=told.parted,
            media_ms=(decoded_s - began_s) * 1000,
            vad_ms=(time.perf_counter() - decoded_s) * 1000,
            warnings=decoded.warnings,
        )

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
            limits = {"window_s": 30.0, "first_only": True, "max_audio_s": 60.0, "max_bytes": 1 << 20}
            preparation = self.prepare(
                fd, {**request, **limits}, lambda _digest: None, lambda: None, lambda _fd, _part: None
            )
            os.close(preparation.samples_fd)
        finally:
            os.close(fd)


def _plan(
    told: _Told, listener: Listener, sample_count: int, request: Mapping[str, Any], on_block: Callable[[], None]
) -> WindowPlan:
    """What is left of the plan when the parts that were settled before have been told."""
    vad, window_s = request["vad"], request["window_s"]
    planner = Planner(sample_count, vad=vad, window_s=window_s)
    held = WindowPlan((), 0, (), ())
    if needs_probabilities(sample_count, vad=vad, window_s=window_s):
        for part in listener.probabilities(told.samples_fd, sample_count):
            held += planner.feed(part)
            if held.windows and request["first_only"]:
                return held
            if planner.frames * FRAME_SAMPLES < sample_count:  # else the rest follows at once
                held = told.tell(held)
            on_block()
    return held + planner.finish()

"""The nouns that travel: decode options, segments, words, and what a worker says of a window.

All are frozen values with next to no behaviour. Times are seconds in the client's audio unless a name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

SAMPLE_RATE = 16_000  # Hz; Whisper's only rate
WINDOW_MAX_S = 30  # the encoder's longest input
FRAMES_PER_SECOND = 100  # log-mel frames; one every 160 samples
FRAMES_MAX = WINDOW_MAX_S * FRAMES_PER_SECOND

# A window from here on is decoded without timestamp tokens, and the times of its segments are found by alignment. A
# model that tells times leaves words out and misreads others: in long audio 4.4 % word errors, without 3.9 %. Shorter
# windows need the tokens: without them tiny.en does not come to an end after one clip of 3 s in five.
LONG_S = 8.0
# A long text is hardly ever unsure as a whole, so all get a beam: two give most of what five do, for a third of it.
LONG_BEAM = 2


def is_long(duration_s: float) -> bool:
    """Whether a window of this length is decoded the one way or the other."""
    return duration_s >= LONG_S


@dataclass(frozen=True, slots=True)
class Word:
    """One word with absolute times in seconds; `word` keeps its leading space, as Whisper writes it."""

    word: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of output text with absolute times in seconds and its decoder's figures."""

    id: int
    start: float
    end: float
    text: str
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float
    words: tuple[Word, ...] | None = None

    def to_wire(self) -> dict[str, Any]:
        """The contract's segment object; `words` only where they were asked for."""
        wire: dict[str, Any] = {
            "id": self.id,
            "start": self.start,
            "end": self.end,
            "text": self.text,
            "avg_logprob": self.avg_logprob,
            "no_speech_prob": self.no_speech_prob,
            "compression_ratio": self.compression_ratio,
            "temperature": self.temperature,
        }
        if self.words is not None:
            wire["words"] = [
                {"word": w.word, "start": w.start, "end": w.end, "probability": w.probability} for w in self.words
            ]
        return wire


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """How windows are decoded. Meanings are faster-whisper's, and so are the defaults but for `beam_size`.

    Hashable and part of a batch's key, because CTranslate2 takes one set of options per call. What may differ from
    row to row (language, task, word alignment) is therefore in `RowOptions`.
    """

    timestamps: bool = True
    beam_size: int | None = None  # None: LONG_BEAM for long windows, others greedily, and again if the text is unsure
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    initial_prompt: str | None = None
    hotwords: str | None = None
    suppress_tokens: tuple[int, ...] = (-1,)
    no_speech_threshold: float | None = 0.6
    log_prob_threshold: float | None = -1.0
    compression_ratio_threshold: float | None = 2.4
    tail_s: float | None = None  # silence behind the speech that the encoder sees; None: up to its full 30 s

    def for_window(self, duration_s: float) -> DecodeOptions:
        """With what suits a window of this length, where the client leaves it open."""
        if not is_long(duration_s):
            return self
        return replace(self, timestamps=False, beam_size=self.beam_size or LONG_BEAM)

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> DecodeOptions:
        """From a worker message, where tuples are lists."""
        return cls(
            **{
                **wire,
                "temperatures": tuple(wire["temperatures"]),
                "suppress_tokens": tuple(wire["suppress_tokens"]),
            }
        )


@dataclass(frozen=True, slots=True)
class RowOptions:
    """What one window of a batch wants for itself. `language` None: detect it."""

    language: str | None = None
    task: str = "transcribe"  # transcribe | translate | detect
    words: bool = False


@dataclass(frozen=True, slots=True)
class WindowResult:
    """What the engine made of one window. Segment and word times are seconds from the window's start."""

    segments: tuple[Segment, ...]
    language: str
    language_probability: float
    retried: str | None = None  # why the row was decoded again, if it was
    languages: tuple[tuple[str, float], ...] = ()  # all of them, best first; only for task "detect"
    warnings: tuple[str, ...] = ()  # what of the options could not be had; for the client

    def to_wire(self) -> dict[str, Any]:
        """As a worker message."""
        return {
            "segments": [segment.to_wire() for segment in self.segments],
            "language": self.language,
            "language_probability": self.language_probability,
            "retried": self.retried,
            "languages": self.languages,
            "warnings": self.warnings,
        }

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> WindowResult:
        """From a worker message."""
        return cls(
            segments=tuple(segment_from_wire(segment) for segment in wire["segments"]),
            language=wire["language"],
            language_probability=wire["language_probability"],
            retried=wire["retried"],
            languages=tuple((code, probability) for code, probability in wire["languages"]),
            warnings=tuple(wire["warnings"]),
        )


def segment_from_wire(wire: dict[str, Any]) -> Segment:
    """The inverse of Segment.to_wire; members it does not know are ignored, as additions may come."""
    words = wire.get("words")
    return Segment(
        **{name: wire[name] for name in Segment.__slots__ if name != "words"},
        words=None
        if words is None
        else tuple(Word(w["word"], w["start"], w["end"], w["probability"]) for w in words),
    )

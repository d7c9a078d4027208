"""What the daemon's results are in Python: frozen values with the contract's names.

A result keeps the daemon's own object in `raw`, so that a newer daemon's additions are not lost on an older
client. Fields that the contract promises are read strictly: a missing one is the daemon's bug and raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from whisperd.messages import Segment, Word


@dataclass(frozen=True, slots=True)
class Transcript:
    """The result of `transcribe`. Times are seconds, `timing` milliseconds by stage."""

    text: str
    segments: tuple[Segment, ...]
    language: str | None
    language_probability: float | None
    duration_s: float
    speech_s: float
    model: str
    task: str
    job: str
    timing: Mapping[str, float]
    rtf: float
    windows: int
    warnings: tuple[str, ...]
    rendered: Mapping[str, str]
    raw: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_wire(cls, raw: Mapping[str, Any]) -> Transcript:
        return cls(
            text=raw["text"],
            segments=tuple(segment_from_wire(segment) for segment in raw["segments"]),
            language=raw["language"],
            language_probability=raw["language_probability"],
            duration_s=raw["duration_s"],
            speech_s=raw["speech_s"],
            model=raw["model"],
            task=raw["task"],
            job=raw["job"],
            timing=raw["timing"],
            rtf=raw["rtf"],
            windows=raw["windows"],
            warnings=tuple(raw["warnings"]),
            rendered=raw.get("rendered", {}),
            raw=raw,
        )


@dataclass(frozen=True, slots=True)
class DetectedLanguage:
    """The result of `detect_language`; `languages` are (code, probability), the likeliest first."""

    language: str | None
    probability: float
    languages: tuple[tuple[str, float], ...]

    @classmethod
    def from_wire(cls, raw: Mapping[str, Any]) -> DetectedLanguage:
        languages = tuple((entry["language"], entry["probability"]) for entry in raw["languages"])
        return cls(raw["language"], raw["probability"], languages)


def segment_from_wire(raw: Mapping[str, Any]) -> Segment:
    """A segment of a result or of a progress notification."""
    words = raw.get("words")
    return Segment(
        id=raw["id"],
        start=raw["start"],
        end=raw["end"],
        text=raw["text"],
        avg_logprob=raw["avg_logprob"],
        no_speech_prob=raw["no_speech_prob"],
        compression_ratio=raw["compression_ratio"],
        temperature=raw["temperature"],
        words=None if words is None else tuple(word_from_wire(word) for word in words),
    )


def word_from_wire(raw: Mapping[str, Any]) -> Word:
    return Word(raw["word"], raw["start"], raw["end"], raw["probability"])

"""One window as the engine sees it, and what to do with the part of it that a text left out.

Whisper sometimes ends a window's text after a sentence and leaves the rest to the next look, which openai/whisper then
takes from the last timestamp on. Here the rest becomes a row of its own, so that the rests of a batch share a pass as
well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from whisperd.batching import context_frames
from whisperd.inference.attempts import Attempt, is_doubtful, is_silence
from whisperd.inference.timestamps import Stretch, split_at_timestamps
from whisperd.messages import FRAMES_MAX, SAMPLE_RATE, WINDOW_MAX_S, DecodeOptions, RowOptions, Segment, WindowResult

# Music and noise that the detector took for speech came to 0.2-0.6 s of it in the clips that were measured. A clip of
# real speech may have as little, but then the model is sure of what it hears.
_FAINT_S = 0.7

# Speech left behind the last timestamp that is worth another look; timestamps are a good half second off at times.
_REST_MIN_S = 1.0
# Rests are few, so contexts that differ by less than this share a pass.
_REST_FRAMES = 500
# Less than this is not decoded by itself.
_REST_ALONE_S = 6.0
_LEAD_S = 0.3  # kept before a stretch that is heard again, as far as nobody speaks in it


@dataclass(frozen=True, slots=True)
class Row:
    """One window to decode: float32 samples at 16 kHz, shape [samples], and what it wants for itself."""

    samples: npt.NDArray[np.float32]
    options: RowOptions
    sure_speech_s: float = WINDOW_MAX_S  # how much of it the detector is sure of
    speech_stop_s: float = WINDOW_MAX_S  # where the last of that ends

    @property
    def faint(self) -> bool:
        """Whether the window may hold no speech at all: the detector is sure of next to none."""
        return self.sure_speech_s < _FAINT_S

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    @property
    def speech_s(self) -> float:
        """Sure speech; all of it where nobody looked."""
        return min(self.sure_speech_s, self.duration_s)


@dataclass(frozen=True, slots=True)
class Heard:
    """What one pass made of a row, and its stretches of text, one for each segment.

    They are apart because a segment with words ends where its last word was found, which must not decide what is
    decoded: the text would then depend on whether words were asked for, and a pause within a word be taken for the end.
    """

    result: WindowResult
    stretches: Sequence[Stretch]


@dataclass(frozen=True, slots=True)
class Rest:
    """What is to be heard again, from `cut_s` on; so many segments stay as they are."""

    cut_s: float
    keep: int


def padded(samples: npt.NDArray[np.float32], length: int) -> npt.NDArray[np.float32]:
    """With silence behind them up to `length`, or cut there."""
    return samples[:length] if len(samples) >= length else np.pad(samples, (0, length - len(samples)))


def stretches_of(
    row: Row, attempt: Attempt, options: DecodeOptions, timestamp_begin: int, end_of_text: int
) -> list[Stretch]:
    """The attempt's text by its timestamps, in one piece where it has none; empty where nobody is taken to speak."""
    if is_silence(attempt, options) or not attempt.text or (row.faint and is_doubtful(attempt, options)):
        return []
    window_s = round(row.duration_s, 3)
    if options.for_window(row.duration_s).timestamps:
        return split_at_timestamps(attempt.tokens, timestamp_begin, end_of_text, window_s)
    return [Stretch(0.0, window_s, tuple(token for token in attempt.tokens if token < end_of_text))]


def rest_of_text(row: Row, stretches: Sequence[Stretch]) -> Rest | None:
    """Where the model is to begin again, because it stopped although speech goes on; None where it heard everything.

    A few words by themselves are easily misheard, so where little is left the last stretch of text is heard again
    with it, from a little before it: its first word may begin earlier than it was found.
    """
    if not stretches:
        return None
    last, before_s = stretches[-1], stretches[-2].end if len(stretches) > 1 else 0.0
    left_s = min(row.speech_stop_s, row.duration_s) - last.end
    if left_s <= _REST_MIN_S or last.end <= _REST_MIN_S:
        return None
    again_s = max(last.start - _LEAD_S, min(before_s, last.start))
    if left_s < _REST_ALONE_S and again_s > _REST_MIN_S:
        return Rest(again_s, len(stretches) - 1)
    return Rest(last.end, len(stretches))


def by_context(rows: Sequence[Row], rests: dict[int, Rest], options: DecodeOptions) -> dict[int, list[int]]:
    """The rests' rows by the context that they need, so that they share passes."""
    groups: dict[int, list[int]] = {}
    for i, rest in rests.items():
        samples = len(rows[i].samples) - int(rest.cut_s * SAMPLE_RATE)
        context = context_frames(samples, options.tail_s)
        groups.setdefault(min(FRAMES_MAX, math.ceil(context / _REST_FRAMES) * _REST_FRAMES), []).append(i)
    return groups


def rest_of(row: Row, cut_s: float, language: str) -> Row:
    """The row from `cut_s` on, in the language that was heard before."""
    return Row(
        row.samples[int(cut_s * SAMPLE_RATE) :],
        replace(row.options, language=language),
        min(row.sure_speech_s, max(0.0, row.speech_stop_s - cut_s)),
        row.speech_stop_s - cut_s,
    )


def joined(result: WindowResult, rest: WindowResult, begins: Rest) -> WindowResult:
    """The rest's segments behind the first part's, in the window's time; the first part alone where the rest says no
    more than what it would replace.

    Words are found where they are heard, not where the timestamps say, so the first part's last ones may reach past
    the cut; they end there, as the rest's begin.
    """
    cut_s = begins.cut_s
    if _length(rest.segments) <= _length(result.segments[begins.keep :]):
        return result
    kept = tuple(_until(segment, cut_s) for segment in result.segments[: begins.keep])
    moved = tuple(
        replace(
            segment,
            id=len(kept) + segment.id,
            start=round(cut_s + segment.start, 3),
            end=round(cut_s + segment.end, 3),
            words=segment.words
            and tuple(replace(w, start=round(cut_s + w.start, 3), end=round(cut_s + w.end, 3)) for w in segment.words),
        )
        for segment in rest.segments
    )
    return replace(result, segments=kept + moved, retried=result.retried or rest.retried)


def _length(segments: Sequence[Segment]) -> int:
    """Of their text, in characters."""
    return sum(len(segment.text.strip()) for segment in segments)


def in_one(result: WindowResult, row: Row) -> WindowResult:
    """The window's text as one segment, for who wants no times."""
    if not result.segments:
        return result
    text = "".join(segment.text for segment in result.segments)
    whole = replace(result.segments[0], start=0.0, end=round(row.duration_s, 3), text=text)
    return replace(result, segments=(whole,))


def _until(segment: Segment, cut_s: float) -> Segment:
    """The segment with no time behind the cut."""
    if segment.end <= cut_s:
        return segment
    words = segment.words and tuple(
        replace(word, start=min(word.start, cut_s), end=min(word.end, cut_s)) for word in segment.words
    )
    return replace(segment, start=min(segment.start, cut_s), end=cut_s, words=words)

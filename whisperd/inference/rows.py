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
    """What one pass made of a row, where its text stopped (None: there is none), and where its last stretch began.

    They are apart because a short window's segment with words ends where its last word was found, which must not decide
    what is decoded: the text would then depend on whether words were asked for.
    """

    result: WindowResult
    stopped_s: float | None
    last_s: float = 0.0


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


def rest_begins(row: Row, heard: Heard) -> float | None:
    """Where the model is to begin again, because it stopped although speech goes on; None where it heard everything.

    A few words by themselves are easily misheard, so where little is left the last stretch of text is heard again
    with it.
    """
    stopped_s = heard.stopped_s
    if stopped_s is None:
        return None
    left_s = min(row.speech_stop_s, row.duration_s) - stopped_s
    if left_s <= _REST_MIN_S or stopped_s <= _REST_MIN_S:
        return None
    return heard.last_s if left_s < _REST_ALONE_S and heard.last_s > _REST_MIN_S else stopped_s


def by_context(rows: Sequence[Row], rests: dict[int, float], options: DecodeOptions) -> dict[int, list[int]]:
    """The rests' rows by the context that they need, so that they share passes."""
    groups: dict[int, list[int]] = {}
    for i, cut_s in rests.items():
        samples = len(rows[i].samples) - int(cut_s * SAMPLE_RATE)
        context = context_frames(samples, options.tail_s)
        groups.setdefault(min(FRAMES_MAX, math.ceil(context / _REST_FRAMES) * _REST_FRAMES), []).append(i)
    return groups


def rest_of(row: Row, cut_s: float, language: str) -> Row:
    """The row from `cut_s` on, in the language that was heard before."""
    return Row(
        row.samples[int(cut_s * SAMPLE_RATE) :],
        replace(row.options, language=language),
        row.sure_speech_s,
        row.speech_stop_s - cut_s,
    )


def joined(result: WindowResult, rest: WindowResult, cut_s: float) -> WindowResult:
    """The rest's segments behind the first part's, in the window's time.

    Words are found where they are heard, not where the timestamps say, so the first part's last ones may reach past
    the cut; they end there, as the rest's begin.
    """
    kept = tuple(_until(segment, cut_s) for segment in result.segments if segment.start < cut_s)
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

"""Whisper's timestamp tokens into stretches of text, and aligned words into words that obey their segment.

Pure arithmetic on token ids and seconds; it knows no tokenizer and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SECONDS_PER_TIMESTAMP = 0.02  # one timestamp token each


@dataclass(frozen=True, slots=True)
class Stretch:
    """Text tokens between two timestamps; seconds from the window's start."""

    start: float
    end: float
    tokens: tuple[int, ...]


def split_at_timestamps(tokens: Sequence[int], timestamp_begin: int, eot: int, window_s: float) -> list[Stretch]:
    """Cuts a window's tokens where a timestamp closes one stretch and another opens the next.

    Text without a closing timestamp ends with the window, text without an opening one starts where the last
    stretch ended. Times are clamped into the window and never run backwards: with short context a model may
    name a time in the silence that was put behind the speech.
    """
    stretches: list[Stretch] = []
    start, text = 0.0, list[int]()

    def close(end: float) -> None:
        nonlocal start, text
        end = max(start, min(end, window_s))
        if text:
            stretches.append(Stretch(round(start, 3), round(end, 3), tuple(text)))
            text = []
        start = end

    for token in tokens:
        if token >= timestamp_begin:
            time_s = (token - timestamp_begin) * SECONDS_PER_TIMESTAMP
            if text:
                close(time_s)
            else:
                start = max(start, min(time_s, window_s))
        elif token < eot:
            text.append(token)
    if text:
        close(window_s)
    return stretches


@dataclass(slots=True)
class AlignedWord:
    """A word as the aligner found it; seconds from the window's start."""

    word: str
    start: float
    end: float
    probability: float
    tokens: int  # how many tokens it is made of


Sentence = tuple[Stretch, list[AlignedWord]]  # with its words, if they were aligned

_LONGEST_WORD_S = 0.7  # the median word is taken to be no longer when outliers are judged (openai/whisper, timing.py)


def with_words(stretches: Sequence[Stretch], words: Sequence[AlignedWord], window_s: float) -> list[Sentence]:
    """The stretches with the words that are theirs, at sane times."""
    floor_s = 0.0
    sentences: list[Sentence] = []
    for stretch, own in zip(stretches, share_words(stretches, words), strict=True):
        settled = settle_words(own, window_s, floor_s)
        floor_s = settled[-1].end if settled else floor_s
        sentences.append((stretch, settled))
    return sentences


def share_words(stretches: Sequence[Stretch], words: Sequence[AlignedWord]) -> list[list[AlignedWord]]:
    """Gives each stretch the words that begin in it, by counting tokens."""
    shared: list[list[AlignedWord]] = []
    position = tokens = border = 0
    for stretch in stretches:
        own: list[AlignedWord] = []
        border += len(stretch.tokens)
        while position < len(words) and tokens < border:
            tokens += words[position].tokens
            own.append(words[position])
            position += 1
        shared.append([word for word in own if word.word.strip()])
    return shared


def longest_word_s(words: Sequence[AlignedWord]) -> float:
    """What of these is longer than this holds a pause."""
    durations = sorted(word.end - word.start for word in words if word.end > word.start)
    median_s = min(_LONGEST_WORD_S, durations[len(durations) // 2]) if durations else 0.0
    return max(2 * median_s, 0.1)


def settle_words(words: Sequence[AlignedWord], window_s: float, floor_s: float) -> list[AlignedWord]:
    """Words of one stretch with sane times: none before `floor_s`, none beyond the window, none overlapping.

    A word beside a pause is often stretched over it; one longer than twice the median gets shortened on the
    side of the pause: the first word's start, any other's end.
    """
    longest_s = longest_word_s(words)
    settled: list[AlignedWord] = []
    for index, word in enumerate(words):
        start = min(max(word.start, floor_s), window_s)
        end = min(max(word.end, start), window_s)
        if end - start > longest_s:
            if index == 0:
                start = end - longest_s
            else:
                end = start + longest_s
        settled.append(AlignedWord(word.word, round(start, 3), round(end, 3), word.probability, word.tokens))
        floor_s = end
    return settled

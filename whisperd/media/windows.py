"""Where audio is cut: speech probabilities in, windows out. Pure; knows neither samples nor the model.

A window is what the encoder gets at once, at most 30 s. The rules that keep it honest:

- Speech is never dropped: every sure frame lies in exactly one window, unless it belongs to a blip that is too
  short to hold a word.
- A cut costs words when it falls into one, so cuts are chosen together, not one after the other: the
  cheapest way through a stretch of speech, where a cut in a pause costs little, one in running speech a
  lot, and each further window and each short window something. That is also what prevents leftovers.
- Silence shorter than MIN_SILENCE_S belongs to the speech around it, at the ends of the audio too.

Whisper invents words in silence; audio in which no speech is found becomes no window at all. Where the
detector itself was hardly sure, each window says so by its seconds of sure speech, and the decoder can
be asked to be surer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from whisperd.messages import SAMPLE_RATE, WINDOW_MAX_S

FRAME_SAMPLES = 512  # the detector says one probability per 32 ms; its model is made for this step
SPEECH_PROBABILITY = 0.5  # speech begins here …
QUIET_PROBABILITY = 0.35  # … and goes on until here, so that a soft syllable does not end it
MIN_SPEECH_S = 0.25  # Silero's own default; a click or a drum, not a word
MIN_SILENCE_S = 2.0  # faster-whisper's default for its vad_filter, as is the padding
PADDING_S = 0.4  # kept around speech: the detector is late at soft beginnings
WINDOW_MIN_S = 1.0  # no caller wants less, and it bounds the number of windows

_FRAME_S = FRAME_SAMPLES / SAMPLE_RATE
_MIN_SPEECH_FRAMES = -int(-MIN_SPEECH_S // _FRAME_S)
_MIN_SILENCE_FRAMES = -int(-MIN_SILENCE_S // _FRAME_S)
_PADDING_SAMPLES = int(PADDING_S * SAMPLE_RATE)

# The prices of a cut, relative to each other. An extra window is worth paying for when it turns a cut in
# running speech into one in a pause, not to turn a pause into a longer one.
_WINDOW_COST = 1.0
_SHORT_WINDOW_COST = 1.0  # at length zero, falling to nothing at a third of the longest window
_CUT_IN_SPEECH_COST = 3.0
_PAUSE_HALF_S = 0.05  # quiet on each side of a cut that halves its price
_CANDIDATES_PER_WINDOW = 32  # bounds the search: about one place per second is looked at


class Window(NamedTuple):
    """Samples [start, stop) of the audio."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """The windows in order; how many samples were taken for speech (padding included); and for each
    window how many seconds of it are surely speech, and the sample behind the last of it. With `vad` False the
    client vouches for all of it: then each window counts as WINDOW_MAX_S of sure speech, so that no short one is
    taken for one in which hardly anybody speaks."""

    windows: tuple[Window, ...]
    speech_samples: int
    sure_speech_s: tuple[float, ...]
    speech_stop: tuple[int, ...]


def needs_probabilities(sample_count: int, *, vad: bool | str, window_s: float) -> bool:
    """Whether `plan_windows` looks at probabilities at all; without `vad` and cuts it does not."""
    return vad is not False or sample_count > int(window_s * SAMPLE_RATE)


def plan_windows(
    probabilities: Sequence[float], sample_count: int, *, vad: bool | str, window_s: float
) -> WindowPlan:
    """Windows for audio of `sample_count` samples with one speech probability per started FRAME_SAMPLES.

    `vad`: False keeps everything; "auto" gives nothing where nobody speaks, leaves audio of one window
    whole and drops silence from longer audio; True drops silence from short audio too.
    Raises ValueError for a `window_s` outside 1 … 30 or probabilities that do not fit the audio.
    """
    if not WINDOW_MIN_S <= window_s <= WINDOW_MAX_S:
        raise ValueError(f"window_s is {window_s}, not between {WINDOW_MIN_S:g} and {WINDOW_MAX_S}")
    needed = needs_probabilities(sample_count, vad=vad, window_s=window_s)
    if needed and len(probabilities) != -(-sample_count // FRAME_SAMPLES):
        raise ValueError(f"{len(probabilities)} probabilities do not fit {sample_count} samples")
    longest = int(window_s * SAMPLE_RATE)
    whole = Window(0, sample_count)
    if vad is False:
        windows = _cut_all([whole] if sample_count else [], probabilities, longest)
        sure_s = (float(WINDOW_MAX_S),) * len(windows)
        return WindowPlan(tuple(windows), sample_count, sure_s, tuple(window.stop for window in windows))
    spans = speech_spans(probabilities, sample_count)
    speech_samples = sum(span.stop - span.start for span in spans)
    if vad == "auto" and spans and sample_count <= longest:
        windows = [whole]
    else:
        windows = _cut_all(spans, probabilities, longest)
    return WindowPlan(
        tuple(windows),
        speech_samples,
        tuple(_sure_s(probabilities, window) for window in windows),
        tuple(_speech_stop(probabilities, window) for window in windows),
    )


def speech_spans(probabilities: Sequence[float], sample_count: int) -> list[Window]:
    """Stretches of speech, parted by at least MIN_SILENCE_S, with PADDING_S of what surrounds them."""
    spans = []
    for first, end in _speech_runs(probabilities):
        if end - first < _MIN_SPEECH_FRAMES:
            continue
        start = first * FRAME_SAMPLES - _PADDING_SAMPLES if first >= _MIN_SILENCE_FRAMES else 0
        stop = end * FRAME_SAMPLES + _PADDING_SAMPLES
        spans.append(Window(max(0, start), min(stop, sample_count)))
    return spans


def _speech_runs(probabilities: Sequence[float]) -> list[tuple[int, int]]:
    """Frames [first, end) from the first sure speech to where a long silence begins, or to the last frame."""
    runs = []
    first = quiet_from = -1
    for frame, probability in enumerate(probabilities):
        if probability >= SPEECH_PROBABILITY:
            quiet_from = -1
            if first < 0:
                first = frame
        elif first >= 0:
            if quiet_from < 0 and probability < QUIET_PROBABILITY:
                quiet_from = frame
            if 0 <= quiet_from <= frame + 1 - _MIN_SILENCE_FRAMES:
                runs.append((first, quiet_from))
                first = quiet_from = -1
    if first >= 0:
        runs.append((first, len(probabilities)))
    return runs


def _sure_s(probabilities: Sequence[float], window: Window) -> float:
    frames = range(window.start // FRAME_SAMPLES, -(-window.stop // FRAME_SAMPLES))
    return sum(probabilities[frame] >= SPEECH_PROBABILITY for frame in frames) * _FRAME_S


def _speech_stop(probabilities: Sequence[float], window: Window) -> int:
    """The end of the window's last sure frame; its start where it has none."""
    for frame in range(-(-window.stop // FRAME_SAMPLES) - 1, window.start // FRAME_SAMPLES - 1, -1):
        if probabilities[frame] >= SPEECH_PROBABILITY:
            return max(window.start, min(window.stop, (frame + 1) * FRAME_SAMPLES))
    return window.start


def _cut_all(spans: Sequence[Window], probabilities: Sequence[float], longest: int) -> list[Window]:
    windows: list[Window] = []
    for span in spans:
        if span.stop - span.start <= longest:
            windows.append(span)
        else:
            windows.extend(_cut_span(span, _places_to_cut(probabilities, span, longest), longest))
    return windows


def _places_to_cut(probabilities: Sequence[float], span: Window, longest: int) -> list[tuple[int, float]]:
    """(sample, price) of the best place in each stride of the span, in order; strides are a small part of
    the longest window, so that some way through always exists."""
    stride = max(1, longest // FRAME_SAMPLES // _CANDIDATES_PER_WINDOW)
    first = span.start // FRAME_SAMPLES + 1
    end = min(len(probabilities), span.stop // FRAME_SAMPLES)
    quiet = _quiet_around(probabilities, first, end)
    places = []
    for begin in range(first, end, stride):
        frames = range(begin, min(begin + stride, end))
        best = max(frames, key=lambda frame: (quiet[frame - first], -probabilities[frame]))
        margin_s = quiet[best - first] * _FRAME_S
        price = _CUT_IN_SPEECH_COST + probabilities[best]
        if margin_s:
            price = _PAUSE_HALF_S / (_PAUSE_HALF_S + margin_s)
        places.append((best * FRAME_SAMPLES + FRAME_SAMPLES // 2, price))
    return places


def _quiet_around(probabilities: Sequence[float], first: int, end: int) -> list[float]:
    """For each frame in [first, end): how many quiet frames lie on each side of its middle; 0 in speech."""
    quiet = [0.0] * (end - first)
    run = 0.0
    for frame in range(first, end):
        run = run + 1 if probabilities[frame] < QUIET_PROBABILITY else 0.0
        quiet[frame - first] = run
    run = 0.0
    for frame in range(end - 1, first - 1, -1):
        run = run + 1 if probabilities[frame] < QUIET_PROBABILITY else 0.0
        quiet[frame - first] = max(0.0, min(quiet[frame - first], run) - 0.5)
    return quiet


def _cut_span(span: Window, places: Sequence[tuple[int, float]], longest: int) -> list[Window]:
    """The cheapest way through the span in steps of at most `longest` samples (shortest path)."""
    nodes = [(span.start, 0.0), *places, (span.stop, 0.0)]
    cost = [0.0]
    came_from = [0]
    reach = 0  # the first node from which the current one can be reached
    for here in range(1, len(nodes)):
        sample, price = nodes[here]
        while sample - nodes[reach][0] > longest:
            reach += 1
        ways = ((cost[at] + _window_cost(sample - nodes[at][0], longest), at) for at in range(reach, here))
        cheapest, origin = min(ways)
        cost.append(cheapest + price)
        came_from.append(origin)
    windows = []
    here = len(nodes) - 1
    while here:
        windows.append(Window(nodes[came_from[here]][0], nodes[here][0]))
        here = came_from[here]
    windows.reverse()
    return windows


def _window_cost(length: int, longest: int) -> float:
    return _WINDOW_COST + _SHORT_WINDOW_COST * max(0.0, 1 - 3 * length / longest)

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

import array
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
_HORIZON_WINDOWS = 3  # longest windows; when so much is planned behind the last fixed cut, further cuts are fixed …
_WINDOWS_OPEN = 1  # … but for the last one, which a better way may change
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

    def to_wire(self) -> dict[str, Any]:
        """The fields of a media worker's message; the samples of speech are told in the last one, for all parts."""
        return {
            "windows": [[window.start, window.stop] for window in self.windows],
            "sure_speech_s": [round(seconds, 3) for seconds in self.sure_speech_s],
            "speech_stop": list(self.speech_stop),
        }

    def __add__(self, rest: WindowPlan) -> WindowPlan:
        """A part of a plan and the part behind it."""
        return WindowPlan(
            self.windows + rest.windows,
            self.speech_samples + rest.speech_samples,
            self.sure_speech_s + rest.sure_speech_s,
            self.speech_stop + rest.speech_stop,
        )


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
    planner = Planner(sample_count, vad=vad, window_s=window_s)
    return planner.feed(probabilities) + planner.finish()


class Planner:
    """The same plan, told as the probabilities come: each window as soon as nothing behind it can change it.

    That is so because the plan is made of stretches of speech that do not know of each other, and because cuts in a
    long stretch are fixed when so much is known behind them. When a window is handed out depends on the blocks in
    which probabilities come; which windows there are does not.
    """

    def __init__(self, sample_count: int, *, vad: bool | str, window_s: float) -> None:
        """As for `plan_windows`."""
        if not WINDOW_MIN_S <= window_s <= WINDOW_MAX_S:
            raise ValueError(f"window_s is {window_s}, not between {WINDOW_MIN_S:g} and {WINDOW_MAX_S}")
        self._sample_count = sample_count
        self._vad = vad
        self._longest = int(window_s * SAMPLE_RATE)
        self._whole = sample_count <= self._longest and vad in (False, "auto")  # one window or none
        self._needed = needs_probabilities(sample_count, vad=vad, window_s=window_s)
        self._probabilities = array.array("d")  # a list of floats for a day of audio would take 90 MB, this 20
        self._runs = _Runs()
        self._way: _Way | None = None  # through the stretch of speech that has not ended yet
        self._speech_samples = 0

    def feed(self, probabilities: Iterable[float]) -> WindowPlan:
        """Takes the next probabilities; returns what of the plan is settled by them, its samples of speech included."""
        windows: list[Window] = []
        begin = len(self._probabilities)
        self._probabilities.extend(probabilities)
        if self._vad is False:
            if not self._whole:
                windows = self._keep_all(begin)
            return self._part(windows, 0)
        before = self._speech_samples
        for frame in range(begin, len(self._probabilities)):
            ended = self._runs.take(frame, self._probabilities[frame])
            if ended:
                windows += self._end_run(*ended)
        first, sure_end = self._runs.open
        if not self._whole and sure_end - first >= _MIN_SPEECH_FRAMES:
            if self._way is None:
                self._way = _Way(self._probabilities, self._start_of(first), self._longest)
            windows += self._way.settle(sure_end)
        return self._part(windows, self._speech_samples - before)

    @property
    def frames(self) -> int:
        """How many probabilities came so far."""
        return len(self._probabilities)

    def finish(self) -> WindowPlan:
        """The rest. Raises ValueError where not all probabilities came, or too many."""
        if self._needed and len(self._probabilities) != -(-self._sample_count // FRAME_SAMPLES):
            raise ValueError(f"{len(self._probabilities)} probabilities do not fit {self._sample_count} samples")
        before = self._speech_samples
        windows: list[Window] = []
        if self._vad is False:
            windows = self._keep_rest()
            self._speech_samples = self._sample_count
        elif (first := self._runs.open[0]) >= 0:
            windows = self._end_run(first, len(self._probabilities))
        if self._vad == "auto" and self._whole and self._speech_samples:
            windows = [Window(0, self._sample_count)]
        return self._part(windows, self._speech_samples - before)

    def _keep_all(self, begin: int) -> list[Window]:
        """Without detection all is one stretch, and a pause in it ends with the next frame that is not quiet."""
        if self._way is None:
            self._way = _Way(self._probabilities, 0, self._longest)
        for frame in range(len(self._probabilities) - 1, begin - 1, -1):
            if self._probabilities[frame] >= QUIET_PROBABILITY:
                return self._way.settle(frame + 1)
        return []

    def _keep_rest(self) -> list[Window]:
        if self._whole:
            return [Window(0, self._sample_count)] if self._sample_count else []
        way = self._way or _Way(self._probabilities, 0, self._longest)
        return way.end(self._sample_count)

    def _end_run(self, first: int, end: int) -> list[Window]:
        """The windows that are left of a stretch of speech, [first, end) in frames."""
        way, self._way = self._way, None
        if end - first < _MIN_SPEECH_FRAMES:
            return []
        start, stop = self._start_of(first), min(end * FRAME_SAMPLES + _PADDING_SAMPLES, self._sample_count)
        self._speech_samples += stop - start
        if self._whole:
            return []
        return (way or _Way(self._probabilities, start, self._longest)).end(stop)

    def _start_of(self, first: int) -> int:
        """Stretches are parted by at least MIN_SILENCE_S; PADDING_S of that is kept."""
        return max(0, first * FRAME_SAMPLES - _PADDING_SAMPLES) if first >= _MIN_SILENCE_FRAMES else 0

    def _part(self, windows: list[Window], speech_samples: int) -> WindowPlan:
        if self._vad is False:
            sure_s = (float(WINDOW_MAX_S),) * len(windows)
            return WindowPlan(tuple(windows), speech_samples, sure_s, tuple(window.stop for window in windows))
        return WindowPlan(
            tuple(windows),
            speech_samples,
            tuple(_sure_s(self._probabilities, window) for window in windows),
            tuple(_speech_stop(self._probabilities, window) for window in windows),
        )


class _Runs:
    """Frames [first, end) from the first sure speech to where a long silence begins, found frame by frame."""

    def __init__(self) -> None:
        self._first = self._quiet_from = -1
        self._sure_end = 0

    @property
    def open(self) -> tuple[int, int]:
        """The run that has not ended: its first frame, the end of its sure speech so far. -1 where there is none."""
        return (self._first, self._sure_end) if self._first >= 0 else (-1, -1)

    def take(self, frame: int, probability: float) -> tuple[int, int] | None:
        """The run that this frame ends, if it does."""
        if probability >= SPEECH_PROBABILITY:
            self._quiet_from = -1
            self._sure_end = frame + 1
            if self._first < 0:
                self._first = frame
        elif self._first >= 0:
            if self._quiet_from < 0 and probability < QUIET_PROBABILITY:
                self._quiet_from = frame
            if 0 <= self._quiet_from <= frame + 1 - _MIN_SILENCE_FRAMES:
                run = self._first, self._quiet_from
                self._first = self._quiet_from = -1
                return run
        return None


def _sure_s(probabilities: Sequence[float], window: Window) -> float:
    frames = range(window.start // FRAME_SAMPLES, -(-window.stop // FRAME_SAMPLES))
    return sum(probabilities[frame] >= SPEECH_PROBABILITY for frame in frames) * _FRAME_S


def _speech_stop(probabilities: Sequence[float], window: Window) -> int:
    """The end of the window's last sure frame; its start where it has none."""
    for frame in range(-(-window.stop // FRAME_SAMPLES) - 1, window.start // FRAME_SAMPLES - 1, -1):
        if probabilities[frame] >= SPEECH_PROBABILITY:
            return max(window.start, min(window.stop, (frame + 1) * FRAME_SAMPLES))
    return window.start


class _Way:
    """The cheapest way through one stretch of speech in steps of at most `longest` samples (shortest path), found from
    its start while its end is still unknown.

    Cuts are looked for at the best place in each stride; strides are a small part of the longest window, so that some
    way through always exists. A search over all of it could not name its first cut before its end, so cuts are fixed
    as it goes, whenever enough of the way is known behind the last fixed one. When that is depends on the places alone.
    In hours of speech the way costs 1 % more for it.
    """

    def __init__(self, probabilities: Sequence[float], start: int, longest: int) -> None:
        """`probabilities` are the audio's, and may grow."""
        self._probabilities = probabilities
        self._longest = longest
        self._stride = max(1, longest // FRAME_SAMPLES // _CANDIDATES_PER_WINDOW)
        self._first = self._next = start // FRAME_SAMPLES + 1  # the first frame to cut in; of the next stride
        self._quiet: list[float] = []  # see `_quiet_around`, from the first frame on
        self._places = [start]  # samples, in order: the nodes of the search
        self._costs = [0.0]
        self._came_from = [0]
        self._reach = 0  # the first node from which the next one might be reached
        self._fixed = 0  # the last node through which the way is sure to go
        self._handed_out = 0  # the node up to which windows were

    def settle(self, end: int) -> list[Window]:
        """The windows that are sure when the frames before `end` are known and the last of them is not quiet."""
        self._look(end)
        while self._next + self._stride <= end:
            self._add_stride(self._next + self._stride)
        return self._hand_out(self._fixed)

    def end(self, stop: int) -> list[Window]:
        """The windows that are left, now that the stretch is known to end at sample `stop`."""
        if stop - self._places[0] <= self._longest:
            return [Window(self._places[0], stop)]
        end = min(len(self._probabilities), stop // FRAME_SAMPLES)
        self._look(end)
        while self._next < end:
            self._add_stride(min(self._next + self._stride, end))
        self._add(stop, 0.0)
        return self._hand_out(len(self._places) - 1)

    def _look(self, end: int) -> None:
        begin = self._first + len(self._quiet)
        if begin < end:
            self._quiet += _quiet_around(self._probabilities, begin, end)

    def _add_stride(self, end: int) -> None:
        """The best place of the frames up to `end`, and what a cut there costs."""
        frames = range(self._next, end)
        best = max(frames, key=lambda frame: (self._quiet[frame - self._first], -self._probabilities[frame]))
        margin_s = self._quiet[best - self._first] * _FRAME_S
        price = _CUT_IN_SPEECH_COST + self._probabilities[best]
        if margin_s:
            price = _PAUSE_HALF_S / (_PAUSE_HALF_S + margin_s)
        self._add(best * FRAME_SAMPLES + FRAME_SAMPLES // 2, price)
        self._next = end

    def _add(self, sample: int, price: float) -> None:
        while sample - self._places[self._reach] > self._longest:
            self._reach += 1
        ways = (
            (self._costs[at] + _window_cost(sample - self._places[at], self._longest), at)
            for at in range(self._reach, len(self._places))
        )
        cheapest, origin = min(ways)
        self._places.append(sample)
        self._costs.append(cheapest + price)
        self._came_from.append(origin)
        if sample - self._places[self._fixed] > _HORIZON_WINDOWS * self._longest:
            self._fix()

    def _fix(self) -> None:
        """Fixes cuts on the way that gets furthest for what it costs, but for its last windows, and gives up every way
        that has others."""
        last = len(self._places) - 1
        usual = self._costs[last] / (self._places[last] - self._places[0])
        near = range(self._reach, last + 1)
        way = [min(near, key=lambda node: self._costs[node] - usual * self._places[node])]
        while way[-1] > self._fixed:
            way.append(self._came_from[way[-1]])
        self._fixed = way[min(_WINDOWS_OPEN, len(way) - 1)]
        self._reach = max(self._reach, self._fixed)
        through = {self._fixed}
        for node in range(self._fixed + 1, len(self._places)):
            if self._came_from[node] in through:
                through.add(node)
            else:
                self._costs[node] = math.inf

    def _hand_out(self, node: int) -> list[Window]:
        windows = []
        here = node
        while here > self._handed_out:
            windows.append(Window(self._places[self._came_from[here]], self._places[here]))
            here = self._came_from[here]
        self._handed_out = node
        windows.reverse()
        return windows


def _quiet_around(probabilities: Sequence[float], first: int, end: int) -> list[float]:
    """For each frame in [first, end): how many quiet frames lie on each side of its middle; 0 in speech. What is
    around [first, end) counts as speech."""
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


def _window_cost(length: int, longest: int) -> float:
    return _WINDOW_COST + _SHORT_WINDOW_COST * max(0.0, 1 - 3 * length / longest)

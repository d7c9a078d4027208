"""What a batch costs the engine: predicted from its shape, in seconds that are learned from the engine itself.

The theory has two halves. The *shape* says how costs compare: encoding a row is dearer than its context is longer
(attention, and beyond 20 s the cache), a decoding step costs much for the first row and little for each further
one, and a row that has ended costs no more steps. It was fitted to tiny.en and base on a CPU (int8, one thread), which
differ by a factor and hardly in shape. The *rate* is that factor, for this engine on this machine: the median of what
the latest batches took for each predicted second, so that one batch that was stopped, retried or swapped out does
not move it. Nobody is refused or killed on the word of an engine that was not measured yet.

Costs without a rate are "nominal" seconds. Fairness is reckoned in them, because a rate that changes must not
reorder those who wait already.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from whisperd.jobs import Job, Window
from whisperd.messages import LONG_BEAM, is_long

TOKENS_PER_SECOND = 3.2  # of speech, measured over 169 clips
_EXTRA_TOKENS = 4  # timestamps and the end of text
_USUAL_ROWS = 8  # a window's share is reckoned in a batch of so many
_LIGHT_S = 0.6  # nominal seconds of a whole job: up to about half a minute of speech
_LIGHT_WINDOWS = 4  # a job of more is not light, however short they are
_RATIOS = 31  # batches that the rate is learned from
_RATIOS_MIN = 3  # the first one of an engine is slow, and one alone could be anything


@dataclass(frozen=True, slots=True)
class Shape:
    """Nominal seconds of the parts of a batch on one kind of device."""

    row_s: tuple[tuple[int, float], ...]  # (frames, seconds) to encode a row and attend to it; straight lines between
    step_s: float  # of a decoding step, for however few rows
    step_row_s: float  # and for each row in it
    beam_rows: float  # what each beam beyond the first adds, in rows

    def encode_s(self, frames: int) -> float:
        """Seconds to encode one row with a context of so many frames."""
        points = self.row_s
        at = min(max(1, bisect.bisect_left(points, (frames, 0.0))), len(points) - 1)
        (left, low), (right, high) = points[at - 1], points[at]
        return max(0.0, low + (high - low) * (frames - left) / (right - left))

    def decode_s(self, steps: Sequence[int], beam: int) -> float:
        """Seconds to decode rows of so many tokens each together: rows leave the batch as they end."""
        wide = self.step_row_s * (1 + self.beam_rows * (beam - 1))
        return self.step_s * max(steps, default=0) + wide * sum(steps)

    def batch_s(self, windows: Sequence[Window]) -> float:
        """Seconds for a batch whose rows all get the longest context among them."""
        if not windows:
            return 0.0
        frames = max(window.frames for window in windows)
        steps = [steps_of(window) for window in windows]
        return len(windows) * self.encode_s(frames) + self.decode_s(steps, beam_of(windows[0]))


# Fitted to CPU seconds, scaled so that tiny.en on a 2-core AMD EPYC (AVX-512) has a rate of about 1.
CPU = Shape(
    row_s=((0, 0.0), (600, 0.048), (1000, 0.089), (1400, 0.133), (2000, 0.202), (2400, 0.320), (3000, 0.515)),
    step_s=0.0044,
    step_row_s=0.00065,
    beam_rows=0.55,
)
# A GPU is idle most of the time with few rows: what a batch costs is its steps. Reasoned, not measured.
CUDA = Shape(
    row_s=((0, 0.0), (3000, 0.020)),
    step_s=0.0040,
    step_row_s=0.00005,
    beam_rows=0.55,
)

SHAPES = {"cpu": CPU, "cuda": CUDA}


def steps_of(window: Window) -> int:
    """Decoding steps that a window is expected to take."""
    if window.job.work.row.task == "detect":
        return 1
    return _EXTRA_TOKENS + round(TOKENS_PER_SECOND * window.duration_s)


def beam_of(window: Window) -> int:
    """The beam of a window's first decoding; 1 is greedy."""
    return window.job.work.options.beam_size or (LONG_BEAM if is_long(window.duration_s) else 1)


def share_s(window: Window) -> float:
    """Nominal seconds of a window as one row of a well filled batch: what its job is charged for it."""
    steps = steps_of(window)
    alone = CPU.encode_s(window.frames) + CPU.decode_s([steps], beam_of(window))
    return alone - CPU.step_s * steps * (1 - 1 / _USUAL_ROWS)


def is_light(job: Job) -> bool:
    """Whether all that is known of a job is little work, so that waiting behind long work would be most of its time."""
    windows = job.windows
    if job.more_to_come:
        return False
    return len(windows) <= _LIGHT_WINDOWS and sum(share_s(window) for window in windows) <= _LIGHT_S


class CostModel:
    """One engine's costs: a shape, and the rate that was learned of it."""

    def __init__(self, shape: Shape = CPU, prior: float = 1.0) -> None:
        """`prior` is the rate until something was measured."""
        self.shape = shape
        self.rate = prior  # seconds for each nominal second, as usual
        self.best_rate = prior  # as in the better quarter of batches
        self.measured = False
        self._ratios: deque[float] = deque(maxlen=_RATIOS)

    def seconds(self, windows: Sequence[Window]) -> float:
        """What a batch of these is expected to take."""
        return self.rate * self.shape.batch_s(windows)

    def learn(self, windows: Sequence[Window], took_s: float) -> None:
        """A batch of these took so long, from its start to its end."""
        nominal_s = self.shape.batch_s(windows)
        if nominal_s <= 0.0:
            return
        self._ratios.append(took_s / nominal_s)
        if len(self._ratios) < _RATIOS_MIN:
            return
        ranked = sorted(self._ratios)
        self.rate, self.best_rate = ranked[len(ranked) // 2], ranked[len(ranked) // 4]
        self.measured = True

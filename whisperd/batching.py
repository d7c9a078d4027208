"""Which windows go to the engine next, and how many of them together.

The order is that of `fairness`: the window with the lowest tag is the head of the next batch, and those that may share
its call go with it: first those with the same context, in their order, then those with the next ones, while the longer
context that all get costs less than the steps that are shared. How many is a matter of cost, not of count: a call
cannot be interrupted, so work that nobody hurries comes in batches of bounded seconds; and what is little is shared
among the lanes that are free. No batch is ever held back to grow: what queued up while the engine was busy is what a
batch is made of.

Windows of light jobs share no batch with those of long ones: a clip of 3 s need not wait for 15 s beside it to be
decoded.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from whisperd.cost import CPU, Shape, is_light, share_s, steps_of
from whisperd.fairness import VirtualTime
from whisperd.jobs import Job, Window
from whisperd.messages import FRAMES_MAX, FRAMES_PER_SECOND, SAMPLE_RATE, is_long

# Frames that contexts are rounded up to, so that few different ones wait. A multiple of 100 is also never 160 or 256
# frames, which CTranslate2 would mistake for encoder output (80 and 128 mel bands).
_BUCKET_FRAMES = 100
# Each row keeps the decoder's view of its context for as long as the batch lasts: 12 MB for 20 s with tiny, 160 MB with
# large. Two batches of eight such rows took the worker to 1.6 times the memory of faster-whisper.
ROOMY_FRAMES = 1000

_Entry = tuple[float, int, Window]
_Company = tuple[Window, int]  # who waits first with a context, and how many do


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a batch may hold. Seconds are nominal."""

    rows: int  # with contexts up to ROOMY_FRAMES; fewer with longer ones, which are what a batch's memory goes to
    slow_s: float = math.inf  # predicted for the batch, where it is of long jobs or of bulk: nobody hurries those
    slow_rows: int = 1  # but so many rows in any case: fewer are decoded badly
    share_s: float = math.inf  # of all that waits, what this lane should take (the nearest number of rows to it)
    shape: Shape = CPU

    def rows_of(self, frames: int) -> int:
        """How many rows with such a context."""
        return min(self.rows, max(self.slow_rows, self.rows * ROOMY_FRAMES // frames))


def context_frames(samples: int, tail_s: float | None) -> int:
    """Log-mel frames for a window of so many samples with `tail_s` of silence behind it, or half of that if the window
    is long (tails.py); None: the full 30 s."""
    if tail_s is None:
        return FRAMES_MAX
    duration_s = samples / SAMPLE_RATE
    wanted = (duration_s + (tail_s / 2 if is_long(duration_s) else tail_s)) * FRAMES_PER_SECOND
    return min(FRAMES_MAX, math.ceil(wanted / _BUCKET_FRAMES) * _BUCKET_FRAMES)


def compatibility_key(window: Window) -> tuple[Hashable, ...]:
    """Windows with equal keys may share an engine call (one model per batcher), at the longest of their contexts."""
    work = window.job.work
    return work.options, is_long(window.duration_s), work.row.task == "detect", work.priority, window.light


def may_hurry(window: Window) -> bool:
    """Whether an express lane is for it: little work, and wanted soon."""
    return window.light and window.job.work.priority != "bulk"


def fits(window: Window, batch: list[Window], bounds: Bounds) -> bool:
    """Whether a batch of windows with the same key may have one more."""
    if len(batch) >= bounds.rows_of(max(one.frames for one in (window, *batch))):
        return False
    if may_hurry(window) or len(batch) < bounds.slow_rows:
        return True
    return bounds.shape.batch_s([*batch, window]) <= bounds.slow_s


def _live(entry: _Entry) -> bool:
    """Whether its window waits, and by this turn: one that waits again has a new one, and must not wait twice."""
    _, number, window = entry
    return window.queued and not window.suspect and window.turn[1] == number


class Batcher:
    """The windows that wait for one model."""

    def __init__(self) -> None:
        self.turns = VirtualTime()
        self.waiting_s = 0.0  # nominal seconds of all that waits
        self._all: list[_Entry] = []
        self._hurried: list[_Entry] = []  # those of them that an express lane may take
        self._by_key: dict[Hashable, dict[int, list[_Entry]]] = {}  # and by context
        self._suspects: list[Window] = []
        self.left = 0  # windows that left so far, one way or another
        self._discarded = 0  # since stale entries were last swept out
        self._count = 0
        self._sequence = 0

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return bool(self.turns)

    def add(self, windows: Iterable[Window]) -> None:
        """Queues windows of one job in their order; more of it may follow later."""
        light: bool | None = None
        for window in windows:
            if light is None:  # as the parts of its job before it, with which it may share a batch
                light = window.job.windows[0].light if window.index else is_light(window.job)
            window.light = light
            window.cost_s = share_s(window)
            self._sequence += 1
            window.turn = self.turns.tag(window), self._sequence
            entry = (*window.turn, window)
            heapq.heappush(self._all, entry)
            heapq.heappush(self._queue_of(window), entry)
            if may_hurry(window):
                heapq.heappush(self._hurried, entry)
            self._enter(window)
        if len(self._hurried) > 64 + 2 * self._count:  # those that went in their turn are still in it
            self._hurried = sorted(entry for entry in self._hurried if _live(entry))

    def add_suspect(self, window: Window) -> None:
        """Queues a window that was in flight when a worker died; it goes first, and alone."""
        window.suspect = True
        self._suspects.append(window)
        self._enter(window)

    def discard(self, job: Job) -> None:
        """Forgets a job that is over: its windows that were not handed out yet, and its place in the line."""
        self.turns.forget(job)
        for window in job.windows:
            if window.queued:
                self._leave(window)
                self._discarded += 1
        if self._discarded > 64 + self._count:
            self._sweep()

    def _sweep(self) -> None:
        """Entries go when they come to the top; those of cancelled jobs far down would pile up under endless load."""
        self._discarded = 0
        self._all = sorted(entry for entry in self._all if _live(entry))  # a sorted list is a heap
        self._hurried = [entry for entry in self._all if may_hurry(entry[2])]
        self._by_key.clear()
        for entry in self._all:
            self._queue_of(entry[2]).append(entry)

    def _queue_of(self, window: Window) -> list[_Entry]:
        """Those that wait with its key and its context."""
        return self._by_key.setdefault(compatibility_key(window), {}).setdefault(window.frames, [])

    def suspect_waits(self) -> bool:
        """Whether a window must run alone before anything else is handed out."""
        while self._suspects and not self._suspects[0].queued:
            self._suspects.pop(0)
        return bool(self._suspects)

    def next_suspect(self) -> Window:
        """The next window that must run alone; only after `suspect_waits`."""
        window = self._suspects.pop(0)
        self._leave(window)
        return window

    def next_batch(self, bounds: Bounds) -> list[Window]:
        """The window whose turn it is and, in order, those that may share its call. Empty if nothing waits."""
        return self._batch(self._all, bounds)

    def hurried(self) -> Window | None:
        """The first, in order, of the windows that an express lane may take."""
        return _top_live(self._hurried)

    def next_hurried(self, bounds: Bounds) -> list[Window]:
        """Like `next_batch`, but with `hurried` for its head."""
        return self._batch(self._hurried, bounds)

    def _batch(self, line: list[_Entry], bounds: Bounds) -> list[Window]:
        head = _pop_live(line)
        if head is None:
            return []
        batch = [head]
        self._leave(head)
        for window in self._company(head, bounds):
            self._leave(window)
            batch.append(window)
        self.turns.serve(head, batch)
        return batch

    def _company(self, head: Window, bounds: Bounds) -> Iterator[Window]:
        """Those that go with `head`, already out of their queue."""
        key = compatibility_key(head)
        queues = self._by_key.get(key, {})  # the head may have been all that waited
        batch, share_s = [head], head.cost_s
        while window := best_company(queues, partial(_first, queues), batch, bounds):
            # What is still to come of a job is for the other lanes.
            fair_s = math.inf if window.job.more_to_come else bounds.share_s
            if share_s + window.cost_s / 2 > fair_s or not fits(window, batch, bounds):
                break
            heapq.heappop(queues[window.frames])
            batch.append(window)
            share_s += window.cost_s
            yield window
        if not queues:
            self._by_key.pop(key, None)

    def in_order(self, most: int) -> list[Window]:
        """What waits, in the order of its turns; of very much only the first part."""
        return [entry[2] for entry in heapq.nsmallest(most, filter(_live, self._all))]

    def _enter(self, window: Window) -> None:
        window.queued = True
        self._count += 1
        self.waiting_s += window.cost_s
        self.turns.enter(window.job)

    def _leave(self, window: Window) -> None:
        window.queued = False
        self.left += 1
        self._count -= 1
        self.waiting_s -= window.cost_s
        self.turns.leave(window.job)
        if not self.turns:  # stale entries let go of their jobs
            for part in (self._by_key, self._all, self._hurried, self._suspects):
                part.clear()
            self.waiting_s = 0.0
            self._discarded = 0


def best_company(
    contexts: Collection[int], first: Callable[[int], _Company | None], batch: list[Window], bounds: Bounds
) -> Window | None:
    """Who suits a batch best, of the first windows of each context; None where nobody does well in it."""
    frames = max(window.frames for window in batch)
    if frames in contexts and (company := first(frames)):
        return company[0]
    for context in sorted(contexts, key=lambda context: abs(context - frames)):
        company = first(context)
        if company and _gains(*company, batch, frames, bounds):
            return company[0]
    return None


def _gains(window: Window, alike: int, batch: list[Window], frames: int, bounds: Bounds) -> bool:
    """Whether the longer context, for the batch or for those that are `alike`, costs less than the steps of the batch
    that is saved by going together, if one is."""
    rows, here = bounds.rows_of(max(window.frames, frames)), len(batch)
    saved = math.ceil(here / rows) + math.ceil(alike / rows) - math.ceil((here + alike) / rows)
    longer_s = bounds.shape.encode_s(window.frames) - bounds.shape.encode_s(frames)
    promoted = here if longer_s > 0 else min(alike, rows - here)
    return promoted * abs(longer_s) < saved * bounds.shape.step_s * steps_of(window)


def _first(queues: dict[int, list[_Entry]], context: int) -> _Company | None:
    """A context with which nobody waits any more is dropped."""
    window = _top_live(queues[context])
    if window is None:
        del queues[context]
        return None
    return window, len(queues[context])


def _top_live(queue: list[_Entry]) -> Window | None:
    """Windows leave lazily: an entry whose window is not queued any more, or runs alone now, is dropped here."""
    while queue and not _live(queue[0]):
        heapq.heappop(queue)
    return queue[0][2] if queue else None


def _pop_live(queue: list[_Entry]) -> Window | None:
    window = _top_live(queue)
    if window is not None:
        heapq.heappop(queue)
    return window

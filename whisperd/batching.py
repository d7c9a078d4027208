"""Which windows go to the engine next: fair between clients and jobs, by priority, never starving anybody.

The theory is fair queueing in virtual time. Every window gets a start tag when it is queued; the lowest tag goes
first; virtual time is never behind the tags that were served, and advances with the work that is handed out,
shared by those who compete for it: the lines (the jobs of one client and priority that wait their turn) and the
jobs that were begun. A job that has been served much has tags far ahead, so a 3-second clip that arrives beside a
12-minute file gets the present time as its tag and goes next. Jobs of one line are chained by their first windows
only: a client with a thousand clips does not push another's single clip back, nor its own more urgent one, nor
does its own long file push back its own short ones.

Priority is a head start in virtual time, not a wall: since virtual time moves with every batch, a window that
waits is overtaken for a bounded amount of work (the difference of the head starts for each competitor) and then
goes. No clock is read here and no batch is ever held back to grow: what queued up while the engine was busy is
what a batch is made of.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Iterable
from typing import Any

from whisperd.jobs import Job, Window
from whisperd.messages import FRAMES_MAX, FRAMES_PER_SECOND, SAMPLE_RATE

# Virtual seconds (of encoder input, divided among those who compete) by which a class goes ahead.
HEAD_START_S = {"interactive": 120.0, "normal": 0.0, "bulk": -600.0}

# Frames that contexts are rounded up to, so that windows of like length share a batch. A multiple of 200 is also
# never 160 or 256 frames, which CTranslate2 would mistake for encoder output (80 and 128 mel bands).
_BUCKET_FRAMES = 200

_Entry = tuple[float, int, Window]
_LineKey = tuple[Any, str]  # client, priority


def context_frames(samples: int, tail_s: float | None) -> int:
    """Log-mel frames for a window of so many samples with `tail_s` of silence behind it; None: the full 30 s."""
    if tail_s is None:
        return FRAMES_MAX
    wanted = (samples / SAMPLE_RATE + tail_s) * FRAMES_PER_SECOND
    return min(FRAMES_MAX, math.ceil(wanted / _BUCKET_FRAMES) * _BUCKET_FRAMES)


def compatibility_key(window: Window) -> Hashable:
    """Windows with equal keys may share an engine call (one model per batcher)."""
    work = window.job.work
    return window.frames, work.options, work.row.task == "detect", work.priority


def _line_key(job: Job) -> _LineKey:
    return job.client, job.work.priority


def _live(entry: _Entry) -> bool:
    return entry[2].queued and not entry[2].suspect


class Batcher:
    """The windows that wait for one model."""

    def __init__(self, max_rows: int, max_cost_s: float) -> None:
        self.max_rows = max_rows
        self.max_cost_s = max_cost_s
        self._all: list[_Entry] = []
        self._by_key: dict[Hashable, list[_Entry]] = {}
        self._suspects: list[Window] = []
        self._virtual_s = 0.0
        self._line_next_s: dict[_LineKey, float] = {}
        self._job_next_s: dict[Job, float] = {}
        self._waiting: dict[Job, int] = {}  # windows that wait, by job
        self._begun: set[Job] = set()  # those of them that got some windows through already
        self._lines: dict[_LineKey, int] = {}  # jobs that wait, by line
        self._discarded = 0  # since stale entries were last swept out
        self._count = 0
        self._sequence = 0

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, windows: Iterable[Window]) -> None:
        """Queues windows of one job in their order."""
        for window in windows:
            job = window.job
            start_s = self._start_tag(job, window.cost_s)
            self._sequence += 1
            entry = (start_s - HEAD_START_S[job.work.priority], self._sequence, window)
            heapq.heappush(self._all, entry)
            heapq.heappush(self._by_key.setdefault(compatibility_key(window), []), entry)
            self._enter(window)

    def _start_tag(self, job: Job, cost_s: float) -> float:
        if job in self._job_next_s:
            start_s = max(self._virtual_s, self._job_next_s[job])
        else:
            line = _line_key(job)
            start_s = max(self._virtual_s, self._line_next_s.get(line, 0.0))
            self._line_next_s[line] = start_s + cost_s
        self._job_next_s[job] = start_s + cost_s
        return start_s

    def add_suspect(self, window: Window) -> None:
        """Queues a window that was in flight when a worker died; it goes first, and alone."""
        window.suspect = True
        self._suspects.append(window)
        self._enter(window)

    def discard(self, job: Job) -> None:
        """Forgets a job that is over: its windows that were not handed out yet, and its place in the line."""
        line, first = _line_key(job), job.windows[0] if job.windows else None
        if first and first.queued and not first.suspect and line in self._line_next_s:
            self._line_next_s[line] -= first.cost_s  # its line was charged for what is not served now
        for window in job.windows:
            if window.queued:
                self._leave(window)
                self._discarded += 1
        self._job_next_s.pop(job, None)
        if self._discarded > 64 + self._count:
            self._sweep()

    def _sweep(self) -> None:
        """Entries go when they come to the top; those of cancelled jobs far down would pile up under endless load."""
        self._discarded = 0
        self._all = [entry for entry in self._all if _live(entry)]
        heapq.heapify(self._all)
        self._by_key.clear()
        for entry in sorted(self._all):  # a sorted list is a heap
            self._by_key.setdefault(compatibility_key(entry[2]), []).append(entry)

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

    def next_batch(self) -> list[Window]:
        """The most urgent window and, in order, those that may share its call. Empty if nothing waits."""
        if self._top_live(self._all) is None:
            return []
        tag_s, _, head = heapq.heappop(self._all)
        start_s = tag_s + HEAD_START_S[head.job.work.priority]
        batch, cost_s = [head], head.cost_s
        key = compatibility_key(head)
        queue = self._by_key[key]
        self._leave(head)
        while len(batch) < self.max_rows and cost_s + head.cost_s <= self.max_cost_s:
            window = self._pop_live(queue)
            if window is None:
                break
            self._leave(window)
            batch.append(window)
            cost_s += window.cost_s
        if self._top_live(queue) is None:
            self._by_key.pop(key, None)
        self._begun.update(window.job for window in batch if window.job in self._waiting)
        self._advance(start_s, cost_s)
        return batch

    def _advance(self, start_s: float, cost_s: float) -> None:
        if self._waiting:
            competitors = len(self._lines) + len(self._begun)
            self._virtual_s = max(self._virtual_s, start_s) + cost_s / competitors
            if len(self._line_next_s) > 4096:  # clients come and go; those behind virtual time say nothing
                self._line_next_s = {line: s for line, s in self._line_next_s.items() if s > self._virtual_s}

    def _reset(self) -> None:
        """Nothing waits: virtual time starts again, and stale entries let go of their jobs."""
        self._virtual_s = 0.0
        for part in (self._line_next_s, self._job_next_s, self._by_key, self._all, self._suspects):
            part.clear()
        self._discarded = 0

    def _enter(self, window: Window) -> None:
        window.queued = True
        self._count += 1
        waiting = self._waiting.get(window.job, 0)
        self._waiting[window.job] = waiting + 1
        if not waiting:
            line = _line_key(window.job)
            self._lines[line] = self._lines.get(line, 0) + 1

    def _leave(self, window: Window) -> None:
        window.queued = False
        self._count -= 1
        left = self._waiting[window.job] - 1
        if left:
            self._waiting[window.job] = left
        else:
            del self._waiting[window.job]
            self._begun.discard(window.job)
            line = _line_key(window.job)
            self._lines[line] -= 1
            if not self._lines[line]:
                del self._lines[line]
            if not self._waiting:
                self._reset()

    @staticmethod
    def _top_live(queue: list[_Entry]) -> Window | None:
        """Windows leave lazily: an entry whose window is not queued any more, or runs alone now, is dropped here."""
        while queue and not _live(queue[0]):
            heapq.heappop(queue)
        return queue[0][2] if queue else None

    def _pop_live(self, queue: list[_Entry]) -> Window | None:
        window = self._top_live(queue)
        if window is not None:
            heapq.heappop(queue)
        return window

"""Whose turn it is: start tags in virtual time, the theory of fair queueing.

Every window gets a start tag when it is queued; the lowest tag goes first; virtual time is never behind the tags
that were served, and advances with the work that is handed out, shared by those who compete for it: the lines (the
jobs of one client and priority that wait their turn) and the jobs that were begun. A job that has been served much has
tags far ahead, so a 3-second clip that arrives beside a 12-minute file gets the present time as its tag and goes
next. Jobs of one line are chained by their first windows only: a client with a thousand clips does not push
another's single clip back, nor its own more urgent one, nor does its own long file push back its own short ones.

Priority is a head start in virtual time, not a wall: since virtual time moves with every batch, a window that
waits is overtaken for a bounded amount of work (the difference of the head starts for each competitor) and then
goes. No clock is read here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from whisperd.jobs import Job, Window

# Virtual seconds (nominal engine seconds, divided among those who compete) by which a class goes ahead.
HEAD_START_S = {"interactive": 1.5, "normal": 0.0, "bulk": -7.5}
_LINES_MAX = 4096  # remembered before those that say nothing any more are let go

_LineKey = tuple[Any, str]  # client, priority


def line_key(job: Job) -> _LineKey:
    """The line that a job waits in."""
    return job.client, job.work.priority


class VirtualTime:
    """The tags, and who competes."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._line_next_s: dict[_LineKey, float] = {}
        self._job_next_s: dict[Job, float] = {}
        self._waiting: dict[Job, int] = {}  # windows that wait, by job
        self._begun: set[Job] = set()  # those of them that got some windows through already
        self._lines: dict[_LineKey, int] = {}  # jobs that wait, by line

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._waiting)

    def tag(self, window: Window) -> float:
        """The start tag of a window that is queued now, its head start taken off."""
        job, cost_s = window.job, window.cost_s
        if job in self._job_next_s:
            start_s = max(self._now_s, self._job_next_s[job])
        else:
            line = line_key(job)
            start_s = max(self._now_s, self._line_next_s.get(line, 0.0))
            self._line_next_s[line] = start_s + cost_s
        self._job_next_s[job] = start_s + cost_s
        return start_s - HEAD_START_S[job.work.priority]

    def forget(self, job: Job) -> None:
        """The job is over. Its line was charged for its first window, and is given back what was not served."""
        line, first = line_key(job), job.windows[0] if job.windows else None
        if first and first.queued and not first.suspect and line in self._line_next_s:
            self._line_next_s[line] -= first.cost_s
        self._job_next_s.pop(job, None)

    def enter(self, job: Job) -> None:
        """A window of the job waits."""
        waiting = self._waiting.get(job, 0)
        self._waiting[job] = waiting + 1
        if not waiting:
            line = line_key(job)
            self._lines[line] = self._lines.get(line, 0) + 1

    def leave(self, job: Job) -> None:
        """A window of the job waits no more. When nothing does, virtual time starts again."""
        left = self._waiting[job] - 1
        if left:
            self._waiting[job] = left
            return
        del self._waiting[job]
        self._begun.discard(job)
        line = line_key(job)
        self._lines[line] -= 1
        if not self._lines[line]:
            del self._lines[line]
        if not self._waiting:
            self._now_s = 0.0
            self._line_next_s.clear()
            self._job_next_s.clear()

    def serve(self, head: Window, batch: Iterable[Window]) -> None:
        """The batch, with `head` as the one whose turn it was, left the line: time goes on."""
        if not self._waiting:
            return
        cost_s = 0.0
        for window in batch:
            cost_s += window.cost_s
            if window.job in self._waiting:
                self._begun.add(window.job)
        start_s = head.turn[0] + HEAD_START_S[head.job.work.priority]
        self._now_s = max(self._now_s, start_s) + cost_s / (len(self._lines) + len(self._begun))
        if len(self._line_next_s) > _LINES_MAX:  # clients come and go; those behind virtual time say nothing
            self._line_next_s = {line: s for line, s in self._line_next_s.items() if s > self._now_s}

"""Which batch starts now, and on which lane: the scheduler's policy, without an engine and without a clock.

There are as many *ordinary lanes* as the engine runs well side by side; none of them idles while anything waits.
Besides there may be *express lanes*: one more batch than there are cores, which slows the others down and gives no
throughput. One is used only for light work, while all ordinary lanes are busy and some of them with work that nobody
hurries so much, and only where waiting would cost the clip about as much as it costs itself. So it serves the short
clip beside the long file, and a burst of short clips never sees it.

What little waits is shared out: a lane takes what makes it finish together with the others, as predicted, and no more
than a full batch.

A job that cannot begin before its deadline is known early, by the line's outlook. Nothing is said of an engine that was
not measured yet.

A window that was in flight when the engine died runs alone in the engine, whatever else waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from whisperd.batching import Batcher, Bounds, may_hurry
from whisperd.cost import CostModel
from whisperd.jobs import PRIORITY_RANK, Job, Window
from whisperd.outlook import Outlook

# A batch that takes longer than predicted is predicted to take this part of it more: it may end at any time.
_OVERTIME = 0.25
# An express lane is worth it where the wait would be so much of what the clip itself takes.
_WORTH = 0.5
_EXPRESS_ROWS = 4
# A deadline is given up where this part of the wait that is foreseen would miss it: nobody knows who comes and takes a
# window along in a batch of its kind. In the simulator three in a hundred of those given up would have made it.
_SURE = 0.7
_SLOW_ROWS = 4  # of long jobs and bulk in a batch, however long it takes: fewer gain little from being together


@dataclass(frozen=True, slots=True)
class Room:
    """What an engine takes at a time: batches side by side, batches besides for work in a hurry, rows in each."""

    lanes: int
    express: int
    rows: int


@dataclass(eq=False)
class Flight:
    """One batch in the engine; `alone` while nothing else was in it from start to end."""

    windows: list[Window]
    alone: bool
    express: bool
    began: float
    expected_s: float

    @property
    def suspect(self) -> bool:
        return self.windows[0].suspect

    def left_s(self, now: float) -> float:
        """How long it is expected to last from now."""
        return max(self.expected_s - (now - self.began), self.expected_s * _OVERTIME)

    def left_cost_s(self, now: float) -> float:
        """What is left of its windows' costs, in the nominal seconds of what waits, whatever the device."""
        cost_s = sum(window.cost_s for window in self.windows)
        return cost_s * self.left_s(now) / self.expected_s if self.expected_s else 0.0


@dataclass
class Lanes:
    """What flies, and what starts next. `slow_s`: seconds that a batch of unhurried work should last at most."""

    batcher: Batcher
    slow_s: float
    flights: set[Flight] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._outlook = Outlook(self.batcher)

    def next(self, now: float, room: Room, cost: CostModel) -> Flight | None:
        """The batch that starts now, already in flight; None where nothing can or nothing waits."""
        if not room.lanes:
            return None  # not on an express lane either: the engine is loading, gone, or about to be replaced
        if self.batcher.suspect_waits():
            if self.flights:
                return None  # it must be alone, so what flies lands first
            return self._start([self.batcher.next_suspect()], now, cost)
        if any(flight.suspect for flight in self.flights):
            return None
        busy = [flight for flight in self.flights if not flight.express]
        if len(busy) < room.lanes:
            batch = self.batcher.next_batch(self._bounds(busy, now, room, cost))
        else:
            batch = self._hurried(busy, now, room, cost)
        return self._start(batch, now, cost, express=len(busy) >= room.lanes) if batch else None

    def land(self, flight: Flight) -> None:
        """It is back, one way or another."""
        self.flights.discard(flight)

    def late_s(self, job: Job, now: float, room: Room, cost: CostModel) -> float | None:
        """The seconds that a job with a deadline would have to wait, where that is certainly too long."""
        waiting = next((window for window in reversed(job.windows) if window.queued and not window.suspect), None)
        if job.deadline is None or waiting is None or not room.lanes or not cost.measured:
            return None
        best = cost.best_rate / cost.rate
        ends = [max(0.0, one.expected_s - (now - one.began)) * best for one in self.flights if not one.express]
        ends += [0.0] * min(room.lanes - len(ends), len(self.batcher))
        bounds = Bounds(room.rows, self.slow_s / cost.rate, _SLOW_ROWS, shape=cost.shape)
        wait_s = self._outlook.begins_in(waiting, now, ends, bounds, cost.best_rate, room.express > 0)
        return wait_s / best if wait_s * _SURE > job.deadline - now else None

    def _start(self, windows: list[Window], now: float, cost: CostModel, express: bool = False) -> Flight:
        alone = len(windows) == 1 and not self.flights
        for other in self.flights:
            other.alone = False
        flight = Flight(windows, alone, express, now, cost.seconds(windows))
        self.flights.add(flight)
        return flight

    def _bounds(self, busy: list[Flight], now: float, room: Room, cost: CostModel) -> Bounds:
        ends = [flight.left_cost_s(now) for flight in busy]
        free = min(room.lanes - len(busy), len(self.batcher))  # more could not get a window each
        share_s = water_level(self.batcher.waiting_s, ends + [0.0] * free)
        return Bounds(room.rows, self.slow_s / cost.rate, _SLOW_ROWS, share_s, cost.shape)

    def _hurried(self, busy: list[Flight], now: float, room: Room, cost: CostModel) -> list[Window]:
        """A batch for an express lane, if there is one that deserves it."""
        if not busy or len(self.flights) - len(busy) >= room.express:
            return []
        clip = self.batcher.hurried()
        if clip is None or not any(_gives_way(flight, clip) for flight in busy):
            return []
        if min(flight.left_s(now) for flight in busy) < _WORTH * cost.seconds([clip]):
            return []
        return self.batcher.next_hurried(Bounds(min(room.rows, _EXPRESS_ROWS), shape=cost.shape))


def _gives_way(flight: Flight, clip: Window) -> bool:
    """Whether it is less urgent than the clip, or as urgent but much more work."""
    ours, theirs = (PRIORITY_RANK[window.job.work.priority] for window in (clip, flight.windows[0]))
    return theirs > ours or (theirs == ours and not may_hurry(flight.windows[0]))


def water_level(work_s: float, ends_s: Iterable[float]) -> float:
    """When lanes that are free from these times on would all be done, if so much work were shared out best."""
    filled, total_s, level_s = 0, work_s, math.inf
    for end_s in sorted(ends_s):
        if end_s >= level_s:
            break
        filled, total_s = filled + 1, total_s + end_s
        level_s = total_s / filled
    return level_s

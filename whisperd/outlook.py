"""When what waits will begin: the line played forward, batch by batch, as predicted.

A deadline is refused early only on the word of such a plan, so the plan errs on the hopeful side: it knows nobody who
comes later and goes first, leaves out whoever will have given up by then, lets work in a hurry see only its like
where there is an express lane, and reckons with the engine's better quarter of batches.

A plan costs as much as there is to plan, so it serves until the line has changed by a part of itself.
"""

from __future__ import annotations

import bisect
import heapq
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from whisperd.batching import Batcher, Bounds, best_company, compatibility_key, fits, may_hurry
from whisperd.jobs import Window

_PLANNED_MAX = 2000  # windows; whoever is behind them begins after them, which is enough to know
_Queues = dict[int, deque[Window]]  # by context
_STALE_ROWS, _STALE_PART, _STALE_S = 8, 1 / 20, 1.0


@dataclass
class Plan:
    """When batches begin, in seconds from `made`. It knows windows by their turns, and keeps no job alive."""

    made: float
    begins: dict[tuple[float, int], float] = field(default_factory=dict)
    _heads: list[tuple[float, int]] = field(default_factory=list)  # the turns of the batches' first windows, in order
    _head_begins: list[float] = field(default_factory=list)
    _open: dict[Hashable, float] = field(default_factory=dict)  # when each key's last batch begins, if it has room
    _end: float = 0.0  # when the first lane has nothing left

    def begin(self, window: Window) -> float:
        """When a window begins that may have come after the plan was made."""
        if window.turn in self.begins:
            return self.begins[window.turn]
        at = bisect.bisect_right(self._heads, window.turn)
        alone = self._head_begins[at] if at < len(self._heads) else self._end
        return min(alone, self._open.get(compatibility_key(window), alone))


def make_plan(
    now: float, line: Iterable[Window], ends_s: Sequence[float], bounds: Bounds, rate: float
) -> Plan:
    """Plays a line forward. `ends_s`: when each lane is free, from now; `rate`: seconds for each nominal one."""
    plan, waiting = Plan(now), list(line)
    by_key: dict[Hashable, _Queues] = {}
    for window in waiting:
        by_key.setdefault(compatibility_key(window), {}).setdefault(window.frames, deque()).append(window)
    lanes = list(ends_s)
    heapq.heapify(lanes)
    for head in waiting:
        if head.turn in plan.begins:
            continue
        begin = lanes[0]
        key = compatibility_key(head)
        batch = _next_batch(head, by_key[key], bounds, plan, begin)
        if not batch:
            continue
        plan._heads.append(head.turn)
        plan._head_begins.append(begin)
        if len(batch) < bounds.rows:
            plan._open[key] = begin
        else:
            plan._open.pop(key, None)
        heapq.heapreplace(lanes, begin + rate * bounds.shape.batch_s(batch))
    plan._end = lanes[0]
    return plan


def _next_batch(head: Window, queues: _Queues, bounds: Bounds, plan: Plan, begin: float) -> list[Window]:
    """Takes from a key's queues what would go together at `begin`; those that give up before go with nobody."""
    batch: list[Window] = []
    window: Window | None = head
    while window and (not batch or fits(window, batch, bounds)):
        queue = queues[window.frames]
        queue.popleft()
        if not queue:
            del queues[window.frames]
        plan.begins[window.turn] = begin
        if not _gives_up(window, plan.made + begin):
            batch.append(window)
        window = best_company(queues, partial(_first, queues), batch or [head], bounds)
    return batch


def _first(queues: _Queues, context: int) -> tuple[Window, int]:
    return queues[context][0], len(queues[context])


def _gives_up(window: Window, at: float) -> bool:
    deadline = window.job.deadline
    return deadline is not None and deadline < at


class Outlook:
    """Plans of one line, kept while they hold."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._plans: dict[bool, tuple[Plan, int]] = {}  # by whether they are of work in a hurry only

    def begins_in(
        self, window: Window, now: float, ends_s: Sequence[float], bounds: Bounds, rate: float, express: bool
    ) -> float:
        """Seconds until a window that waits goes to the engine, at the earliest; 0 if it is overdue."""
        alone = express and may_hurry(window)
        plan, changes = self._plans.get(alone, (None, 0))
        batcher = self._batcher
        if plan is None or now - plan.made > _STALE_S or _changed(batcher, changes):
            line = batcher.in_order(_PLANNED_MAX)
            if alone:
                line, ends_s = [one for one in line if may_hurry(one)], [0.0] * len(ends_s)
            plan = make_plan(now, line, ends_s, bounds, rate)
            self._plans[alone] = plan, _changes(batcher)
        return max(0.0, plan.begin(window) - (now - plan.made))


def _changes(batcher: Batcher) -> int:
    return 2 * batcher.left + len(batcher)


def _changed(batcher: Batcher, before: int) -> bool:
    """Everything that came or left since counts, the one for whom it is asked as well."""
    return _changes(batcher) - before > _STALE_ROWS + _STALE_PART * len(batcher)

"""What the daemon counts, and the figures of `metrics.current` made from it.

Counters only grow, from start to end. What an operator asks about now (latency, real-time factor, batch
fill) is kept besides in slots of a minute of which the newest few count, so that the answer is neither one
request's accident nor last week's average. Pure: `now` is an argument, in seconds of a clock that never goes
back, and what is a level rather than a count (queue depth, memory) is given when a snapshot is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from whisperd.histogram import Histogram

SLOT_S = 60
SLOTS = 5  # five minutes: long enough for a p99 on a quiet machine, short enough to show a change
RECENT_S = SLOT_S * SLOTS
# Labels such as an error's kind come from our code and are few; the bound holds if some worker invents them.
LABELS_MAX = 64
OTHER_LABEL = "other"


@dataclass(slots=True)
class _Slot:
    """One minute's sums."""

    latency_ms: Histogram = field(default_factory=Histogram)
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    audio_s: float = 0.0
    batches: int = 0
    batch_rows: int = 0
    busy_s: float = 0.0

    def add(self, other: _Slot) -> None:
        self.latency_ms.merge(other.latency_ms)
        self.succeeded += other.succeeded
        self.failed += other.failed
        self.cancelled += other.cancelled
        self.audio_s += other.audio_s
        self.batches += other.batches
        self.batch_rows += other.batch_rows
        self.busy_s += other.busy_s


class Labelled:
    """Counts by label, with a bound on the number of labels."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, label: str, number: int = 1) -> None:
        if label not in self._counts and len(self._counts) >= LABELS_MAX:
            label = OTHER_LABEL
        self._counts[label] = self._counts.get(label, 0) + number

    def to_dict(self) -> dict[str, int]:
        return dict(self._counts)


@dataclass(slots=True)
class Counters:
    """Plain counts since start; whoever sees the event adds to them."""

    accepted: int = 0
    lines_received: int = 0
    parse_errors: int = 0
    invalid: int = 0
    notifications_dropped: int = 0
    notifications_ignored: int = 0


class Metrics:
    """One per daemon. A job is counted once when accepted, and once when it ends in one of three ways."""

    def __init__(self, now: float) -> None:
        self.counters = Counters()
        self.failed_by_kind = Labelled()
        self.rows_retried = Labelled()
        self._started = now
        self._overall = _Slot()
        self._slots: dict[int, _Slot] = {}

    def succeeded(self, now: float, latency_ms: float, audio_s: float) -> None:
        """A job was answered with a result: `latency_ms` from arrival to reply, `audio_s` of its audio."""
        for slot in self._current(now):
            slot.succeeded += 1
            slot.latency_ms.record(latency_ms)
            slot.audio_s += audio_s

    def failed(self, now: float, kind: str) -> None:
        """A job was answered with an error of this kind. Its latency would only flatter the percentiles."""
        self.failed_by_kind.add(kind)
        for slot in self._current(now):
            slot.failed += 1

    def cancelled(self, now: float) -> None:
        """A job was cancelled by its client, or by the client's going away."""
        for slot in self._current(now):
            slot.cancelled += 1

    def batch_done(self, now: float, rows: int, busy_s: float) -> None:
        """An engine call has ended, with `rows` windows in it, after `busy_s` seconds of one lane."""
        for slot in self._current(now):
            slot.batches += 1
            slot.batch_rows += rows
            slot.busy_s += busy_s

    def snapshot(self, now: float, gauges: Mapping[str, Any]) -> dict[str, Any]:
        """The result of `metrics.current`; `gauges` (queue_depth, process and others) go in as they are."""
        recent = self._recent(now)
        overall = self._overall
        return {
            "uptime_s": max(now - self._started, 0.0),
            "requests": {
                "accepted": self.counters.accepted,
                "succeeded": overall.succeeded,
                "failed": overall.failed,
                "cancelled": overall.cancelled,
                "failed_by_kind": self.failed_by_kind.to_dict(),
            },
            "lines": {
                "received": self.counters.lines_received,
                "parse_errors": self.counters.parse_errors,
                "invalid": self.counters.invalid,
            },
            "notifications": {
                "dropped": self.counters.notifications_dropped,
                "ignored": self.counters.notifications_ignored,
            },
            "audio_s": overall.audio_s,
            "latency_ms": _percentiles(recent.latency_ms),
            "batch_fill": _ratio(recent.batch_rows, recent.batches),
            "rtf": _ratio(recent.busy_s, recent.audio_s),
            "recent": {
                "window_s": RECENT_S,
                "succeeded": recent.succeeded,
                "failed": recent.failed,
                "cancelled": recent.cancelled,
                "audio_s": recent.audio_s,
                "error_rate": _ratio(recent.failed, recent.succeeded + recent.failed),
            },
            "overall": {
                "latency_ms": _percentiles(overall.latency_ms),
                "batch_fill": _ratio(overall.batch_rows, overall.batches),
                "rtf": _ratio(overall.busy_s, overall.audio_s),
                "batches": overall.batches,
                "rows": overall.batch_rows,
            },
            "rows_retried": self.rows_retried.to_dict(),
            **gauges,
        }

    def _current(self, now: float) -> tuple[_Slot, _Slot]:
        """The sums that an event at `now` goes to: since start, and this minute's."""
        index = int(now // SLOT_S)
        slot = self._slots.get(index)
        if slot is None:
            slot = self._slots[index] = _Slot()
            for old in [key for key in self._slots if key <= index - SLOTS]:
                del self._slots[old]
        return self._overall, slot

    def _recent(self, now: float) -> _Slot:
        """The sum of this minute, begun, and the whole ones before it: between 4 and 5 minutes."""
        oldest = int(now // SLOT_S) - SLOTS + 1
        total = _Slot()
        for index, slot in self._slots.items():
            if index >= oldest:
                total.add(slot)
        return total


def _percentiles(latency_ms: Histogram) -> dict[str, float | None]:
    return {name: latency_ms.quantile(q) for name, q in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))}


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None

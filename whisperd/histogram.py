"""A histogram whose quantiles have a known relative error, whose size is bounded and which can be added up.

Percentiles cannot be averaged, buckets can be summed: so every slot of time and later every row of the store
keeps buckets, and a percentile is computed only when somebody asks. Bucket i holds the values in
(γ^(i-1), γ^i] with γ = (1 + a) / (1 - a); the value reported for it, 2γ^i / (γ + 1), is within a of all of
them (the scheme of DDSketch; Masson, Rim and Lee, 2019). The bound on size comes from the range: below LOWEST
the error is absolute, above HIGHEST a value counts as HIGHEST.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate
from typing import Any

RELATIVE_ERROR = 0.02  # a: a p95 of 2000 ms is between 1960 and 2040
LOWEST = 1e-3  # a microsecond, in milliseconds; all below is one bucket, reported as its minimum
HIGHEST = 1e12  # 30 years in milliseconds; a terabyte in bytes

_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA = math.log(_GAMMA)
BUCKETS_MAX = math.ceil(math.log(HIGHEST / LOWEST) / _LOG_GAMMA) + 2  # 866; some 60 kB if all are used


class Histogram:
    """Counts of non-negative values, such as milliseconds or bytes."""

    __slots__ = ("_buckets", "_low", "count", "maximum", "minimum", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.minimum = math.inf
        self.maximum = 0.0
        self._low = 0  # values below LOWEST
        self._buckets: dict[int, int] = {}

    def record(self, value: float) -> None:
        """Raises ValueError for what is no number. A negative value is a clock's fault and counts as 0."""
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be recorded")
        value = max(value, 0.0)
        self.count += 1
        self.total += value
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)
        if value < LOWEST:
            self._low += 1
        else:
            index = math.ceil(math.log(min(value, HIGHEST)) / _LOG_GAMMA)
            self._buckets[index] = self._buckets.get(index, 0) + 1

    def quantile(self, q: float) -> float | None:
        """The value at rank q·(count - 1), within RELATIVE_ERROR; None when nothing was recorded."""
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"q is {q}, not between 0 and 1")
        if self.count == 0:
            return None
        rank = math.floor(q * (self.count - 1))
        if rank < self._low:
            return self.minimum
        indices = sorted(self._buckets)
        ends = list(accumulate((self._buckets[index] for index in indices), initial=self._low))[1:]
        middle = 2 * _GAMMA ** indices[bisect_right(ends, rank)] / (_GAMMA + 1)
        return min(max(middle, self.minimum), self.maximum)

    def merge(self, other: Histogram) -> None:
        """Adds the other's values to these: the result is the histogram of both."""
        self.count += other.count
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self._low += other._low
        for index, number in other._buckets.items():
            self._buckets[index] = self._buckets.get(index, 0) + number

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; empty buckets are left out."""
        indices = sorted(self._buckets)
        return {
            "error": RELATIVE_ERROR,
            "count": self.count,
            "sum": self.total,
            "min": self.minimum if self.count else None,
            "max": self.maximum if self.count else None,
            "low": self._low,
            "index": indices,
            "n": [self._buckets[index] for index in indices],
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Histogram:
        """Raises ValueError for buckets of another relative error: they cannot be added to these."""
        if stored["error"] != RELATIVE_ERROR:
            raise ValueError(f"stored with a relative error of {stored['error']}, not {RELATIVE_ERROR}")
        histogram = cls()
        histogram.count = stored["count"]
        histogram.total = stored["sum"]
        if histogram.count:
            histogram.minimum, histogram.maximum = stored["min"], stored["max"]
        histogram._low = stored["low"]
        histogram._buckets = dict(zip(stored["index"], stored["n"], strict=True))
        return histogram

    @property
    def buckets_used(self) -> int:
        return len(self._buckets) + (self._low > 0)

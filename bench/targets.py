"""What was promised, and what this run measured: at least, aim, measured, met.

A target reads its figure from the run's results and says nothing where the run did not measure it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]
Read = Callable[[Results], float | None]
MB = 1e6


@dataclass(frozen=True)
class Target:
    name: str
    at_least: float
    aim: float | None  # None: there is none beyond
    read: Read
    lower_is_better: bool = False
    unit: str = ""
    words: Read | None = None  # how many words an error rate is taken from; of a few hundred one is worth 0.3 points

    def row(self, results: Results) -> dict[str, Any]:
        measured = self.read(results)
        words = self.words(results) if self.words else None
        shown = None if measured is None else self.figure(measured) + (f" of {words:.0f} words" if words else "")
        return {
            "name": self.name,
            "at_least": self._written(self.at_least),
            "aim": "" if self.aim is None else self._written(self.aim),
            "measured": shown,
            "value": measured,
            "met": self._met(measured),
        }

    def _met(self, measured: float | None) -> str:
        if measured is None:
            return "not measured"
        if self.aim is not None and self._reaches(measured, self.aim):
            return "aim"
        return "yes" if self._reaches(measured, self.at_least) else "no"

    def _reaches(self, measured: float, wanted: float) -> bool:
        return measured <= wanted if self.lower_is_better else measured >= wanted

    def _written(self, wanted: float) -> str:
        return f"{'≤' if self.lower_is_better else '≥'} {self.figure(wanted)}"

    def figure(self, value: float) -> str:
        if self.unit == "%":
            return f"{100 * value:.0f} %"
        if self.unit == "points":
            return f"{value:+.2f} points"
        digits = 0 if abs(value) >= 100 else 2 if self.unit in ("×", "") else 1
        return f"{value:,.{digits}f} {self.unit}".strip()


def ratio(case: str, label: str, part: str = "median") -> Read:
    def read(results: Results) -> float | None:
        found = results["cases"].get(case, {}).get("ratios", {}).get(label)
        return None if not found else float(found[part])

    return read


def side_median(case: str, side: str, figure: str) -> Read:
    def read(results: Results) -> float | None:
        found = results["cases"].get(case, {}).get("sides", {}).get(side, {}).get("median", {}).get(figure)
        return None if found is None else float(found)

    return read


def worst(*reads: Read) -> Read:
    """The highest of those that were measured."""

    def read(results: Results) -> float | None:
        return max((value for one in reads if (value := one(results)) is not None), default=None)

    return read


def script(name: str, *path: str) -> Read:
    """A figure of another script that was run too."""

    def read(results: Results) -> float | None:
        found: Any = results.get("scripts", {}).get(name)
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return None if found is None else float(found)

    return read


def _peaks(results: Results, side: str, process: str) -> Iterator[tuple[str, int]]:
    for name, case in results["cases"].items():
        for row, figures in case["sides"].items():
            if row == side or side == "":
                for label, peak in figures.get("median", {}).get("peak_rss_bytes", {}).items():
                    if label.startswith(process):
                        yield name, peak


def supervisor_mb(results: Results) -> float | None:
    """The most that it had in any workload."""
    return max((peak / MB for _, peak in _peaks(results, "", "supervisor")), default=None)


def worker_by_library(results: Results) -> float | None:
    """Peak memory of the inference worker by faster-whisper's process in the same workload; the worst of them."""
    ratios = []
    library = dict(_peaks(results, "serial", "faster-whisper"))
    for name, peak in _peaks(results, "whisperd", "inference worker"):
        if name in ("burst_defaults", "burst_like_for_like", "long") and library.get(name):
            ratios.append(peak / library[name])
    return max(ratios, default=None)


def _errors(name: str, case: str) -> Target:
    above, words = (side_median(case, "whisperd", figure) for figure in ("wer_points_above_serial", "words_compared"))
    return Target(f"{name}: word error rate above serial", 0.3, None, above, True, "points", words)


def _times(case: str, other: str) -> Read:
    return ratio(case, f"x_realtime, whisperd / {other}")


def _beside(file_priority: str) -> Read:
    rows = (f"{priority} beside {file_priority}" for priority in ("normal", "interactive"))
    return worst(*(ratio("beside", f"p95_s, {row} / p50 idle") for row in rows))


_DEFAULTS, _LIKE = "burst_defaults", "burst_like_for_like"
TARGETS = (
    Target("burst, defaults: throughput by serial", 5.0, 8.0, _times(_DEFAULTS, "serial"), unit="×"),
    Target("burst, defaults: throughput by threads", 3.0, 5.0, _times(_DEFAULTS, "threads"), unit="×"),
    Target("burst, like for like: throughput by serial", 3.4, 4.6, _times(_LIKE, "serial"), unit="×"),
    Target("burst, like for like: throughput by threads", 1.8, 2.5, _times(_LIKE, "threads"), unit="×"),
    _errors("burst, defaults", _DEFAULTS),
    _errors("burst, like for like", _LIKE),
    Target("long audio: throughput by the batched pipeline", 2.0, 3.0, _times("long", "batched"), unit="×"),
    Target("long audio: throughput by serial", 4.5, 6.0, _times("long", "serial"), unit="×"),
    _errors("long audio", "long"),
    Target("one 3 s clip, idle: time by faster-whisper's", 0.30, 0.20,
           ratio("idle", "seconds, whisperd / serial"), True, "×"),
    Target("throughput by the sketch's, defaults", 0.85, 0.95, _times(_DEFAULTS, "sketch"), unit="%"),
    Target("throughput by the sketch's, like for like", 0.85, 0.95, _times(_LIKE, "sketch"), unit="%"),
    Target("short clip beside a bulk file: p95 by idle", 3.0, 2.0, _beside("bulk"), True, "×"),
    Target("short clip beside a normal file: p95 by idle", 5.0, 3.0, _beside("normal"), True, "×"),
    Target("16 closed-loop clients: throughput by wyoming", 4.0, 6.0, _times("closed_16", "wyoming"), unit="×"),
    Target("fake engine: requests/s", 2500, 4500, script("overhead", "sockets", "path", "requests/s")),
    Target("fake engine: added to a request at p50", 1.0, None,
           script("overhead", "latency", "path", "p50 ms"), True, "ms"),
    Target("health while saturated, p99", 50.0, 10.0, script("overhead", "health", "p99 ms"), True, "ms"),
    Target("supervisor, peak RSS", 80.0, 60.0, worst(supervisor_mb, script("overhead", "rss_mb")), True, "MB"),
    Target("inference worker, peak RSS by faster-whisper's", 1.2, 1.0, worker_by_library, True, "×"),
    Target("cold start to the first text by a script's", 1.3, 1.1,
           ratio("cold_start", "seconds, whisperd / script"), True, "×"),
)  # fmt: skip


def rows(results: Results) -> list[dict[str, Any]]:
    return [target.row(results) for target in TARGETS]

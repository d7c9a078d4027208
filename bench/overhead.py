"""What the daemon itself costs: the supervisor's processor time, with the fake engine in place of models and media.

    python bench/overhead.py [--quick] [--only PART ...] [--json FILE]

Everything goes the whole way of a request, from the line on a socket through validation, admission, the pipeline and
batching to the reply; only the media and inference workers are replaced by functions that cost next to nothing.
Processor time per request is the figure to compare: requests per second depend on what else runs on the machine, and
on the load generator, which shares its cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
from load_generator import Load, one_at_a_time, over_sockets, over_stdio
from speech_set import MB, Started, daemon, parser, percentile, save, settings, table

from whisperd.client import Client

SOURCES = ("path", "fd", "data", "ping")
SIZES_MB = (0.01, 0.25, 0.5, 1, 2, 4, 8)
LANES = 2  # of the fake engine
QUEUED = (10, 100, 1_000, 10_000)
ROOMY = {"queue_max": 20_000, "client_quota": 20_000}
_FILLS_PER_S = 500  # requests are queued faster than that, or the measurement of growth fails
_IDLE_S = 5.0
Answer = TypeVar("Answer")


class Cost:
    """The supervisor's processor time over a block of work, all threads, to the nanosecond."""

    def __init__(self, pid: int) -> None:
        self._clock = ~pid << 3 | 2  # Linux's number for the clock of another process: clock_getcpuclockid(3)
        self._began_s = time.clock_gettime(self._clock)

    @property
    def cpu_s(self) -> float:
        return time.clock_gettime(self._clock) - self._began_s


def elsewhere(work: Callable[..., Answer], *arguments: object) -> Answer:
    """Runs it in a process of its own, as a client would."""
    with ProcessPoolExecutor(1) as pool:
        return pool.submit(work, *arguments).result()


def control_path(started: Started) -> Path:
    """Where the control socket of such a daemon is."""
    return started.socket.with_name("control.sock")


@contextmanager
def on_stdio(**extra: object) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon at the other end of two pipes."""
    folder = tempfile.mkdtemp(prefix="wd-bench-")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WHISPERD_")}
    environ |= {"XDG_STATE_HOME": folder, "XDG_CONFIG_HOME": folder, "WHISPERD_LOG_LEVEL": "warning"}
    environ |= {f"WHISPERD_{name.upper()}": str(value) for name, value in extra.items()}
    command = [sys.executable, "-m", "whisperd", "serve", "--stdio", "--model", "fake"]
    process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.communicate()
        shutil.rmtree(folder)


# -- one measurement each ---------------------------------------------------------------------------------------------


def throughput(started: Started, audio: Path, count: int) -> dict[str, Any]:
    """By source of the audio: requests per second, and the supervisor's microseconds per request."""
    figures = {}
    for source in SOURCES:
        load = Load(source, audio, count)
        over_sockets(Load(source, audio, max(200, count // 10)), str(started.socket))
        cost = Cost(started.process.pid)
        run = elsewhere(over_sockets, load, str(started.socket))
        figures[source] = _figures(count, cost.cpu_s, run.seconds, run.own_cpu_s)
    return figures


def throughput_stdio(audio: Path, count: int) -> dict[str, Any]:
    """The same on stdio, where all lines are sent at once and most of them wait in the backlog."""
    figures = {}
    with on_stdio() as process:
        for source in ("path", "data"):
            over_stdio(Load(source, audio, max(200, count // 10)), process)
            cost = Cost(process.pid)
            run = over_stdio(Load(source, audio, count), process)
            figures[source] = _figures(count, cost.cpu_s, run.seconds, run.own_cpu_s)
    return figures


def _figures(count: int, cpu_s: float, seconds: float, generator_s: float) -> dict[str, float]:
    return {
        "requests/s": round(count / seconds),
        "requests per supervisor CPU second": round(count / cpu_s),
        "supervisor µs/request": round(cpu_s / count * 1e6, 1),
        "generator µs/request": round(generator_s / count * 1e6, 1),
    }


def latency(started: Started, audio: Path, count: int) -> dict[str, Any]:
    """One request at a time on an idle daemon."""
    figures = {}
    for source in SOURCES:
        took_ms = elsewhere(one_at_a_time, Load(source, audio, count), str(started.socket))
        figures[source] = {f"p{share:.0%}"[:-1] + " ms": round(percentile(took_ms, share), 3) for share in (0.5, 0.99)}
    return figures


def megabytes(started: Started, folder: Path, rounds: int) -> list[dict[str, float]]:
    """What a megabyte costs as base64, beyond the same as a file: the fake media stage hashes both alike."""
    audio, rows = folder / "large", []
    for size_mb in SIZES_MB:
        audio.write_bytes(os.urandom(round(size_mb * MB)))
        count = max(3, round(rounds / size_mb / 10))
        cpu_ms = {}
        for source in ("path", "data"):
            one_at_a_time(Load(source, audio, 1), str(started.socket))
            cost = Cost(started.process.pid)
            one_at_a_time(Load(source, audio, count), str(started.socket))
            cpu_ms[source] = cost.cpu_s / count * 1000
        rows.append({"MB": size_mb, "ms as a file": cpu_ms["path"], "ms as base64": cpu_ms["data"]})
    return [{name: round(value, 2) for name, value in row.items()} for row in rows]


def _slope(points: list[tuple[float, float]]) -> float:
    """Of the line that fits best."""
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / sum((x - middle_x) ** 2 for x, _ in points)


def health(started: Started, audio: Path, count: int) -> dict[str, Any]:
    """Milliseconds of `health` on the control socket while the main socket is kept full of requests."""
    took_ms = []
    with ProcessPoolExecutor(1) as pool, Client(control_path(started)) as client:
        saturating = pool.submit(over_sockets, Load("path", audio, count), str(started.socket))
        while not client.status()["queue"]["depth"] and not saturating.done():
            time.sleep(0.001)
        while not saturating.done():
            began = time.perf_counter()
            client.health()
            took_ms.append((time.perf_counter() - began) * 1000)
            time.sleep(0.002)
        saturating.result()
    figures: dict[str, Any] = {
        f"p{share:.0%}"[:-1] + " ms": round(percentile(took_ms, share), 2) for share in (0.5, 0.99)
    }
    return {"calls": len(took_ms), **figures, "most ms": round(max(took_ms), 2)}


def growth(started: Started, folder: Path, most: int) -> list[dict[str, Any]]:
    """Processor time per request while so many queue up behind a slow one, and while they are worked off."""
    slow, audio = folder / "slow", folder / "short"
    audio.write_bytes(b"short" * 640)
    rows = []
    with Client(control_path(started)) as client:
        for queued in (QUEUED[0], *(each for each in QUEUED if each <= most)):  # the first one warms up
            repeats = max(1, 100 // queued)
            fill_s = drain_s = 0.0
            for _ in range(repeats):
                slow.write_bytes(b"SLOW %f " % (1.5 + queued / _FILLS_PER_S))
                filling, draining = _fill_and_drain(client, started, slow, audio, queued)
                fill_s, drain_s = fill_s + filling, drain_s + draining
            requests = queued * repeats
            rows.append(
                {
                    "queued": queued,
                    "µs/request to queue": round(fill_s / requests * 1e6, 1),
                    "µs/request to answer": round(drain_s / requests * 1e6, 1),
                    "µs/request": round((fill_s + drain_s) / requests * 1e6, 1),
                }
            )
    return rows[1:]


def _fill_and_drain(client: Client, started: Started, slow: Path, audio: Path, queued: int) -> tuple[float, float]:
    """Seconds of processor time to queue them all, and to answer them."""
    with Client(started.socket) as first, ProcessPoolExecutor(1) as pool:
        blocking = []
        for lane in range(LANES):
            blocking.append(first.submit(slow))
            while [job["state"] for job in client.status()["jobs"]] != ["running"] * (lane + 1):
                time.sleep(0.001)
        cost = Cost(started.process.pid)
        load = Load("path", audio, queued, connections=1, depth=queued)
        working = pool.submit(over_sockets, load, str(started.socket))
        until = time.monotonic() + 0.7 + queued / _FILLS_PER_S
        while time.monotonic() < until:
            time.sleep(0.05)  # asking more often would be part of what is measured
        filling = cost.cpu_s
        waiting = client.call("metrics.current")["queue_depth"]
        assert waiting == queued + LANES, f"{waiting - LANES} of {queued} were queued in time: the machine is too busy"
        cost = Cost(started.process.pid)
        working.result()
        for request in blocking:
            request.result()
        return filling, cost.cpu_s


def idle(started: Started) -> dict[str, Any]:
    """Processor time of a daemon that nobody asks anything."""
    time.sleep(1.0)
    cost = Cost(started.process.pid)
    time.sleep(_IDLE_S)
    return {"CPU ms/s": round(cost.cpu_s / _IDLE_S * 1000, 3)}


# -- together ---------------------------------------------------------------------------------------------------------


PARTS = ("idle", "latency", "sockets", "health", "base64", "stdio", "growth")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures of each part that was asked for."""
    count = 3_000 if arguments.quick else 20_000
    audio = folder / "short"
    audio.write_bytes(b"short" * 640)  # 0.1 s of fake audio
    wanted, extra = arguments.only or PARTS, settings(arguments)
    figures: dict[str, Any] = {}
    with daemon("fake", **extra) as started:
        parts: dict[str, Callable[[], Any]] = {
            "idle": lambda: idle(started),
            "latency": lambda: latency(started, audio, count // 10),
            "sockets": lambda: throughput(started, audio, count),
            "health": lambda: health(started, audio, count),
            "base64": lambda: megabytes(started, folder, 20 if arguments.quick else 100),
        }
        figures |= {name: part() for name, part in parts.items() if name in wanted}
        figures["rss_mb"] = round(psutil.Process(started.process.pid).memory_info().rss / MB, 1)
    if "stdio" in wanted:
        figures["stdio"] = throughput_stdio(audio, count)
    if "growth" in wanted:
        with daemon("fake", **ROOMY, **extra) as started:
            figures["growth"] = growth(started, folder, 1_000 if arguments.quick else QUEUED[-1])
            figures["rss_after_growth_mb"] = round(psutil.Process(started.process.pid).memory_info().rss / MB, 1)
    return figures


def report(figures: dict[str, Any]) -> None:
    for part in ("sockets", "stdio", "latency"):
        if rows := figures.get(part):
            header = list(next(iter(rows.values())))
            table([part, *header], [[source, *row.values()] for source, row in rows.items()])
    for part in ("base64", "growth"):
        if rows := figures.get(part):
            table(list(rows[0]), [list(row.values()) for row in rows])
    rest = {name: figures[name] for name in ("idle", "health", "rss_mb", "rss_after_growth_mb") if name in figures}
    table(["", ""], list(rest.items()))
    if set(PARTS) <= set(figures):
        table(["target", "at least", "aim", "measured"], targets(figures))


def targets(figures: dict[str, Any]) -> list[list[object]]:
    """What was wanted, and what came out."""
    path = figures["sockets"]["path"]
    costs = [row["µs/request"] for row in figures["growth"] if row["queued"] >= 100]
    points = [(row["MB"], row["ms as base64"] - row["ms as a file"]) for row in figures["base64"]]
    return [
        ["requests/s", 2500, 4500, path["requests/s"]],
        ["requests per supervisor CPU second", 2500, 4500, path["requests per supervisor CPU second"]],
        ["added to a request at p50, ms", "< 1", "", figures["latency"]["path"]["p50 ms"]],
        ["health while saturated, p99 ms", "< 50", "< 10", figures["health"]["p99 ms"]],
        ["supervisor RSS, MB", "< 80", "< 60", figures["rss_mb"]],
        ["cost of a queued request, dearest / cheapest", "same", "", round(max(costs) / min(costs), 2)],
        ["a megabyte as base64, ms", "", "", round(_slope(points), 2)],
        ["idle, CPU ms/s", "", "", figures["idle"]["CPU ms/s"]],
    ]


def main() -> int:
    made = parser("The daemon's own cost.")
    made.add_argument("--quick", action="store_true", help="a seventh of the requests")
    made.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    arguments = made.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="wd-overhead-"))
    try:
        figures = measure(arguments, folder)
    finally:
        shutil.rmtree(folder)
    report(figures)
    save(arguments, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the operating system says of our processes: memory, processor time, descriptors, children.

Read only when somebody asks, so that an idle daemon costs nothing. A process that ends while it is being
looked at counts as not there; processor time of ended children stays counted, by the kernel, in their parent.
"""

from __future__ import annotations

import time
from typing import Any

import psutil


class ProcessStats:
    """Of this process and everything that it started. Keeps its last reading, to tell what came since."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._last_clock_s = time.monotonic()
        self._last_cpu_s = self._cpu_s(self._process.children(recursive=True))

    def read(self) -> dict[str, Any]:
        """rss_bytes and fds of this process, how many children with how much memory, cpu_percent of all.

        cpu_percent is since the last read, 100 is one core. Memory that processes share is counted in each.
        """
        children = self._process.children(recursive=True)
        clock_s, cpu_s = time.monotonic(), self._cpu_s(children)
        elapsed_s = clock_s - self._last_clock_s
        used_s = max(cpu_s - self._last_cpu_s, 0.0)  # a dead child's time is missing until it is reaped
        self._last_clock_s, self._last_cpu_s = clock_s, cpu_s
        return {
            "rss_bytes": self._process.memory_info().rss,
            "cpu_percent": round(100.0 * used_s / elapsed_s, 2) if elapsed_s > 0 else 0.0,
            "fds": self._process.num_fds(),
            "children": len(children),
            "children_rss_bytes": sum(rss_bytes(child.pid) or 0 for child in children),
        }

    def _cpu_s(self, children: list[psutil.Process]) -> float:
        return sum(_cpu_s(process) for process in (self._process, *children))


def rss_bytes(pid: int) -> int | None:
    """The resident memory of a process, such as a worker's in `status`; None when it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)

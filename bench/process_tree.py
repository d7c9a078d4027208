"""What a side costs: processor time and memory of a process and of all that it started.

Peak memory of each process is the kernel's own figure (VmHWM in /proc), which no sampling can miss; what all of them
held at the same time is sampled. Resident memory counts shared pages in each process, so the sum is an upper bound.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

_SAMPLE_EVERY_S = 0.5  # looking at /proc takes time on the cores that are being measured


def members(root: int) -> list[psutil.Process]:
    """The process and its descendants that live now; none if it has gone."""
    try:
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_s(root: int) -> float:
    """Processor seconds, user and system, of the tree; that of children that ended counts with their parent."""
    total = 0.0
    for process in members(root):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def peak_rss_bytes(pid: int) -> int:
    """VmHWM of a process; 0 if it has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    lines = (line.split() for line in status.splitlines() if line.startswith("VmHWM:"))
    return next((int(words[1]) * 1024 for words in lines), 0)


class TreeWatch:
    """Memory of a tree of processes until the block is left: `peak_bytes` by name, and `together_bytes`.

    `names` says what a process is called, by its id; it is asked at the end, when all have shown up.
    """

    def __init__(self, root: int, names: Callable[[], Mapping[int, str]]) -> None:
        self._root = root
        self._ask_names = names
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._by_pid: dict[int, int] = {}
        self.peak_bytes: dict[str, int] = {}
        self.together_bytes = 0

    def __enter__(self) -> TreeWatch:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
        names = self._ask_names()
        for pid, peak in self._by_pid.items():
            name = names.get(pid, "another process")
            self.peak_bytes[name] = max(peak, self.peak_bytes.get(name, 0))

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_EVERY_S):
            self._sample()

    def _sample(self) -> None:
        together = 0
        for process in members(self._root):
            try:
                together += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            self._by_pid[process.pid] = max(peak_rss_bytes(process.pid), self._by_pid.get(process.pid, 0))
        self.together_bytes = max(together, self.together_bytes)

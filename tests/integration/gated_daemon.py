"""The daemon with the fake engine behind a gate, so that a test decides how long work takes.

An input that begins with `HOLD` stays in the engine until SIGUSR1 opens the gate for good; each is told on stderr.
One that begins with `PRINT` makes the engine, which lives in the supervisor here, write to stdout in every way there
is. GATE_LANES: how many batches the engine takes at once (default: as many as come). A model called `slow` takes
until the gate is open to be found.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

import whisperd.testing
from whisperd.cli import main
from whisperd.jobs import Window
from whisperd.messages import WindowResult
from whisperd.testing import FakeEngine

GATE = threading.Event()
HELD: list[asyncio.Event] = []


class GatedEngine(FakeEngine):
    """Holds what wants to be held."""

    def __init__(self, name: str = "fake") -> None:
        super().__init__(name, lanes=int(os.environ.get("GATE_LANES", "1000000")))
        self._held = 0
        if name == "slow":
            tell("the slow model is wanted")
            GATE.wait()

    def start(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, open_gate)
        super().start()

    def capacity(self) -> int:
        return super().capacity() - self._held

    async def submit(self, windows: Sequence[Window]) -> list[WindowResult]:
        beginnings = [os.pread(window.job.samples.fd, 8, 0) for window in windows if window.job.samples]
        if any(beginning.startswith(b"PRINT") for beginning in beginnings):
            print_in_every_way()
        held = sum(beginning.startswith(b"HOLD") for beginning in beginnings)
        if held and not GATE.is_set():
            opened = asyncio.Event()
            HELD.append(opened)
            self._held += 1
            for _ in range(held):
                tell("held")
            await opened.wait()
            self._held -= 1
        return await super().submit(windows)


def open_gate() -> None:
    GATE.set()
    for event in HELD:
        event.set()


def tell(what: str) -> None:
    os.write(2, f"gate: {what}\n".encode())


def print_in_every_way() -> None:
    libc = ctypes.CDLL(None)
    libc.puts(b"POLLUTION by libc")
    libc.fflush(None)
    os.write(1, b"POLLUTION by descriptor\n")
    sys.stdout.write("POLLUTION by Python\n")
    sys.stdout.flush()
    subprocess.run(["echo", "POLLUTION by a child"], check=True)


if __name__ == "__main__":
    whisperd.testing.FakeEngine = GatedEngine  # type: ignore[misc]
    main()

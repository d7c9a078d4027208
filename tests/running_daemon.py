"""A real daemon for tests: its own home, its log line by line, and all processes that come from it.

Whoever waits here waits for an event (a log line, the end of a process) with a deadline, never for time to pass. The
processes are found by a mark in their environment, so that one whose parent has died is found too.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from whisperd.client import Client

WAIT_S = 60.0  # for what takes seconds; a test that waits longer has failed
_MARK = "TEST_DAEMON_MARK"
# Ours must not leak into the daemon: it would find the tester's own sockets, store and models.
_NOT_INHERITED = {"XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY", "STATE_DIRECTORY", "CACHE_DIRECTORY", "NOTIFY_SOCKET"}
# Each is the trace of a mistake that no reply need show.
_ACCIDENTS = ("Traceback", "never retrieved", "never awaited", "unexpectedly", "Exception in", "ResourceWarning")


class RunningDaemon:
    """`whisperd serve` on a socket in `folder`, with `settings` as WHISPERD_* (so by their field names)."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        cache: Path | None = None,
        wrapper: tuple[str, ...] = (sys.executable, "-m", "whisperd"),
        **settings: object,
    ) -> None:
        self.folder = folder
        self.socket = folder / "w.sock"
        self.temporary = folder / "tmp"
        self.mark = secrets.token_hex(8)
        self.log: list[str] = []
        self._news = threading.Condition()
        self.temporary.mkdir(parents=True)
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("WHISPERD_") and name not in _NOT_INHERITED
        }
        environ |= {"HOME": str(folder), "TMPDIR": str(self.temporary), _MARK: self.mark}
        environ |= {f"XDG_{name}_HOME": str(folder / name.lower()) for name in ("STATE", "CONFIG", "DATA", "CACHE")}
        if cache:
            environ["XDG_CACHE_HOME"] = str(cache)
        environ |= {f"WHISPERD_{name.upper()}": str(value) for name, value in settings.items()}
        self.process = subprocess.Popen(
            [*wrapper, "serve", "--socket", str(self.socket), *flags],
            env=environ,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                with self._news:
                    self.log.append(line.decode("utf-8", "replace").rstrip())
                    self._news.notify_all()

    def wait_for_log(self, *words: str, count: int = 1) -> str:
        """The `count`-th line of the log with all these words in it, now or when it comes."""

        def found() -> list[str]:
            return [line for line in self.log if all(word in line for word in words)][count - 1 :]

        with self._news:
            if not self._news.wait_for(found, WAIT_S):
                raise AssertionError(f"{words} did not come {count} times within {WAIT_S} s in:\n" + self.tail())
            return found()[0]

    def tail(self) -> str:
        """The end of the log."""
        return "\n".join(self.log[-40:])

    def connect(self) -> Client:
        """A new client; waits until the daemon listens."""
        self.wait_for_log("serving")
        return Client(self.socket, timeout=WAIT_S)

    def family(self) -> list[psutil.Process]:
        """Every living process that comes from this daemon, itself included."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(_MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the supervisor."""
        self.process.send_signal(number)

    def wait(self, within_s: float = WAIT_S) -> int:
        """The exit code, when the supervisor has ended."""
        code = self.process.wait(within_s)
        self._listener.join(within_s)
        return code

    def stop(self) -> int:
        """Asks it to end, and returns the exit code. Fails if it does not end, or if its log tells of an accident."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            code = self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError("the daemon did not stop; its log ends:\n" + self.tail()) from None
        assert not any(sign in line for line in self.log for sign in _ACCIDENTS), self.tail()
        return code

    def kill(self) -> None:
        """Ends what is left, whatever state it is in."""
        for process in self.family():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.wait()


@contextmanager
def running_daemon(folder: Path, *flags: str, **settings: Any) -> Iterator[RunningDaemon]:
    """A daemon that is gone when the block is left, in whatever way."""
    daemon = RunningDaemon(folder, *flags, **settings)
    try:
        yield daemon
        daemon.stop()
    finally:
        daemon.kill()


Launch = Callable[..., RunningDaemon]  # flags and settings; the folder is seen to


def workers(client: Client, kind: str) -> list[dict[str, Any]]:
    """The workers of a kind, "media" or "inference", as `status` tells them."""
    return [worker for worker in client.status()["workers"] if worker["kind"] == kind]


def until(holds: Callable[[], Any], what: str) -> Any:
    """Asks again and again (each time something of the daemon, which is what takes time) until it holds."""
    deadline = time.monotonic() + WAIT_S
    while not (value := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {WAIT_S} s: {what}")
    return value

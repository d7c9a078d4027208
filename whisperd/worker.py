"""One worker process, kept alive: started, watched, replaced when it dies or goes silent, never for ever in vain.

Death and silence are the same thing to everybody else: a worker that hangs is killed, and then it has died. A
process that ends before it was ever ready has not crashed, it cannot start; that is told apart, because trying
again at once would only burn the machine.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from whisperd.channel import OUT_OF_DESCRIPTORS, AsyncChannel
from whisperd.child import Child, Program, start_child
from whisperd.log import log

START_TIMEOUT_S = 600.0  # loading the largest model from a slow disk takes minutes
_START_TRIES = 3
_BACKOFF_FIRST_S, _BACKOFF_MAX_S = 0.5, 60.0
_BACKOFF_DOUBLINGS = 7  # more would not change the bound, and a thousand of them are beyond a float
_STEADY_S = 60.0  # a worker that lived this long has recovered


class WorkerLost(Exception):
    """The worker died or hung with this work in hand. Nothing is known of whose fault it is."""


class NotSent(WorkerLost):
    """The work never was in the worker's hands, or its answer was lost for want of something on our side: the work
    itself is not to blame, and may be given to the next worker as if nothing had been."""


def loss(reason: str) -> WorkerLost:
    """What the owner of a worker tells those who wait, from the reason that `Callbacks.lost` was given."""
    return NotSent(reason) if reason == OUT_OF_DESCRIPTORS else WorkerLost(reason)


def backoff_s(losses: int) -> float:
    """Seconds, at most, before a worker that was lost so many times in a row is started again."""
    return float(min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2 ** min(losses, _BACKOFF_DOUBLINGS)))


@dataclass
class Callbacks:
    """What the owner of a worker wants to hear."""

    ready: Callable[[dict[str, Any]], None]
    message: Callable[[dict[str, Any], list[int]], None]
    lost: Callable[[str], None]  # died or hung after it was ready; a successor comes by itself
    failed: Callable[[str, str], None]  # (kind, message): it does not start; no successor comes


@dataclass
class Worker:
    """Keeps one process of `program` running. States: starting, ready, restarting, failed, stopping, stopped."""

    kind: str
    program: Program
    callbacks: Callbacks
    hello: Mapping[str, Any] | None = None  # sent first, for modules that wait for one
    state: str = "stopped"
    restarts: int = 0
    pid: int | None = None
    _early: Child | None = None  # a process that was started for this worker before it was there
    _process: subprocess.Popen[bytes] | None = None
    _channel: AsyncChannel | None = None
    _start_failures: int = 0
    _crashes: int = 0
    _ready_at: float = 0.0
    _timer: asyncio.TimerHandle | None = None  # start timeout, hang watch or backoff: never two at once
    _last_beats: dict[Hashable, float] = field(default_factory=dict)  # of each piece of work that is watched
    _hang_s: float | None = None  # how long silence is allowed now; None: nothing is asked of it

    def adopt(self, child: Child) -> None:
        """Has the next start take this process, which runs the worker's program already."""
        self._early = child

    def start(self) -> None:
        """Starts the process; `callbacks.ready` follows."""
        loop = asyncio.get_running_loop()
        self.state = "starting"
        try:
            ours = self._spawn()
        except OSError as error:  # no memory, no descriptors: like a process that does not start
            self._gone(f"cannot start a process: {error}")
            return
        self._channel = AsyncChannel(ours, self._received, self._gone)
        if self.hello is not None:
            self._channel.send(dict(self.hello))
        self._rearm(loop.call_later(START_TIMEOUT_S, self.kill, f"was not ready within {START_TIMEOUT_S:.0f} s"))

    def _spawn(self) -> socket.socket:
        """The process, with its end of a socket pair; returns ours."""
        child, self._early = self._early or start_child(self.program), None
        self._process, self.pid = child.process, child.process.pid
        return child.channel

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Raises NotSent when there is no process to send to, OSError when we are short of descriptors."""
        if self._channel is None or self.state != "ready":
            raise NotSent(f"the {self.kind} worker is {self.state}")
        self._channel.send(message, fds)

    def expect_beats(self, within_s: float | None, of: Iterable[Hashable] = (None,)) -> None:
        """From now on each of these pieces of work must give a sign of life at least so often; None: nothing is asked.

        Work that is named again keeps its clock, since a busy neighbour must not hide a piece that hangs. A worker
        with one thing in hand need not name it.
        """
        now = asyncio.get_running_loop().time()
        self._hang_s = within_s
        self._last_beats = {} if within_s is None else {work: self._last_beats.get(work, now) for work in of}
        if self._hang_s is not None and self.state == "ready":
            self._rearm(None)
            self._watch()

    def beat(self, of: Hashable = None) -> None:
        """This piece of work gave a sign of life."""
        if of in self._last_beats:
            self._last_beats[of] = asyncio.get_running_loop().time()

    def praise(self) -> None:
        """The worker finished something: earlier crashes do not count against it any more."""
        self._crashes = 0

    def kill(self, reason: str, blame: bool = True) -> None:
        """Ends the process now; it is replaced like any that died. Without `blame` it does not count as a crash."""
        if self._process and self._process.poll() is None:
            log.warning("killing worker", kind=self.kind, pid=self.pid, reason=reason)
            self._process.kill()
        self._gone(reason, blame)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Ends the process for good: by closing its channel, by force after the grace. No successor comes."""
        self.state = "stopping"
        self._rearm(None)
        if self._channel:
            self._channel.close()
        process = self._process
        if process:
            await asyncio.to_thread(_reap, process, grace_s)
        self.state = "stopped"
        self.pid = None

    def rss_bytes(self) -> int:
        """Resident memory of the process now; 0 when there is none."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss) if self.pid else 0
        except psutil.Error:
            return 0

    def _received(self, message: dict[str, Any], fds: list[int]) -> None:
        batch = message.get("batch")  # inference workers name what they work on; media workers have one thing in hand
        self.beat(batch if isinstance(batch, int) else None)
        if self.state != "starting":
            self.callbacks.message(message, fds)
            return
        for fd in fds:
            os.close(fd)  # nothing was asked for yet
        if message.get("event") == "ready":
            self.state = "ready"
            self._rearm(None)
            self._start_failures = 0
            self._ready_at = asyncio.get_running_loop().time()
            self.callbacks.ready(message)
        elif message.get("event") == "failed":
            self._give_up(str(message.get("kind")), str(message.get("message")))

    def _gone(self, reason: str, blame: bool = True) -> None:
        """The channel closed or we killed it. Decides between a successor, now or later, and giving up."""
        if self.state not in ("starting", "ready"):
            return
        was_ready, self.state = self.state == "ready", "restarting"
        self._rearm(None)
        self._hang_s = None
        self._last_beats = {}
        self._bury()
        loop = asyncio.get_running_loop()
        log.warning("worker lost", kind=self.kind, pid=self.pid, was_ready=was_ready, reason=reason)
        if not was_ready:
            self._start_failures += 1
            if self._start_failures >= _START_TRIES:
                self._give_up("worker_lost", f"the {self.kind} worker does not start; its log is on stderr")
                return
        elif loop.time() - self._ready_at > _STEADY_S:
            self._crashes = 0
        delay_s = backoff_s(self._crashes + self._start_failures)
        self._crashes += was_ready and blame
        self.restarts += 1
        self._rearm(loop.call_later(delay_s * random.uniform(0.5, 1.0), self._restart))
        if was_ready:
            self.callbacks.lost(reason)

    def _restart(self) -> None:
        self._timer = None
        if self.state == "restarting":
            self.start()

    def _give_up(self, kind: str, message: str) -> None:
        self.state = "failed"
        self._start_failures = 0
        self._rearm(None)
        self._bury()
        self.callbacks.failed(kind, message)

    def _bury(self) -> None:
        """Closes the channel and reaps the process without blocking the loop."""
        if self._channel:
            self._channel.close()
            self._channel = None
        if self._process:
            process, self._process = self._process, None
            asyncio.get_running_loop().run_in_executor(None, _reap, process, 0.0)

    def _watch(self) -> None:
        """Wakes when the longest silence would become too long, and looks again."""
        self._timer = None
        if self._hang_s is None or not self._last_beats or self.state != "ready":
            return
        loop = asyncio.get_running_loop()
        left_s = min(self._last_beats.values()) + self._hang_s - loop.time()
        if left_s <= 0:
            self.kill(f"gave no sign of life for {self._hang_s:.1f} s")
        else:
            self._timer = loop.call_later(left_s, self._watch)

    def _rearm(self, timer: asyncio.TimerHandle | None) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = timer


def _reap(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Waits for the end, by force after the grace. Blocks: runs in a thread."""
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

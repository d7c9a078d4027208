"""A machine and its clients without either: the scheduler's own code runs, and only time and work are made up.

What is real: the line (`batching`, `fairness`), the policy (`lanes`), the cost model that learns. What is made up: a
clock that jumps from event to event; cores shared evenly by what runs on them, media workers included; batches that
take what the cost model's shape says, times the machine's speed, times chance, which the policy does not know. So one
policy can be compared with another on the same arrivals in a second, and what must always hold can be tested in a
thousand different days.

Everything that is random comes from one seed. `bench/scheduling.py` prints the comparison.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from whisperd.batching import Batcher, context_frames
from whisperd.cost import CPU, CostModel, Shape
from whisperd.jobs import Job, State, Window, Work
from whisperd.lanes import Flight, Lanes, Room
from whisperd.messages import SAMPLE_RATE, DecodeOptions, RowOptions

_JUDGE_S = 0.1
TWO_CORES = Room(2, 1, 8)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the policy has to find out, and what it may choose."""

    cores: int = 2
    media_workers: int = 2
    prepare_s: float = 0.01  # of a media worker, for each input
    prepare_rate: float = 0.003  # and for each second of audio
    room: Room = TWO_CORES
    slow_s: float = 3.0
    rate: float = 1.0  # the engine's real speed: seconds for each nominal one
    noise: float = 0.15  # standard deviation of the logarithm of what a batch takes
    refuses: bool = True  # deadlines that cannot be met are refused early; else it is only noted
    retries: float = 0.02  # share of rows that are decoded again, alone and in full
    shape: Shape = CPU


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it comes, whose it is, and what it holds."""

    at: float
    lengths_s: tuple[float, ...]
    client: Any = "client"
    priority: str = "normal"
    tail_s: float | None = 4.0
    deadline_s: float | None = None
    cancel_after_s: float | None = None
    name: str = "clip"


@dataclass(eq=False, slots=True)
class Outcome:
    """What became of a request. `begun` is when its last window went to the engine."""

    request: Request
    job: Job
    replies: list[str] = field(default_factory=list)  # done | deadline | refused | cancelled
    ended: float = math.nan
    begun: float = math.nan
    refused_at: float = math.nan  # when its deadline was found to be hopeless
    expected_s: float = math.nan  # the wait that it was told then

    @property
    def latency_s(self) -> float:
        return self.ended - self.request.at


@dataclass(eq=False, slots=True)
class _Running:
    """What is on a core: seconds of one that it still needs, and what follows."""

    left_s: float
    done: Callable[[], None]


class Simulation:
    """One run. `follow(outcome)` may give the client's next request when one has its reply (a closed loop); `watch`
    is called whenever everything that can start has started."""

    def __init__(
        self,
        machine: Machine,
        requests: Iterable[Request],
        seed: int = 0,
        follow: Callable[[Outcome], Request | None] = lambda outcome: None,
        watch: Callable[[Simulation], None] = lambda simulation: None,
    ) -> None:
        self.machine = machine
        self.now = 0.0
        self.cost = CostModel(machine.shape)
        self.lanes = Lanes(Batcher(), machine.slow_s)
        self.outcomes: list[Outcome] = []
        self.flights: list[Flight] = []
        self._follow, self._watch = follow, watch
        self._chance = random.Random(seed)
        self._running: list[_Running] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0
        self._by_job: dict[Job, Outcome] = {}
        self._unprepared: deque[Outcome] = deque()
        self._preparing = 0
        for request in requests:
            self._arrive(request)

    def run(self, until: float = math.inf) -> Simulation:
        """Goes on until nothing is left to happen, or to the given time."""
        while self._events or self._running:
            event_at = self._events[0][0] if self._events else math.inf
            pace = min(1.0, self.machine.cores / max(1, len(self._running)))
            first = min(self._running, key=lambda one: one.left_s, default=None)
            landing_at = self.now + first.left_s / pace if first else math.inf
            at = min(event_at, landing_at)
            if at > until:
                break
            for one in self._running:
                one.left_s -= (at - self.now) * pace
            self.now = at
            if first and landing_at <= event_at:
                self._running.remove(first)
                first.done()
            else:
                heapq.heappop(self._events)[2]()
            self._pump()
            self._watch(self)
        return self

    def _at(self, at: float, event: Callable[[], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._events, (max(at, self.now), self._numbers, event))

    def _arrive(self, request: Request) -> None:
        outcome = Outcome(request, _job(request, len(self.outcomes)))
        self.outcomes.append(outcome)
        self._by_job[outcome.job] = outcome
        self._at(request.at, lambda: self._unprepared.append(outcome))
        if request.deadline_s is not None:
            self._at(request.at + request.deadline_s, lambda: self._deadline(outcome))
        if request.cancel_after_s is not None:
            self._at(request.at + request.cancel_after_s, lambda: self._end(outcome, "cancelled"))

    def _prepared(self, outcome: Outcome) -> None:
        self._preparing -= 1
        if not outcome.job.over:
            self.lanes.batcher.add(outcome.job.windows)
            self._judge(outcome)

    def _judge(self, outcome: Outcome) -> None:
        """Is the deadline still to be met? Asked again when half of the time that was left is over."""
        deadline = outcome.job.deadline
        if deadline is None or outcome.job.over or outcome.refused_at == outcome.refused_at:
            return
        late_s = self.lanes.late_s(outcome.job, self.now, self.machine.room, self.cost)
        if late_s is not None:
            outcome.refused_at, outcome.expected_s = self.now, late_s
            if self.machine.refuses:
                self._end(outcome, "refused")
        elif deadline - self.now > _JUDGE_S:
            self._at(self.now + (deadline - self.now) / 2, lambda: self._judge(outcome))

    def _deadline(self, outcome: Outcome) -> None:
        if outcome.job.dispatched < len(outcome.request.lengths_s):
            self._end(outcome, "deadline")

    def _pump(self) -> None:
        while self._unprepared and self._preparing < self.machine.media_workers:
            outcome = self._unprepared.popleft()
            self._preparing += 1
            audio_s = sum(outcome.request.lengths_s)
            takes_s = self.machine.prepare_s + self.machine.prepare_rate * audio_s
            self._running.append(_Running(takes_s, partial(self._prepared, outcome)))
        while flight := self.lanes.next(self.now, self.machine.room, self.cost):
            self.flights.append(flight)
            self._running.append(_Running(self._takes_s(flight.windows), partial(self._land, flight)))
            for window in flight.windows:
                window.job.dispatched += 1
                self._by_job[window.job].begun = self.now

    def _takes_s(self, windows: Sequence[Window]) -> float:
        machine = self.machine
        alone_s = machine.shape.encode_s(3000) + 0.1
        again_s = sum(alone_s for _ in windows if self._chance.random() < machine.retries)
        chance = math.exp(self._chance.gauss(0.0, machine.noise))
        return (machine.shape.batch_s(windows) * chance + again_s) * machine.rate

    def _land(self, flight: Flight) -> None:
        self.lanes.land(flight)
        self.cost.learn(flight.windows, self.now - flight.began)
        for window in flight.windows:
            window.job.finished += 1
            outcome = self._by_job[window.job]
            if window.job.finished == len(outcome.request.lengths_s):
                self._end(outcome, "done")

    def _end(self, outcome: Outcome, reply: str) -> None:
        if outcome.job.over:
            return
        outcome.replies.append(reply)
        outcome.ended = self.now
        outcome.job.state = State.DONE if reply == "done" else State.FAILED
        self.lanes.batcher.discard(outcome.job)
        following = self._follow(outcome)
        if following is not None:
            self._arrive(following)


def _job(request: Request, number: int) -> Job:
    options = DecodeOptions(tail_s=request.tail_s)
    deadline_ms = None if request.deadline_s is None else round(request.deadline_s * 1000)
    work = Work("simulated", options, RowOptions(), {}, request.priority, deadline_ms)
    job = Job(f"{request.name} {number}", request.client, number, "transcribe", work, request.at, 0)
    job.state = State.RUNNING
    start = 0
    for index, length_s in enumerate(request.lengths_s):
        stop = start + round(length_s * SAMPLE_RATE)
        job.windows.append(Window(job, index, start, stop, context_frames(stop - start, request.tail_s)))
        start = stop
    return job

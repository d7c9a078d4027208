"""A job: one accepted request for speech, from its line to its one terminal reply.

The table of moves below is the whole life of a job. `Job.move` refuses any other move, so a second terminal reply
is a bug that raises instead of a line that confuses a client.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field
from typing import Any

from whisperd.messages import (
    SAMPLE_RATE,
    WINDOW_MAX_S,
    DecodeOptions,
    RowOptions,
    Segment,
    WindowResult,
)

PRIORITY_RANK = {"interactive": 0, "normal": 1, "bulk": 2}  # where only an order is wanted


class State(enum.Enum):
    """Where a job is. PREPARING is with a media worker, QUEUED has windows that wait for the engine. A job of long
    audio is queued with its first windows, and running with them, while the media worker still looks for more."""

    RECEIVED = "received"
    ADMITTED = "admitted"
    PREPARING = "preparing"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


_ENDS = {State.FAILED, State.CANCELLED}
MOVES: dict[State, set[State]] = {
    State.RECEIVED: {State.ADMITTED} | _ENDS,
    State.ADMITTED: {State.PREPARING} | _ENDS,
    State.PREPARING: {State.QUEUED, State.DONE} | _ENDS,  # DONE: no speech was found
    State.QUEUED: {State.RUNNING} | _ENDS,
    State.RUNNING: {State.DONE} | _ENDS,
    State.DONE: set(),
    State.FAILED: set(),
    State.CANCELLED: set(),
}
TERMINAL = frozenset(state for state, moves in MOVES.items() if not moves)


class IllegalMove(Exception):
    """A job was asked to move where the table does not lead."""


class Samples:
    """Decoded audio in a memory file: 16 kHz mono float32, owned by a job and shared with workers by descriptor."""

    def __init__(self, fd: int, count: int) -> None:
        self.fd = fd
        self.count = count

    def read(self, start: int, stop: int) -> bytes:
        """The samples [start, stop) as little-endian float32 bytes; for engines that take values, not descriptors."""
        return os.pread(self.fd, (stop - start) * 4, start * 4)

    def close(self) -> None:
        """Gives the memory back; a second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@dataclass(eq=False, slots=True)
class Window:
    """A slice of a job's audio, at most 30 s, that is decoded in one piece."""

    job: Job
    index: int
    start: int  # samples
    stop: int
    frames: int  # log-mel frames given to the encoder, the silence behind the speech included
    sure_speech_s: float = WINDOW_MAX_S  # seconds of it that the detector is sure of
    speech_stop: int | None = None  # the sample behind the last sure speech; None: the window's end
    queued: bool = False
    suspect: bool = False  # was in flight when a worker died: runs alone from now on
    deaths_alone: int = 0
    # Set by the batcher when it is queued:
    cost_s: float = 0.0  # its share of a batch, in nominal engine seconds
    turn: tuple[float, int] = (0.0, 0)  # in virtual seconds, and where those are equal, by number
    light: bool = False  # of a job that is little work

    @property
    def duration_s(self) -> float:
        return (self.stop - self.start) / SAMPLE_RATE

    def same_place(self, other: Window) -> bool:
        """Whether it is the same part of the audio, for the engine too."""
        ours, theirs = (
            (one.start, one.stop, one.frames, one.sure_speech_s, one.speech_stop) for one in (self, other)
        )
        return ours == theirs


@dataclass(frozen=True, slots=True)
class Work:
    """What the client asked for, after validation."""

    model: str
    options: DecodeOptions
    row: RowOptions
    audio: dict[str, Any]
    priority: str = "normal"
    deadline_ms: int | None = None
    vad: bool | str = "auto"
    render: tuple[str, ...] = ()
    progress: bool = False


@dataclass(eq=False, slots=True)
class Job:
    """One accepted request. Times are the loop's monotonic seconds."""

    id: str
    client: Any  # the connection: where the reply goes
    request_id: str | int
    method: str
    work: Work
    arrived: float
    bytes_in: int
    state: State = State.RECEIVED
    fd: int = -1  # the input while it waits for a media worker
    samples: Samples | None = None
    duration_s: float = 0.0
    speech_s: float = 0.0
    windows: list[Window] = field(default_factory=list)
    results: list[WindowResult | None] = field(default_factory=list)
    more_to_come: bool = False  # of windows: the media worker has told some and still looks
    heard: int = 0  # windows that the media worker which has the input told so far; a second one begins anew
    handed: int = 0  # windows that were queued; the others wait for the language
    dispatched: int = 0
    finished: int = 0
    segments: list[Segment] = field(default_factory=list)  # of the first `placed` windows, in the audio's time
    placed: int = 0
    language: str | None = None  # settled: given, or detected in the first window
    language_probability: float | None = None
    digest: str = ""
    media_deaths: int = 0
    media_ms: float = 0.0
    vad_ms: float = 0.0
    prepared_at: float = 0.0  # when all windows were known
    first_dispatch: float | None = None
    warnings: list[str] = field(default_factory=list)
    timer: Any = None  # the deadline
    task: Any = None  # what carries it to the queue
    queuer: Any = None  # what queues its first windows while `task` waits for the others
    dispatcher: Any = None  # where its windows wait
    slot: Any = None  # the place of its reply

    def move(self, state: State) -> None:
        """Raises IllegalMove where the table does not lead."""
        if state not in MOVES[self.state]:
            raise IllegalMove(f"job {self.id}: {self.state.name} -> {state.name}")
        self.state = state

    @property
    def over(self) -> bool:
        return self.state in TERMINAL

    @property
    def deadline(self) -> float | None:
        """When all of it should have gone to the engine."""
        return None if self.work.deadline_ms is None else self.arrived + self.work.deadline_ms / 1000

    def close_input(self) -> None:
        """Nobody needs it once there are samples; of base64 it is the memory, too."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def release(self) -> None:
        """Gives back what the job holds: descriptors, memory, its timer."""
        self.close_input()
        if self.samples:
            self.samples.close()
        if self.timer is not None:
            self.timer.cancel()
        for task in (self.task, self.queuer):
            if task is not None and not task.done():
                task.cancel()
        self.timer = self.task = self.queuer = self.dispatcher = None

"""The sides of the comparison, each a tree of processes of its own with the same face.

A side is entered (its model is loaded and one clip was transcribed when that returns), asked, and left. All have
`burst`: clips at once, text and seconds of each back. Servers also have `connect`, for workloads in which requests
come one by one from clients of their own.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from speech_set import Clip, Started, daemon

HERE = Path(__file__).resolve().parent


class SideFailed(Exception):
    """A side could not be started or asked; the message is the reason that is reported."""


@dataclass(frozen=True)
class Flavour:
    """What is asked of each side: its own defaults, or the same options on all."""

    name: str
    daemon: Mapping[str, Any]
    library: Mapping[str, Any]
    sketch: Mapping[str, Any]


@dataclass(frozen=True)
class Setup:
    """The same for all sides: which model, where, how."""

    model: str
    folder: Path
    device: str
    compute_type: str
    settings: Mapping[str, str]  # of the daemon, beside its defaults


@dataclass(frozen=True)
class Answer:
    """`seconds` from when it was asked, or was meant to be, until the text was there; `error` instead of a text."""

    text: str
    seconds: float
    error: str | None = None


class Asker(Protocol):
    """One client's connection."""

    def begin(self, clip: Clip, **options: Any) -> Callable[[], str]:
        """Sends; what is returned waits for the text."""

    def close(self) -> None: ...


class Side(Protocol):
    name: str

    def __enter__(self) -> Side: ...
    def __exit__(self, *error: object) -> None: ...
    def pid(self) -> int: ...
    def names(self) -> dict[int, str]: ...
    def counters(self) -> dict[str, Any]: ...
    def burst(self, clips: Sequence[Clip], flavour: Flavour) -> tuple[list[Answer], float]: ...


class Server(Side, Protocol):
    def connect(self) -> Asker: ...
    def prepare(self, clips: Sequence[Clip]) -> None: ...


def ask(asker: Asker, clip: Clip, began: float, **options: Any) -> Answer:
    """One request to its end; seconds count from `began` on the performance counter."""
    try:
        text = asker.begin(clip, **options)()
    except Exception as error:  # any failure of a side is a figure of this benchmark, not its end
        return Answer("", time.perf_counter() - began, f"{type(error).__name__}: {error}")
    return Answer(text, time.perf_counter() - began)


def at_once(asker: Asker, clips: Sequence[Clip], options: Mapping[str, Any]) -> tuple[list[Answer], float]:
    """All clips over one connection, none waited for before the next is sent."""
    began = time.perf_counter()
    waiters = [asker.begin(clip, **options) for clip in clips]

    def wait(waiter: Callable[[], str]) -> Answer:
        try:
            text = waiter()
        except Exception as error:  # as in `ask`
            return Answer("", time.perf_counter() - began, f"{type(error).__name__}: {error}")
        return Answer(text, time.perf_counter() - began)

    with ThreadPoolExecutor(max(1, len(clips))) as threads:
        answers = list(threads.map(wait, waiters))
    return answers, time.perf_counter() - began


# -- the daemon -----------------------------------------------------------------------------------------------------


class DaemonAsker:
    def __init__(self, started: Started) -> None:
        self._client = started.connect()

    def begin(self, clip: Clip, **options: Any) -> Callable[[], str]:
        pending = self._client.submit(clip.path, **options)
        return lambda: pending.result().text

    def call(self, method: str) -> dict[str, Any]:
        return self._client.call(method)

    def close(self) -> None:
        self._client.close()


class Whisperd:
    """A real daemon behind its Unix socket, asked by its own client."""

    name = "whisperd"

    def __init__(self, setup: Setup, warm: Clip) -> None:
        self._setup = setup
        self._warm = warm
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Whisperd:
        with contextlib.ExitStack() as stack:
            device = {} if self._setup.device == "cpu" else {"device": self._setup.device}
            made = daemon(self._setup.model, **device, **self._setup.settings)
            self.started = stack.enter_context(made)
            self._main = DaemonAsker(self.started)
            stack.callback(self._main.close)
            self._main.begin(self._warm)()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def pid(self) -> int:
        return self.started.process.pid

    def names(self) -> dict[int, str]:
        names = {self.pid(): "supervisor"}
        numbers: dict[str, int] = {}
        for worker in self._main.call("status")["workers"]:
            kind = worker["kind"]
            numbers[kind] = numbers.get(kind, 0) + 1
            if worker.get("pid"):
                names[worker["pid"]] = f"{kind} worker {numbers[kind]}"
        return names

    def counters(self) -> dict[str, Any]:
        """Batches, rows and rows decoded again since its start."""
        found = self._main.call("metrics.current")
        overall = found.get("overall", {})
        return {"batches": overall.get("batches", 0), "rows": overall.get("rows", 0),
                "retried": dict(found.get("rows_retried", {}))}  # fmt: skip

    def connect(self) -> DaemonAsker:
        return DaemonAsker(self.started)

    def prepare(self, clips: Sequence[Clip]) -> None:
        """It takes files as they are."""

    def burst(self, clips: Sequence[Clip], flavour: Flavour) -> tuple[list[Answer], float]:
        return at_once(self._main, clips, flavour.daemon)


# -- faster-whisper in a process ------------------------------------------------------------------------------------


class InProcess:
    """faster-whisper without any server: "serial", "threads", "batched", and the sketch."""

    def __init__(self, kind: str, setup: Setup, warm: Clip) -> None:
        self.name = kind
        self._setup = setup
        self._warm = warm
        self.retried: int | None = None

    def __enter__(self) -> InProcess:
        setup = self._setup
        arguments = [self.name, str(setup.folder), setup.device, setup.compute_type]
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "inprocess.py"), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        try:
            self._read()
            if self.name != "sketch":  # which needs settings to do anything; `burst` brings them
                self._tell([self._warm], {})
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def pid(self) -> int:
        return self._process.pid

    def names(self) -> dict[int, str]:
        return {self.pid(): "faster-whisper" if self.name != "sketch" else "sketch"}

    def counters(self) -> dict[str, Any]:
        return {}

    def burst(self, clips: Sequence[Clip], flavour: Flavour) -> tuple[list[Answer], float]:
        options = flavour.library
        if self.name == "sketch":
            options = flavour.sketch
            self._tell([self._warm], options)
        found = self._tell(clips, options)
        self.retried = found.get("retried")
        return [Answer(text, seconds) for text, seconds in found["answers"]], found["seconds"]

    def _tell(self, clips: Sequence[Clip], options: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        command = {"files": [str(clip.path) for clip in clips], "options": dict(options)}
        self._process.stdin.write(json.dumps(command) + "\n")
        found = self._read()
        if "error" in found:
            raise SideFailed(f"{self.name}: {found['error']}")
        return found

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SideFailed(f"{self.name}: the process ended with {self._process.wait(10)}; see above")
        found: dict[str, Any] = json.loads(line)
        return found

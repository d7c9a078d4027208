"""`Client`: the daemon as an object with methods, for threads.

A call is a submission and a wait. Waiting is where patience is spent: a wait that runs out cancels the
request at the daemon, so that no work is done for nobody.
"""

from __future__ import annotations

import os
import queue
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import IO, Any, Generic

from whisperd.client.audio import Audio
from whisperd.client.connection import Connection, Exchange
from whisperd.client.errors import Overloaded, Timeout
from whisperd.client.link import open_link
from whisperd.client.results import DetectedLanguage, Transcript, segment_from_wire
from whisperd.client.submission import (
    DEFAULT,
    OVERLOAD_RETRIES,
    Result,
    Submission,
    deadline_after,
    out_of_time,
    seconds_to,
)
from whisperd.messages import Segment


class Pending(Generic[Result]):
    """A request under way. `result` may be asked for any number of times, from any thread."""

    def __init__(self, submission: Submission[Result]) -> None:
        self._submission = submission
        self._resending = threading.Lock()
        self._news: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.progress: tuple[float, float] | None = None  # seconds done, seconds in all; with `progress=True`
        self._exchange = self._start()

    @property
    def id(self) -> int:
        """The id of the request on its connection; another one after the daemon was overloaded."""
        return self._exchange.id

    def done(self) -> bool:
        """Whether the daemon has answered."""
        return self._exchange.future.done()

    def result(self, timeout: float | None = DEFAULT) -> Result:
        """Waits for the result; raises the daemon's error as its exception.

        After `timeout` seconds (left out: what is left of the request's own) the request is cancelled and
        Timeout raised.
        """
        deadline = self._submission.deadline if timeout is DEFAULT else deadline_after(timeout)
        while True:
            exchange = self._exchange
            try:
                return self._submission.parse(exchange.future.result(seconds_to(deadline)))
            except Timeout:
                raise
            except TimeoutError:  # the next round tells whether the reply came after all
                if self._submission.connection.give_up(exchange, out_of_time()):
                    self._submission.connection.call_off(exchange)
            except Overloaded as error:
                self._send_again(exchange, error, deadline)

    def cancel(self) -> bool:
        """Asks the daemon to stop, then `result` raises Cancelled; False where it was answered already."""
        connection = self._submission.connection
        return Pending(Submission(connection, "cancel", {"id": self.id}, _was_cancelled)).result()

    def segments(self) -> Iterator[Segment]:
        """The result's segments, each once: live with `progress=True`, what was not told at the end."""
        seen: set[int] = set()
        while (params := self._next_news()) is not None:
            segment = segment_from_wire(params["segment"])
            if segment.id not in seen:
                seen.add(segment.id)
                yield segment
        result = self.result()
        if isinstance(result, Transcript):
            yield from (segment for segment in result.segments if segment.id not in seen)

    def _next_news(self) -> dict[str, Any] | None:
        """A segment's notification, or None when the request is answered for good."""
        while (params := self._news.get()) is None:
            exchange = self._exchange
            error = exchange.future.exception() if exchange.future.done() else None
            if isinstance(error, Overloaded):
                self._send_again(exchange, error, self._submission.deadline)
            elif exchange.future.done():
                self._news.put(None)  # for whoever asks again
                return None
        return params

    def _start(self) -> Exchange:
        exchange = self._submission.send(self._listen)
        exchange.future.add_done_callback(lambda _future: self._news.put(None))
        return exchange

    def _listen(self, method: str, params: dict[str, Any]) -> None:
        if method == "transcribe.segment" and params["final"]:
            self._news.put(params)
        elif method == "transcribe.progress":
            self.progress = (params["done_s"], params["total_s"])

    def _send_again(self, exchange: Exchange, error: Overloaded, deadline: float | None) -> None:
        with self._resending:
            if exchange is self._exchange:  # else another thread that waits for this result has done it
                time.sleep(self._submission.pause_s(error, deadline))
                self._exchange = self._start()


class Client:
    """A connection to a running daemon, or a daemon of one's own. Safe to use from many threads at once.

    With `socket` it connects there. Else it connects to the daemon on the runtime directory's socket, and
    where there is none it spawns one, which ends with the client. `spawn` True or False forces the one or the
    other. `model` is sent with each request; a spawned daemon is started with it, and with `args` (more
    `whisperd serve` flags). `timeout` in seconds holds for each request; None waits for ever. `stderr` is
    where a spawned daemon's log goes, as in subprocess; left out, its last lines are kept for error messages.

    A client whose connection is lost stays lost: make a new one.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        spawn: bool | None = None,
        model: str | None = None,
        args: Sequence[str] = (),
        timeout: float | None = None,
        overload_retries: int = OVERLOAD_RETRIES,
        stderr: IO[bytes] | int | None = subprocess.PIPE,
    ) -> None:
        """Raises ConnectionLost where there is no daemon and none may be spawned."""
        self._model = model
        self._timeout = timeout
        self._retries = overload_retries
        self._connection = Connection(open_link(socket, spawn, model, args, stderr))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancels what is not answered and disconnects; a spawned daemon ends. A second call does nothing."""
        self._connection.close()

    def transcribe(self, audio: Audio, *, timeout: float | None = DEFAULT, **options: Any) -> Transcript:
        """Text with times. `audio` is a path, the bytes of a file, an open binary file or `Pcm`.

        `options` are those of the contract: language, task, timestamps, render, beam_size, … Raises the
        exceptions of `whisperd.client.errors`.
        """
        return self.submit(audio, timeout=timeout, **options).result()

    def submit(self, audio: Audio, *, timeout: float | None = DEFAULT, **options: Any) -> Pending[Transcript]:
        """Like `transcribe`, but does not wait. With `progress=True` segments can be had while they come.

        Whoever asks for the result waits out an overloaded daemon; until then the request is not sent again.
        """
        return Pending(
            Submission(
                self._connection,
                "transcribe",
                self._with_model(options),
                Transcript.from_wire,
                audio=audio,
                timeout=self._timeout if timeout is DEFAULT else timeout,
                retries=self._retries,
            )
        )

    def detect_language(
        self, audio: Audio, *, timeout: float | None = DEFAULT, **options: Any
    ) -> DetectedLanguage:
        """Which language is spoken."""
        submission = Submission(
            self._connection,
            "detect_language",
            self._with_model(options),
            DetectedLanguage.from_wire,
            audio=audio,
            timeout=self._timeout if timeout is DEFAULT else timeout,
            retries=self._retries,
        )
        return Pending(submission).result()

    def call(self, method: str, /, *, timeout: float | None = DEFAULT, **params: Any) -> dict[str, Any]:
        """Any method of the contract, with its params; returns the result object."""
        allowed = self._timeout if timeout is DEFAULT else timeout
        submission = Submission(
            self._connection, method, params, _as_it_is, timeout=allowed, retries=self._retries
        )
        return Pending(submission).result()

    def ping(self) -> dict[str, Any]:
        return self.call("ping")

    def health(self) -> dict[str, Any]:
        """Whether the daemon can do its work now, and why not."""
        return self.call("health")

    def status(self) -> dict[str, Any]:
        return self.call("status")

    def models(self) -> list[dict[str, Any]]:
        """The models that the daemon knows, with their states."""
        return list(self.call("models.list")["models"])

    def _with_model(self, options: dict[str, Any]) -> dict[str, Any]:
        return options if self._model is None else {"model": self._model, **options}


def _as_it_is(raw: dict[str, Any]) -> dict[str, Any]:
    return raw


def _was_cancelled(raw: dict[str, Any]) -> bool:
    return bool(raw["cancelled"])

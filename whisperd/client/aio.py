"""`AsyncClient`: the same daemon for asyncio.

It stands on the same connection as `Client`: a thread of its own reads, another one opens files and writes,
in the order of the calls, so that the event loop never waits for a disk or for a daemon that reads slowly.
Cancelling a task that waits for a result cancels the request at the daemon.
"""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO, Any, Generic, TypeVar

from whisperd.client.audio import Audio
from whisperd.client.connection import Connection, Exchange, Listener
from whisperd.client.errors import Cancelled, ConnectionLost, Overloaded
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

Value = TypeVar("Value")
_CLOSED = "the client is closed"


def _forget(_working: Future[Any]) -> None:
    """What is cancelled on the writing thread and leaves nothing behind."""


class AsyncPending(Generic[Result]):
    """A request under way. Cancelling one task that waits for its result cancels it for all of them."""

    def __init__(self, client: AsyncClient, submission: Submission[Result]) -> None:
        self._client = client
        self._submission = submission
        self._loop = asyncio.get_running_loop()
        self._resending = asyncio.Lock()
        self._news: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.progress: tuple[float, float] | None = None  # seconds done, seconds in all; with `progress=True`
        self._exchange: Exchange

    async def _start(self) -> None:
        self._exchange = await self._client._send(self._submission, self._listen)
        self._exchange.future.add_done_callback(lambda _future: self._tell(None))

    @property
    def id(self) -> int:
        """The id of the request on its connection; another one after the daemon was overloaded."""
        return self._exchange.id

    def done(self) -> bool:
        """Whether the daemon has answered."""
        return self._exchange.future.done()

    async def result(self, timeout: float | None = DEFAULT) -> Result:
        """Waits for the result; raises the daemon's error as its exception.

        After `timeout` seconds (left out: what is left of the request's own) the request is cancelled and
        Timeout raised.
        """
        deadline = self._submission.deadline if timeout is DEFAULT else deadline_after(timeout)
        while True:
            exchange = self._exchange
            settled = asyncio.wrap_future(exchange.future)
            try:
                answered, _ = await asyncio.wait([settled], timeout=seconds_to(deadline))
            except asyncio.CancelledError:
                settled.cancel()
                self._client._call_off(exchange, Cancelled.local("the task that waited was cancelled"))
                raise
            if not answered:
                self._client._call_off(exchange, out_of_time())
            try:
                return self._submission.parse(await settled)
            except Overloaded as error:
                await self._send_again(exchange, error, deadline)

    async def cancel(self) -> bool:
        """Asks the daemon to stop, then `result` raises Cancelled; False where it was answered already."""
        return bool((await self._client.call("cancel", id=self.id))["cancelled"])

    async def segments(self) -> AsyncIterator[Segment]:
        """The result's segments, each once: live with `progress=True`, what was not told at the end."""
        seen: set[int] = set()
        while (params := await self._next_news()) is not None:
            segment = segment_from_wire(params["segment"])
            if segment.id not in seen:
                seen.add(segment.id)
                yield segment
        result = await self.result()
        if isinstance(result, Transcript):
            for segment in result.segments:
                if segment.id not in seen:
                    yield segment

    async def _next_news(self) -> dict[str, Any] | None:
        """A segment's notification, or None when the request is answered for good."""
        while (params := await self._news.get()) is None:
            exchange = self._exchange
            error = exchange.future.exception() if exchange.future.done() else None
            if isinstance(error, Overloaded):
                await self._send_again(exchange, error, self._submission.deadline)
            elif exchange.future.done():
                self._news.put_nowait(None)  # for whoever asks again
                return None
        return params

    def _listen(self, method: str, params: dict[str, Any]) -> None:
        if method == "transcribe.segment" and params["final"]:
            self._tell(params)
        elif method == "transcribe.progress":
            self.progress = (params["done_s"], params["total_s"])

    def _tell(self, params: dict[str, Any] | None) -> None:
        """Called on the reading thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.put_nowait, params)

    async def _send_again(self, exchange: Exchange, error: Overloaded, deadline: float | None) -> None:
        async with self._resending:
            if exchange is self._exchange:  # else another task that waits for this result has done it
                await asyncio.sleep(self._submission.pause_s(error, deadline))
                await self._start()


class AsyncClient:
    """`Client` with await: the same arguments and methods. It connects or spawns when it is first used."""

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
        self._model = model
        self._timeout = timeout
        self._retries = overload_retries
        self._open_link = functools.partial(open_link, socket, spawn, model, args, stderr)
        self._connection: Connection | None = None  # written on the writing thread only
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="whisperd-client-writer")
        self._closed = False

    async def __aenter__(self) -> AsyncClient:
        """Raises ConnectionLost where there is no daemon and none may be spawned."""
        try:
            await self._in_order(self._connect)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels what is not answered and disconnects; a spawned daemon ends. A second call does nothing."""
        self._closed = True
        self._writer.shutdown(wait=False, cancel_futures=True)
        if self._connection is None:  # it may be connecting at this moment
            await asyncio.to_thread(self._writer.shutdown)
        if self._connection is not None:
            await asyncio.to_thread(self._connection.close)

    async def transcribe(
        self, audio: Audio, *, timeout: float | None = DEFAULT, **options: Any
    ) -> Transcript:
        """Text with times; see `Client.transcribe`."""
        return await (await self.submit(audio, timeout=timeout, **options)).result()

    async def submit(
        self, audio: Audio, *, timeout: float | None = DEFAULT, **options: Any
    ) -> AsyncPending[Transcript]:
        """Sends the request and does not wait for its result; see `Client.submit`."""
        params = self._with_model(options)
        return await self._submit("transcribe", params, Transcript.from_wire, audio, timeout)

    async def detect_language(
        self, audio: Audio, *, timeout: float | None = DEFAULT, **options: Any
    ) -> DetectedLanguage:
        """Which language is spoken."""
        params = self._with_model(options)
        pending = await self._submit("detect_language", params, DetectedLanguage.from_wire, audio, timeout)
        return await pending.result()

    async def call(self, method: str, /, *, timeout: float | None = DEFAULT, **params: Any) -> dict[str, Any]:
        """Any method of the contract, with its params; returns the result object."""
        return await (await self._submit(method, params, lambda raw: raw, None, timeout)).result()

    async def ping(self) -> dict[str, Any]:
        return await self.call("ping")

    async def health(self) -> dict[str, Any]:
        """Whether the daemon can do its work now, and why not."""
        return await self.call("health")

    async def status(self) -> dict[str, Any]:
        return await self.call("status")

    async def models(self) -> list[dict[str, Any]]:
        """The models that the daemon knows, with their states."""
        return list((await self.call("models.list"))["models"])

    def _with_model(self, options: dict[str, Any]) -> dict[str, Any]:
        return options if self._model is None else {"model": self._model, **options}

    async def _submit(
        self,
        method: str,
        params: dict[str, Any],
        parse: Callable[[dict[str, Any]], Result],
        audio: Audio | None,
        timeout: float | None,
    ) -> AsyncPending[Result]:
        allowed = self._timeout if timeout is DEFAULT else timeout

        def prepare() -> Submission[Result]:
            return Submission(
                self._connect(), method, params, parse, audio=audio, timeout=allowed, retries=self._retries
            )

        pending = AsyncPending(self, await self._in_order(prepare))
        await pending._start()
        return pending

    def _connect(self) -> Connection:
        """On the writing thread, where it happens once."""
        if self._connection is None:
            self._connection = Connection(self._open_link())
        return self._connection

    async def _in_order(self, work: Callable[[], Value], on_cancel: Callable[[Future[Value]], None] = _forget) -> Value:
        """Does `work` on the writing thread; `on_cancel` gets its future where nobody waits for it any more."""
        if self._closed:
            raise ConnectionLost(_CLOSED)
        working = self._writer.submit(work)
        try:
            return await asyncio.wrap_future(working)
        except asyncio.CancelledError:
            working.add_done_callback(on_cancel)
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise ConnectionLost(_CLOSED) from None  # closing emptied the queue; nobody cancelled the task
            raise

    async def _send(self, submission: Submission[Any], listener: Listener) -> Exchange:
        return await self._in_order(functools.partial(submission.send, listener), self._call_off_sent)

    def _call_off_sent(self, sending: Future[Exchange]) -> None:
        if not sending.cancelled() and sending.exception() is None:
            self._call_off(sending.result(), Cancelled.local("the task that sent it was cancelled"))

    def _call_off(self, exchange: Exchange, error: BaseException) -> None:
        """Settles the exchange at once and tells the daemon when the writing thread comes to it."""
        connection = self._connection
        if connection is not None and connection.give_up(exchange, error) and not self._closed:
            self._writer.submit(connection.call_off, exchange)

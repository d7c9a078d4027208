"""A request that can be sent again, and how long to go on trying. Shared by both clients.

A daemon that says `overloaded` is asked again after the time it names, a few times and never past the
deadline: the same request may succeed later, unchanged. Every other error is the caller's to judge.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from whisperd.client.audio import Attachment, Audio
from whisperd.client.connection import Connection, Exchange, Listener
from whisperd.client.errors import Overloaded, Timeout

OVERLOAD_RETRIES = 8  # with the daemon's own advice of up to some seconds each: about half a minute
DEFAULT: Any = object()  # an argument left out, where None means something

Result = TypeVar("Result")


class Submission(Generic[Result]):
    """All that it takes to send one request, its deadline, and what its result is in Python.

    `timeout` in seconds counts from now; None waits for ever.
    """

    def __init__(
        self,
        connection: Connection,
        method: str,
        params: Mapping[str, Any],
        parse: Callable[[dict[str, Any]], Result],
        *,
        audio: Audio | None = None,
        timeout: float | None = None,
        retries: int = OVERLOAD_RETRIES,
    ) -> None:
        self.connection = connection
        self.parse = parse
        self.deadline = deadline_after(timeout)
        self._method = method
        self._params = params
        self._retries = retries
        self._attachment = Attachment(audio, connection.passes_descriptors) if audio is not None else None

    def send(self, listener: Listener | None = None) -> Exchange:
        """Raises ConnectionLost, Timeout where nothing could be sent, AudioNotFound."""
        if self._attachment is None:
            exchange = self.connection.send(self._method, self._params, (), self.deadline, listener)
        else:
            with self._attachment.ready() as (audio, fds):
                params = {"audio": audio, **self._params}
                exchange = self.connection.send(self._method, params, fds, self.deadline, listener)
        may_retry = self._retries > 0  # as of now: who waits may be quicker to count down than the callback
        exchange.future.add_done_callback(lambda future: self._let_go(future.exception(), may_retry))
        return exchange

    def pause_s(self, error: Overloaded, deadline: float | None) -> float:
        """How long to wait before sending again; raises `error` where that is no use."""
        pause_s = (error.retry_after_ms or 0) / 1000
        left_s = seconds_to(deadline)
        if self._retries <= 0 or error.retry_after_ms is None or (left_s is not None and pause_s > left_s):
            self._let_go(error, may_retry=False)
            raise error
        self._retries -= 1
        return pause_s

    def _let_go(self, error: BaseException | None, may_retry: bool) -> None:
        """The audio is kept only for an overloaded daemon that is going to be asked again."""
        if self._attachment is not None and not (may_retry and isinstance(error, Overloaded)):
            self._attachment.close()


def out_of_time() -> Timeout:
    return Timeout("no answer in time; the request is cancelled")


def deadline_after(timeout: float | None) -> float | None:
    """Monotonic seconds."""
    return None if timeout is None else time.monotonic() + timeout


def seconds_to(deadline: float | None) -> float | None:
    """Seconds left, at least 0; None for ever."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())

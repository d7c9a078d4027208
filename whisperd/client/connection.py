"""Requests and replies over one link: ids, the table of what is open, one thread that reads.

The rule that keeps it honest: an exchange leaves the table exactly once, by whoever takes it out (its reply,
a timeout, the end of the link), and only who took it out settles its future. The reading thread never writes:
a daemon that waits for us to read must not find us waiting for it to read.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import orjson

from whisperd.client.errors import ConnectionLost, RequestFailed, Timeout
from whisperd.client.link import EXIT_GRACE_S, Link
from whisperd.framing import LineSplitter

REPLY_MAX_BYTES = 256 * 1024 * 1024  # a day of words with times is under 100 MB; more is no reply
_FAREWELL_S = 1.0  # for telling the daemon what to cancel before the link is closed

Listener = Callable[[str, dict[str, Any]], None]


class Exchange:
    """One request that was sent: its id and the future of its one terminal reply (the result object)."""

    def __init__(self, id: int, listener: Listener | None) -> None:
        self.id = id
        self.future: Future[dict[str, Any]] = Future()
        self.future.set_running_or_notify_cancel()  # only the reply settles it, never Future.cancel
        self.listener = listener
        self.line_bytes = 0


class Connection:
    """Any thread may send; one thread reads and settles."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._ids = itertools.count(1)
        self._open: dict[int, Exchange] = {}
        self._state = threading.Lock()  # guards _open and _lost; never held while blocking
        self._writing = threading.Lock()
        self._lost: str | None = None
        self._closing = False
        self._released = False
        self._reader = threading.Thread(target=self._read, name="whisperd-client-reader", daemon=True)
        self._reader.start()

    @property
    def passes_descriptors(self) -> bool:
        return self._link.passes_descriptors

    def send(
        self,
        method: str,
        params: Mapping[str, Any],
        fds: Sequence[int] = (),
        deadline: float | None = None,
        listener: Listener | None = None,
    ) -> Exchange:
        """Sends a request; `deadline` (monotonic seconds) is for the sending alone.

        `listener(method, params)` gets the request's notifications on the reading thread. Raises
        ConnectionLost, or Timeout where nothing was sent.
        """
        exchange = Exchange(next(self._ids), listener)
        line = _line({"id": exchange.id, "method": method, "params": params})
        exchange.line_bytes = len(line)
        with self._state:
            if self._lost is not None:
                raise ConnectionLost(self._lost)
            self._open[exchange.id] = exchange
        try:
            self._write(line, fds, deadline)
        except BaseException:
            self.take(exchange.id)
            raise
        return exchange

    def notify(self, method: str, params: Mapping[str, Any], deadline: float | None = None) -> None:
        """Sends a line that is not answered. Raises like `send`."""
        self._write(_line({"method": method, "params": params}), (), deadline)

    def give_up(self, exchange: Exchange, error: BaseException) -> bool:
        """Settles it with `error`, without blocking; False where its reply came first. `call_off` follows."""
        if self.take(exchange.id) is None:
            return False
        exchange.future.set_exception(error)
        return True

    def call_off(self, exchange: Exchange) -> None:
        """Tells the daemon to stop the work of an exchange that was given up, if it can be told."""
        try:
            self.notify("cancel", {"id": exchange.id}, time.monotonic() + _FAREWELL_S)
        except (ConnectionLost, Timeout):
            return  # then there is no work left to stop, or no way to say so

    def take(self, id: int) -> Exchange | None:
        """Takes an exchange out of the table; None where somebody else has."""
        with self._state:
            return self._open.pop(id, None)

    def close(self) -> None:
        """Cancels what is open and ends the link; open exchanges get Cancelled or ConnectionLost."""
        with self._state:
            if self._closing:
                return
            self._closing = True
            open_ids = list(self._open)
        deadline = time.monotonic() + _FAREWELL_S
        try:
            for id in open_ids:
                self.notify("cancel", {"id": id}, deadline)
        except (ConnectionLost, Timeout):
            pass  # the end of the link says it too
        if self._writing.acquire(timeout=_FAREWELL_S):
            with self._state:
                self._lost = self._lost or "the client is closed"
            try:
                self._link.end()
            finally:
                self._writing.release()
        else:
            self._link.kill()
        self._reader.join(2 * EXIT_GRACE_S)
        with self._writing:
            self._released = True
            self._link.release()

    def _write(self, line: bytes, fds: Sequence[int], deadline: float | None) -> None:
        wait = -1 if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._writing.acquire(timeout=wait):
            raise Timeout("other requests are still being sent")
        try:
            if self._released or self._lost is not None:
                raise ConnectionLost(self._lost or "the client is closed")
            self._link.write(line, fds, deadline)
        except ConnectionLost:
            self._link.kill()  # a line may be half sent: nothing sensible can follow it
            raise
        finally:
            self._writing.release()

    # --- the reading thread

    def _read(self) -> None:
        splitter = LineSplitter(REPLY_MAX_BYTES)
        reason = None
        try:
            while chunk := self._link.read():
                for line in splitter.feed(chunk):
                    if line.data is None:
                        raise ConnectionLost(f"the daemon sent a line of more than {REPLY_MAX_BYTES} bytes")
                    self._receive(orjson.loads(line.data))
        except Exception as error:  # whatever it is, everybody who waits is told
            reason = f"the daemon's output cannot be read: {type(error).__name__}: {error}"
            self._link.kill()
        self._end(reason)

    def _receive(self, message: dict[str, Any]) -> None:
        id = message.get("id")
        if "method" in message:
            params = message.get("params", {})
            with self._state:
                exchange = self._open.get(params.get("id"))
            if exchange is not None and exchange.listener is not None:
                exchange.listener(message["method"], params)
        elif id is None:
            self._receive_unaddressed(RequestFailed.from_wire(message.get("error", {})))
        elif exchange := self.take(id):
            if "result" in message:
                exchange.future.set_result(message["result"])
            else:
                exchange.future.set_exception(RequestFailed.from_wire(message["error"]))

    def _receive_unaddressed(self, error: RequestFailed) -> None:
        """An error without id. Of a line that was too long the daemon saw no id; it was the longest open one.

        Anything else means that a line of ours was not understood, and one request would wait for ever.
        """
        with self._state:
            longest = max(self._open.values(), key=lambda exchange: exchange.line_bytes, default=None)
        if error.kind != "line_too_long" or longest is None:
            raise ConnectionLost(f"it refused a line that it could not attribute ({error})")
        if self.take(longest.id):
            longest.future.set_exception(error)

    def _end(self, reason: str | None) -> None:
        if reason is None:
            reason = "the client was closed" if self._closing else self._link.epitaph()
        with self._state:
            self._lost = reason
            orphans, self._open = list(self._open.values()), {}
        for exchange in orphans:
            exchange.future.set_exception(ConnectionLost(reason))


def _line(message: dict[str, Any]) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", **message}, option=orjson.OPT_APPEND_NEWLINE)

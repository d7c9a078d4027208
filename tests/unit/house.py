"""A whole service in this process, for tests: fake media and engines, and clients whose side is a list of messages.

Nothing sleeps: who waits here waits for a message, and gives up at a deadline.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any, Self

from whisperd.admission import ALL_ROLES, Peer
from whisperd.config import FIELDS, Config, Loaded
from whisperd.control import Control
from whisperd.framing import Line
from whisperd.jobs import Job, Window, Work
from whisperd.messages import SAMPLE_RATE, DecodeOptions, RowOptions
from whisperd.service import Service
from whisperd.session import Session
from whisperd.testing import FakeEngine, FakeMedia

Json = dict[str, Any]
DEADLINE_S = 20.0
BYTES_PER_SECOND = 32_000  # of fake audio


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Runs an async test on a loop of its own; what hangs fails."""

    async def main() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await test()

    asyncio.run(main())


async def settle(turns: int = 20) -> None:
    """Lets everything happen that waits for nothing outside."""
    for _ in range(turns):
        await asyncio.sleep(0)


def make_job(
    name: str = "a",
    lengths_s: tuple[float, ...] = (3.0,),
    *,
    client: Any = "client",
    priority: str = "normal",
    frames: int = 1000,
    options: DecodeOptions | None = None,
    task: str = "transcribe",
    state: Any = None,
    deadline_ms: int | None = None,
) -> Job:
    """A job with windows of these lengths, as the pipeline would queue it."""
    row = RowOptions(task=task)
    work = Work("fake", options or DecodeOptions(), row, {}, priority=priority, deadline_ms=deadline_ms)
    job = Job(name, client, name, "transcribe", work, arrived=0.0, bytes_in=1, digest=name)
    if state is not None:
        job.state = state
    start = 0
    for index, length_s in enumerate(lengths_s):
        stop = start + int(length_s * SAMPLE_RATE)
        job.windows.append(Window(job, index, start, stop, frames))
        start = stop
    job.results = [None] * len(job.windows)
    return job


def audio(seconds: float = 1.0, mark: str = "") -> bytes:
    """Fake audio of so many seconds that begins with a mark."""
    return mark.encode().ljust(max(1, int(seconds * BYTES_PER_SECOND)), b".")


def as_data(content: bytes) -> Json:
    """The audio parameter for these bytes."""
    return {"data": base64.b64encode(content).decode()}


class MemoryLink:
    """The transport of a client in this process: what is written becomes messages in a list."""

    def __init__(self) -> None:
        self.messages: list[Json] = []
        self.unread = 0  # bytes that the client is said not to have read
        self.paused = False
        self.closed = False
        self.aborted = False
        self.on_abort: Callable[[], None] = lambda: None
        self.news = asyncio.Event()

    def write(self, line: bytes) -> None:
        """Takes one line, as the wire would."""
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        if not self.closed:
            self.messages.append(json.loads(line))
            self.news.set()

    def buffered(self) -> int:
        return self.unread

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        """As with the real ones, the owner hears of it, once."""
        if not self.aborted:
            self.closed = self.aborted = True
            self.on_abort()

    async def flushed(self) -> None:
        """Nothing is ever held back."""


class Client:
    """One connection to the service."""

    def __init__(self, service: Service, **session: Any) -> None:
        uid = session.pop("uid", 1000)
        roles = frozenset(session.pop("roles", ALL_ROLES))
        same_user = session.pop("same_user", True)
        self.link = MemoryLink()
        peer = Peer(f"uid {uid}", None if session.get("stdio") else uid, 1, roles, same_user)
        self.session = Session(peer, self.link, service, **session)
        self.link.on_abort = self.session.lost
        self._numbers = 0
        service.add_session(self.session)

    def line(self, data: bytes, fds: list[int] | None = None) -> None:
        """Sends one line as it is."""
        self.session.received(Line(data, fds or []))

    def send(self, method: str, own_id: Any = None, *, fds: list[int] | None = None, **params: Any) -> Any:
        """Sends a request and gives its id."""
        id = own_id
        if id is None:
            self._numbers += 1
            id = f"r{self._numbers}"
        self.line(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode(), fds)
        return id

    def notify(self, method: str, **params: Any) -> None:
        """Sends a notification."""
        self.line(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode())

    def transcribe(self, content: bytes | None = None, own_id: Any = None, **params: Any) -> Any:
        """Sends a request for these bytes (a second of audio by default) and gives its id."""
        return self.send("transcribe", own_id, audio=as_data(audio() if content is None else content), **params)

    @property
    def replies(self) -> list[Json]:
        """The terminal replies so far, in their order."""
        return [message for message in self.link.messages if "method" not in message]

    def notifications(self, method: str) -> list[Json]:
        """The params of the notifications of this kind."""
        return [message["params"] for message in self.link.messages if message.get("method") == method]

    async def reply(self, id: Any) -> Json:
        """The one reply with this id, now or later."""
        while True:
            for reply in self.replies:
                if reply["id"] == id and type(reply["id"]) is type(id):
                    return reply
            self.link.news.clear()
            await self.link.news.wait()

    async def result(self, id: Any) -> Json:
        """The result of a request that must succeed."""
        reply = await self.reply(id)
        assert "result" in reply, reply
        return reply["result"]

    async def error(self, id: Any) -> Json:
        """The error of a request that must fail, as its data with the message."""
        reply = await self.reply(id)
        assert "error" in reply, reply
        return {**reply["error"]["data"], "message": reply["error"]["message"]}

    async def call(self, method: str, **params: Any) -> Json:
        """A request and its result."""
        return await self.result(self.send(method, **params))

    async def refusal(self, method: str, **params: Any) -> Json:
        """A request and its error."""
        return await self.error(self.send(method, **params))


class House:
    """The service with its parts. `engines` holds every engine that was made, by model name, in order."""

    def __init__(self, make: Callable[[str], FakeEngine] | None = None, **settings: Any) -> None:
        self.config = Config(**{"model": "fake", "window_s": 1.0, **settings})
        self.engines: dict[str, list[FakeEngine]] = {}
        self._make = make or (lambda name: FakeEngine(name))
        self.stops = 0

    def _make_engine(self, name: str) -> FakeEngine:
        engine = self._make(name)
        self.engines.setdefault(name, []).append(engine)
        return engine

    @property
    def engine(self) -> FakeEngine:
        """The latest engine of the default model."""
        return self.engines["fake"][-1]

    def _stop(self) -> None:
        self.stops += 1

    async def __aenter__(self) -> Self:
        self.media = FakeMedia()
        self.service = Service(self.config, self.media, self._make_engine, None)
        settings = Loaded(self.config, dict.fromkeys(FIELDS, "default"))
        self.service.handlers.update(Control(self.service, settings, self._stop).handlers())
        self.service.fleet.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.service.fleet.stop()

    def client(self, **session: Any) -> Client:
        """A new connection, over a socket unless `stdio` says otherwise."""
        return Client(self.service, **session)

    async def loaded(self, name: str = "fake") -> FakeEngine:
        """Loads a model and gives its engine."""
        await self.service.fleet.ready(name)
        return self.engines[name][-1]

    def in_order(self) -> None:
        """Nothing is owed, held or counted any more."""
        service = self.service
        assert service.jobs == {}
        assert (service.admission.jobs, service.admission.bytes, service.admission.by_client) == (0, 0, {})
        assert service.fleet.queued() == 0
        assert service.quiet
        assert service.pipeline._prepared_s == 0.0
        assert all(session.open_slots == 0 and not session.jobs for session in service.sessions)

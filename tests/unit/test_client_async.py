"""The asyncio client against a stand-in daemon over real sockets."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from standin import Connection, Json, echo, standing_in

from whisperd.client import (
    AsyncClient,
    AudioNotFound,
    AudioUnreadable,
    Cancelled,
    ConnectionLost,
    Overloaded,
    Pcm,
    Timeout,
)


@pytest.fixture
def path() -> Iterator[Path]:
    """A socket's path; short, because the kernel allows 107 characters."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "d.sock"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """An "audio" file whose bytes the stand-in takes for speech."""
    file = tmp_path / "clip.flac"
    file.write_bytes(b"Hello there. How are you.")
    return file


def silent(connection: Connection, request: Json, audio: bytes) -> None:
    """A daemon that never answers."""


def test_transcribe_returns_a_typed_transcript(path: Path, clip: Path) -> None:
    """The same result as from the other client, by descriptor."""

    async def main() -> None:
        async with AsyncClient(path) as client:
            assert (await client.transcribe(clip, language="en")).text == "Hello there. How are you."
            assert (await client.ping())["pong"] is True

    with standing_in(path) as daemon:
        asyncio.run(main())
    assert daemon.requests[0]["params"] == {"audio": {"fd": 0}, "language": "en"}


def test_many_tasks_share_one_client(path: Path) -> None:
    """Answers in any order reach the task that asked."""
    held: list[tuple[Json, bytes]] = []

    def shuffle(connection: Connection, request: Json, audio: bytes) -> None:
        held.append((request, audio))
        if len(held) == 100:
            for waiting, text in reversed(held):
                connection.reply(waiting, text.decode())

    async def main() -> None:
        texts = [f"clip {i}" for i in range(100)]
        async with AsyncClient(path) as client:
            results = await asyncio.gather(*(client.transcribe(text.encode()) for text in texts))
        assert [result.text for result in results] == texts

    with standing_in(path, shuffle):
        asyncio.run(main())


def test_errors_are_typed(path: Path, clip: Path) -> None:
    """The daemon's, and those found on this side."""

    async def main() -> None:
        async with AsyncClient(path) as client:
            with pytest.raises(AudioUnreadable):
                await client.transcribe(clip)
            with pytest.raises(AudioNotFound):
                await client.transcribe("/missing.wav")

    with standing_in(path, lambda c, r, a: c.fail(r, "audio_unreadable")):
        asyncio.run(main())


def test_no_daemon_is_connection_lost(path: Path) -> None:
    """On entering the context, or at the first call without one."""

    async def main() -> None:
        with pytest.raises(ConnectionLost):
            async with AsyncClient(path):
                pass
        client = AsyncClient(path)
        with pytest.raises(ConnectionLost):
            await client.ping()
        await client.close()
        with pytest.raises(ConnectionLost, match="closed"):
            await client.ping()

    asyncio.run(main())


def test_a_cancelled_task_cancels_its_request(path: Path, clip: Path) -> None:
    """No work is done for a task that is gone."""

    async def main() -> None:
        async with AsyncClient(path) as client:
            pending = await client.submit(clip)
            task = asyncio.create_task(pending.result())
            await client.ping()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(Cancelled):
                await pending.result()
            assert await asyncio.to_thread(daemon.connections[0].cancelled.wait, 30)
            assert daemon.requests[-1]["params"] == {"id": pending.id}

    with standing_in(path, silent) as daemon:
        asyncio.run(main())


def test_a_timeout_cancels_the_request_at_the_daemon(path: Path, clip: Path) -> None:
    """Both the client's and the one of a single wait."""

    async def main() -> None:
        async with AsyncClient(path, timeout=0.05) as client:
            with pytest.raises(Timeout):
                await client.transcribe(clip)
            assert await asyncio.to_thread(daemon.connections[0].cancelled.wait, 30)
            pending = await client.submit(clip, timeout=None)
            for _ in range(2):
                with pytest.raises(Timeout):
                    await pending.result(0.01)

    with standing_in(path, silent) as daemon:
        asyncio.run(main())


def test_a_result_that_is_there_needs_no_time(path: Path, clip: Path) -> None:
    """A wait of zero seconds is a question, not a failure."""

    async def main() -> None:
        async with AsyncClient(path) as client:
            pending = await client.submit(clip)
            await pending.result()
            assert pending.done()
            assert (await pending.result(0)).text == "Hello there. How are you."

    with standing_in(path):
        asyncio.run(main())


def test_the_loop_goes_on_while_the_daemon_reads_nothing(path: Path) -> None:
    """A blocked write holds up neither other tasks nor closing."""
    first_came, gate = threading.Event(), threading.Event()

    def stop_reading(connection: Connection, request: Json, audio: bytes) -> None:
        first_came.set()
        gate.wait(60)

    async def main() -> None:
        async with AsyncClient(path) as client:
            await client.submit(b"first")
            stuck = asyncio.create_task(client.transcribe(Pcm(b"\0" * 4_000_000)))
            assert await asyncio.to_thread(first_came.wait, 30)
            assert not stuck.done()
        with pytest.raises(ConnectionLost):
            await stuck
        late = asyncio.create_task(client.ping())
        with pytest.raises(ConnectionLost, match="closed"):
            await late
        gate.set()

    with standing_in(path, stop_reading):
        asyncio.run(main())


def test_cancel_ends_a_request_with_cancelled(path: Path, clip: Path) -> None:
    """The daemon says whether there was anything to cancel."""

    async def main() -> None:
        async with AsyncClient(path) as client:
            pending = await client.submit(clip)
            assert await pending.cancel() is True
            with pytest.raises(Cancelled):
                await pending.result()

    with standing_in(path, silent):
        asyncio.run(main())


def test_live_segments_come_before_the_result_and_each_once(path: Path, clip: Path) -> None:
    """What the daemon dropped is filled in from the result."""
    seen = threading.Event()

    def tell(connection: Connection, request: Json, audio: bytes) -> None:
        connection.tell_segment(request, 0, "One.")
        assert seen.wait(30)
        connection.reply(request, "One. Two. Three.")

    async def main() -> None:
        texts = []
        async with AsyncClient(path) as client:
            pending = await client.submit(clip, progress=True)
            async for segment in pending.segments():
                texts.append(segment.text)
                seen.set()
            assert [segment.text async for segment in pending.segments()] == texts
        assert texts == ["One.", "Two.", "Three."]

    with standing_in(path, tell):
        asyncio.run(main())


def test_an_overloaded_daemon_is_asked_again_but_not_for_ever(path: Path, clip: Path) -> None:
    """With the same audio; also when somebody iterates over segments."""

    def busy_twice(connection: Connection, request: Json, audio: bytes) -> None:
        if len(connection.requests) % 3:
            connection.fail(request, "overloaded", retry_after_ms=1)
        else:
            echo(connection, request, audio)

    async def main() -> None:
        async with AsyncClient(path) as client:
            assert (await client.transcribe(clip)).text == "Hello there. How are you."
            pending = await client.submit(clip.read_bytes())
            texts = [segment.text async for segment in pending.segments()]
            assert texts == ["Hello there.", "How are you."]
        async with AsyncClient(path, overload_retries=1) as client:
            with pytest.raises(Overloaded):
                await client.transcribe(clip)

    with standing_in(path, busy_twice):
        asyncio.run(main())

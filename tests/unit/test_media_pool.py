"""The line before the media workers, with real processes that do as their input says: no seat is ever lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from house import run

from whisperd.errors import WhisperdError
from whisperd.media.pool import MediaPool, Part, Prepared
from whisperd.worker import Worker, WorkerLost

ANSWER = {
    "event": "prepared",
    "speech_s": 1.0,
    "windows": [[0, 16_000]],
    "sure_speech_s": [1.0],
    "speech_stop": [16_000],
    "media_ms": 1.0,
    "vad_ms": 1.0,
    "warnings": [],
}
PART = {"event": "windows", "windows": [[0, 8_000]], "sure_speech_s": [0.5], "speech_stop": [8_000]}
REST = {**ANSWER, "windows": [[8_000, 16_000]]}
SAMPLES = {"count": 16_000}
GOOD = [["ask"], ["samples", ANSWER, SAMPLES]]
FAILED = {"event": "failed", "kind": "audio_unreadable", "message": "told so"}
HELD = [["ask"], ["beat"]]

pytestmark = pytest.mark.usefixtures("standin")


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in can be started as a module."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@contextlib.asynccontextmanager
async def pool(count: int = 1, **settings: Any) -> AsyncIterator[MediaPool]:
    """A running pool of stand-ins."""
    limits = {"hang_timeout_s": 10.0, "decode_timeout_s": 10.0, "module": "standin_media"} | settings
    made = MediaPool(count, **limits)
    made.start()
    try:
        yield made
    finally:
        await made.stop()


def prepare(
    media: MediaPool,
    steps: list[Any],
    on_digest: Callable[[str], None] = lambda _digest: None,
    on_part: Callable[[Part], None] = Part.close,
    **more: Any,
) -> Coroutine[Any, Any, Prepared]:
    """One input whose worker takes these steps."""
    job = str(id(steps))
    request = {"op": "prepare", "job": job, "window_s": 30.0, "max_audio_s": 60.0, "first_only": False, **more}

    async def give() -> Prepared:
        fd = os.memfd_create("test-input")
        try:
            os.write(fd, json.dumps(steps).encode())
            return await media.prepare(request, fd, "normal", on_digest, on_part)
        finally:
            os.close(fd)

    return give()


async def works(media: MediaPool) -> None:
    """The pool answers another input."""
    prepared = await prepare(media, GOOD)
    assert [(one.start, one.stop) for one in prepared.windows] == [(0, 16_000)]
    prepared.close()


def memory_files() -> int:
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            count += str(link.readlink()).startswith("/memfd:test-")
    return count


@pytest.mark.parametrize(
    "steps",
    [
        [["say", {"event": "failed", "kind": "no_such_kind", "message": "x"}]],
        [["say", {}]],
        [["say", {"event": "prepared"}]],
        [["say", {"event": "beat", "job": "another"}]],
        [["say", {"event": "dropped"}]],
        [["ask"], ["ask"]],
        [["samples", {**ANSWER, "windows": [[0, 16_001]]}, SAMPLES]],
        [["samples", ANSWER, {"count": 16_000, "sealed": False}]],
        [["samples", {"event": "beat", "job": "another"}, SAMPLES]],
        [["samples", PART | {"windows": [[0, 16_001]]}, SAMPLES]],
        [["samples", PART, SAMPLES], ["say", PART]],
        [["samples", PART, SAMPLES], ["samples", ANSWER, SAMPLES]],
    ],
)
def test_a_worker_that_talks_nonsense_is_replaced_and_leaks_nothing(steps: list[Any]) -> None:
    """Its input is told that the worker was lost; the seat is free for the next one."""

    async def test() -> None:
        async with pool() as media:
            before = memory_files()
            with pytest.raises(WorkerLost, match="it sent"):
                await prepare(media, steps)
            assert memory_files() == before
            assert media.workers[0].restarts == 1
            await works(media)

    run(test)


def test_the_second_worker_starts_when_it_is_wanted_or_when_there_is_time() -> None:
    """One that starts beside the first would only make the first reply later."""

    async def test() -> None:
        async with pool(count=2) as media:
            await works(media)
            assert [worker.pid is not None for worker in media.workers] == [True, False]
            held = asyncio.ensure_future(prepare(media, HELD))
            await works(media)
            assert all(worker.pid for worker in media.workers)
            held.cancel()
        async with pool(count=2) as media:
            media.start_others()
            assert all(worker.pid for worker in media.workers)

    run(test)


def test_windows_of_long_audio_come_before_the_end() -> None:
    """With the samples, which are whoever's who hears of them; the end has the rest."""

    async def test() -> None:
        heard: list[Part] = []
        async with pool() as media:
            steps = [["ask"], ["samples", PART, SAMPLES], ["say", REST]]
            prepared = await prepare(media, steps, on_part=heard.append)
            assert [[one.start for one in part.windows] for part in heard] == [[0]]
            assert prepared.samples is None
            assert [one.start for one in prepared.windows] == [8_000]
            heard[0].close()
            await works(media)

    run(test)


def test_windows_for_a_job_that_is_over_are_given_back() -> None:
    """Nobody hears of them, and their samples are closed."""

    async def test() -> None:
        async with pool() as media:
            before, loop = memory_files(), asyncio.get_running_loop()
            steps = [["ask"], ["samples", PART, SAMPLES], ["say", REST]]
            waits = loop.create_task(prepare(media, steps, lambda _digest: loop.call_soon(waits.cancel)))
            with pytest.raises(asyncio.CancelledError):
                await waits
            await works(media)
            assert memory_files() == before
            assert media.workers[0].restarts == 0

    run(test)


def test_what_cannot_be_taken_of_a_part_is_the_answer() -> None:
    """The worker goes on with the next input."""

    async def test() -> None:
        def refuse(part: Part) -> None:
            part.close()
            raise WhisperdError("worker_lost", "other windows")

        async with pool() as media:
            with pytest.raises(WhisperdError, match="other windows"):
                await prepare(media, [["ask"], ["samples", PART, SAMPLES], ["say", REST]], on_part=refuse)
            await works(media)

    run(test)


def test_an_input_whose_part_could_not_be_taken_does_not_keep_its_worker() -> None:
    """Nobody waits for the rest: as if it had been cancelled."""

    async def test() -> None:
        def refuse(part: Part) -> None:
            part.close()
            raise WhisperdError("worker_lost", "other windows")

        async with pool(abandoned_grace_s=0.1, decode_timeout_s=3600.0) as media:
            with pytest.raises(WhisperdError, match="other windows"):
                await prepare(media, [["ask"], ["samples", PART, SAMPLES], ["beat"]], on_part=refuse)
            await works(media)
            assert (media.workers[0].restarts, media.workers[0]._crashes) == (1, 0)

    run(test)


def test_an_input_that_cannot_be_sent_leaves_the_seat_free() -> None:
    """A descriptor that cannot be copied, as when there are none left."""

    async def test() -> None:
        async with pool() as media:
            await works(media)
            with pytest.raises(OSError, match="descriptor"):
                await media.prepare({"op": "prepare", "job": "1"}, -1, "normal", lambda _: None, lambda _: None)
            assert not media.busy(media.workers[0])
            await works(media)

    run(test)


def test_an_input_that_was_never_sent_waits_for_the_next_worker() -> None:
    """The seat was given to it, and the worker died before it could be used: that is no death of this input."""

    async def test() -> None:
        async with pool() as media:
            # Both messages come at once: the first frees the seat for who waits, the second ends the worker.
            first = asyncio.create_task(prepare(media, [["say", FAILED, {"event": "beat"}]]))
            second = asyncio.create_task(prepare(media, GOOD))
            with pytest.raises(WhisperdError, match="told so"):
                await first
            (await second).close()
            assert media.workers[0].restarts == 1

    run(test)


def test_an_answer_lost_for_want_of_descriptors_is_asked_for_again() -> None:
    """The samples came and could not be taken: that is no death of this input either."""
    old = resource.getrlimit(resource.RLIMIT_NOFILE)

    def use_up(_digest: str) -> None:
        free = os.dup(0)
        os.close(free)
        if media_workers[0].restarts == 0:
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, old[1]))

    media_workers: list[Worker] = []

    async def test() -> None:
        async with pool() as media:
            media_workers.extend(media.workers)
            task = asyncio.create_task(prepare(media, GOOD, use_up))
            while not media.workers[0].restarts:
                await asyncio.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_NOFILE, old)
            (await task).close()

    try:
        run(test)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)


def test_the_limit_on_decoding_ends_the_worker() -> None:
    """Although it gives signs of life; a slow input is no crash of it."""

    async def test() -> None:
        async with pool(decode_timeout_s=0.2) as media:
            with pytest.raises(WhisperdError) as caught:
                await prepare(media, HELD)
            assert caught.value.kind == "audio_too_long"
            assert media.workers[0]._crashes == 0
            assert not media.busy(media.workers[0])

    run(test)


def test_an_input_without_a_job_does_not_keep_its_worker() -> None:
    """Cancelled while it is decoded: after a short grace the worker is replaced, and that is no crash."""

    async def test() -> None:
        async with pool(abandoned_grace_s=0.1, decode_timeout_s=3600.0) as media:
            asked = asyncio.Event()
            task = asyncio.create_task(prepare(media, HELD, lambda _digest: asked.set()))
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert media.busy(media.workers[0])
            await works(media)
            assert (media.workers[0].restarts, media.workers[0]._crashes) == (1, 0)

    run(test)


def test_a_worker_that_answers_within_the_grace_is_kept() -> None:
    """The answer finds nobody and its memory is given back."""

    async def test() -> None:
        async with pool(abandoned_grace_s=3600.0) as media:
            before = memory_files()
            task = asyncio.create_task(prepare(media, GOOD, lambda _digest: soon()))

            def soon() -> None:
                asyncio.get_running_loop().call_soon(task.cancel)  # behind the word to go on

            with pytest.raises(asyncio.CancelledError):
                await task
            await works(media)
            assert (media.workers[0].restarts, memory_files()) == (0, before)

    run(test)


def test_content_whose_job_ends_at_its_digest_is_not_decoded() -> None:
    """As content that is known as deadly: the worker lives on."""

    async def test() -> None:
        async with pool(abandoned_grace_s=3600.0) as media:
            heard: list[str] = []

            def end(digest: str) -> None:
                heard.append(digest)
                task.cancel()

            task = asyncio.create_task(prepare(media, [["ask"], ["die"]], end))
            with pytest.raises(asyncio.CancelledError):
                await task
            await works(media)
            assert (heard, media.workers[0].restarts) == (["0" * 32], 0)

    run(test)


def test_a_digest_that_nobody_can_take_fails_only_its_job() -> None:
    """A fault of ours: the input is dropped, the worker lives on."""

    async def test() -> None:
        def refuse(_digest: str) -> None:
            raise LookupError("a fault of ours")

        async with pool() as media:
            with pytest.raises(LookupError):
                await prepare(media, [["ask"], ["die"]], refuse)
            await works(media)
            assert media.workers[0].restarts == 0

    run(test)


def test_who_gives_up_in_the_line_holds_nobody_up() -> None:
    """Cancelled while it waits, and in the moment that it is given a seat."""

    async def test() -> None:
        async with pool() as media:
            tasks = [asyncio.create_task(prepare(media, GOOD)) for _ in range(3)]
            await asyncio.sleep(0)
            tasks[1].cancel()
            tasks[0].add_done_callback(lambda _task: tasks[2].cancel())
            (await tasks[0]).close()
            await asyncio.wait(tasks)
            if not tasks[2].cancelled():
                tasks[2].result().close()
            await works(media)

    run(test)


def test_a_worker_that_did_not_start_is_tried_again_while_others_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The one that works is held, and the line is not empty when somebody comes: they are answered all the same."""
    monkeypatch.setenv("STANDIN_STARTS", str(tmp_path / "starts"))
    monkeypatch.setenv("STANDIN_FAILS", "2")

    async def test() -> None:
        async with pool(2, start_again_s=0.0) as media:
            held = asyncio.create_task(prepare(media, HELD))
            waits = asyncio.create_task(prepare(media, GOOD))
            while [worker.state for worker in media.workers].count("failed") != 1 or not any(
                media.busy(worker) for worker in media.workers
            ):
                await asyncio.sleep(0.01)
            await works(media)
            (await waits).close()
            held.cancel()
            await asyncio.wait([held])

    run(test)


def test_workers_that_do_not_start_are_not_tried_for_every_input(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who comes meanwhile is told at once."""
    monkeypatch.setenv("STANDIN_STARTS", str(tmp_path / "starts"))
    monkeypatch.setenv("STANDIN_FAILS", "1 2")

    async def test() -> None:
        async with pool(2, start_again_s=3600.0) as media:
            for _ in range(3):
                with pytest.raises(WhisperdError, match="told not to start") as caught:
                    await prepare(media, GOOD)
                assert caught.value.kind == "worker_lost"
        assert (tmp_path / "starts").read_text() == "start\n" * 2

    run(test)

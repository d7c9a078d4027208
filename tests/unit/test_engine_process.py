"""The supervisor's side of an inference worker, with a real process that says what the test wants: nothing waits for
ever, and a shortage of our own is nobody's death."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from house import make_job, run

from whisperd.child import Program, start_child
from whisperd.inference.process import BatchFailed, EngineSettings, WorkerEngine, _introduction
from whisperd.jobs import Samples, Window
from whisperd.messages import WindowResult
from whisperd.worker import NotSent, WorkerLost

GOOD = [["row", 1], ["row", 0], ["done"]]


@pytest.fixture(autouse=True)
def standin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in can be started as a module."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@contextlib.asynccontextmanager
async def engine(hang_timeout_s: float = 15.0) -> AsyncIterator[WorkerEngine]:
    """A stand-in that is ready."""
    made = WorkerEngine(Path("model"), EngineSettings("cpu", "int8", 2, 1, hang_timeout_s, 0))
    made.worker.program = Program("standin_engine", {})
    made.start()
    await ready(made)
    try:
        yield made
    finally:
        await made.drain()


async def ready(made: WorkerEngine) -> None:
    """Waits until it takes work."""
    news = asyncio.Event()
    made.changed = news.set
    while not made.capacity():
        news.clear()
        await news.wait()


@contextlib.contextmanager
def windows(*steps: Any) -> Iterator[list[Window]]:
    """Two windows of a job whose samples tell the stand-in what to do."""
    job = make_job("a", (1.0, 1.0))
    script = json.dumps(list(steps)).encode()
    job.samples = Samples(os.memfd_create("test-steps"), 32_000)
    os.write(job.samples.fd, script)
    try:
        yield job.windows
    finally:
        job.samples.close()


async def works(made: WorkerEngine) -> None:
    """It, or its successor, answers another batch."""
    await ready(made)
    with windows(*GOOD) as both:
        results = await made.submit(both)
    assert [result.language_probability for result in results] == [0.0, 0.1]
    assert made.in_flight() == 0


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process gets no further ones."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_that_was_started_early_is_taken_once() -> None:
    """The first start finds it; whoever follows it is a new one. One that nobody takes can be ended."""

    async def test() -> None:
        program = Program("standin_engine", {})
        early, spare = start_child(program), start_child(program)
        made = WorkerEngine(Path("model"), EngineSettings("cpu", "int8", 2, 1, 15.0, 0))
        made.worker.program = program
        made.worker.adopt(early)
        made.start()
        await ready(made)
        assert made.worker.pid == early.process.pid
        made.worker.kill("a test")
        await ready(made)
        assert made.worker.pid not in (None, early.process.pid, spare.process.pid)
        await made.drain()
        spare.end()
        assert spare.process.returncode is not None

    run(test)


def test_results_come_in_the_order_of_the_rows() -> None:
    """In whatever order the worker sent them."""

    async def test() -> None:
        async with engine() as made:
            await works(made)
            assert made.worker.restarts == 0

    run(test)


def test_a_batch_that_is_done_without_all_its_rows_has_failed() -> None:
    """Nobody waits for the missing one, the lane is free again, and the worker lives."""

    async def test() -> None:
        async with engine() as made:
            with windows(["row", 1], ["done"]) as both, pytest.raises(BatchFailed, match=r"left out rows \[0\]"):
                await made.submit(both)
            await works(made)
            assert made.worker.restarts == 0

    run(test)


@pytest.mark.parametrize(
    "message",
    [
        {"event": "row", "row": 0},
        {"event": "row", "row": 0, "result": None},
        {"event": "row", "row": 0, "result": {**WindowResult((), "en", 1.0).to_wire(), "segments": [{}]}},
        {"event": "row", "row": "first", "result": WindowResult((), "en", 1.0).to_wire()},
        {"event": "done", "batch": "mine"},
        {"event": "done", "batch": [1]},
        {},
    ],
)
def test_a_worker_that_makes_no_sense_is_replaced_and_its_batches_are_lost(message: dict[str, Any]) -> None:
    """They are tried again like those of any worker that died."""

    async def test() -> None:
        async with engine() as made:
            with windows(["say", message], ["hang"]) as both, pytest.raises(WorkerLost, match="makes no sense"):
                await made.submit(both)
            await works(made)
            assert made.worker.restarts == 1

    run(test)


@pytest.mark.parametrize(
    "change",
    [{"lanes": 0}, {"lanes": None}, {"express": -1}, {"scale": 0}, {"scale": "inf"}, {"languages": 1}],
)
def test_a_greeting_that_would_wedge_the_engine_is_refused(change: dict[str, Any]) -> None:
    """Without lanes nothing would ever be handed out."""
    good = {"multilingual": True, "languages": ["en"], "lanes": 2, "express": 1, "scale": 1.0}
    assert _introduction(good)[1:] == (2, 1, 1.0)
    with pytest.raises((TypeError, ValueError)):
        _introduction(good | change)


def test_a_lane_that_hangs_is_noticed_beside_one_that_works() -> None:
    """Each batch has a clock of its own, so that a busy neighbour's signs of life do not count for it."""

    async def test() -> None:
        async with engine(hang_timeout_s=0.5) as made:
            with windows(["beat"]) as busy, windows(["hang"]) as hung:
                outcomes = await asyncio.gather(made.submit(busy), made.submit(hung), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [WorkerLost, WorkerLost]
            assert "no sign of life" in str(outcomes[1])
            await works(made)

    run(test)


def test_a_batch_in_hand_dies_with_the_worker() -> None:
    """That is a death, which the dispatcher counts."""

    async def test() -> None:
        async with engine() as made:
            with windows(["die"]) as both, pytest.raises(WorkerLost) as caught:
                await made.submit(both)
            assert not isinstance(caught.value, NotSent)
            await works(made)

    run(test)


def test_a_batch_for_a_worker_that_is_not_there_was_not_sent() -> None:
    """It died between two turns of the loop: that is no death of this batch."""

    async def test() -> None:
        async with engine() as made:
            made.worker.kill("told so")
            with windows(*GOOD) as both, pytest.raises(NotSent, match="restarting"):
                await made.submit(both)
            await works(made)

    run(test)


def test_a_batch_that_there_were_no_descriptors_for_was_not_sent() -> None:
    """The worker is not to blame and lives on."""

    async def test() -> None:
        async with engine() as made:
            with windows(*GOOD) as both, no_descriptors(), pytest.raises(NotSent, match="lacks resources"):
                await made.submit(both)
            assert made.in_flight() == 0
            await works(made)
            assert made.worker.restarts == 0

    run(test)

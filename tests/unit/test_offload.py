"""Calls that may hang: bunched, answered together, and none waits for a neighbour that hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from house import run

from whisperd.offload import Offload


def offload(threads: int = 4, timeout_s: float = 30.0) -> Offload:
    """One with threads of its own."""
    return Offload(threads, timeout_s, "test-offload")


async def until(happened: Callable[[], bool]) -> None:
    """Turns of the loop until then; whoever runs the test has a deadline."""
    while not happened():
        await asyncio.sleep(0)


def calls(beside: Offload, works: list[Callable[[], Any]], undone: list[Any]) -> list[asyncio.Task[Any]]:
    """All asked for during one turn of the loop."""
    return [asyncio.ensure_future(beside.call(work, undone.append)) for work in works]


def test_each_call_gets_its_own_answer() -> None:
    """A result, or the error that it raised."""

    async def test() -> None:
        beside, undone = offload(), []
        answers = await asyncio.gather(
            *calls(beside, [lambda: 1, lambda: 1 // 0, lambda: 3], undone), return_exceptions=True
        )
        assert answers[0::2] == [1, 3]
        assert isinstance(answers[1], ZeroDivisionError)
        assert not undone
        await until(lambda: not beside.busy)

    run(test)


def test_the_calls_of_one_turn_share_a_thread() -> None:
    """Unless one takes long, there is no need for more."""

    async def test() -> None:
        beside = offload()
        first = await asyncio.gather(*calls(beside, [threading.get_ident] * 20, []))
        assert len(set(first)) == 1
        assert threading.get_ident() not in first

    run(test)


def test_a_call_that_hangs_does_not_hold_up_its_neighbours() -> None:
    """Nor do several of them, as long as there is a thread."""

    async def test() -> None:
        beside, gate = offload(threads=4), threading.Event()
        works: list[Callable[[], Any]] = [gate.wait, lambda: 1, gate.wait, lambda: 2, gate.wait, lambda: 3]
        asked = calls(beside, works, [])
        assert await asyncio.gather(*asked[1::2]) == [1, 2, 3]
        assert not any(call.done() for call in asked[0::2])
        assert await beside.call(lambda: 4, lambda _: None) == 4
        assert beside.busy
        gate.set()
        await asyncio.gather(*asked)
        await until(lambda: not beside.busy)

    run(test)


def test_calls_wait_for_a_thread_when_the_system_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked again; nobody is forgotten."""

    async def test() -> None:
        beside, refusals = offload(), [RuntimeError("can't start new thread")] * 2
        submit = beside._threads.submit

        def refuse(work: Callable[[], None]) -> object:
            if refusals:
                raise refusals.pop()
            return submit(work)

        monkeypatch.setattr(beside._threads, "submit", refuse)
        assert await beside.call(lambda: 1, lambda _: None) == 1
        assert not refusals

    run(test)


def test_calls_wait_for_a_thread_when_all_hang() -> None:
    """And go on with the first that is free again."""

    async def test() -> None:
        beside, gate = offload(threads=1), threading.Event()
        hanging, waiting = calls(beside, [gate.wait, lambda: 1], [])
        while not beside.busy:
            await asyncio.sleep(0)
        gate.set()
        assert (await hanging, await waiting) == (True, 1)

    run(test)


def test_a_call_that_takes_too_long_is_given_up_and_undone_when_it_comes() -> None:
    """Whoever waits behind it for the only thread is not begun at all."""

    async def test() -> None:
        beside, gate, undone, begun = offload(threads=1, timeout_s=0.05), threading.Event(), [], []
        hanging, waiting = calls(beside, [gate.wait, lambda: begun.append(1)], undone)
        for late in (hanging, waiting):
            with pytest.raises(TimeoutError):
                await late
        assert beside.busy
        gate.set()
        await until(lambda: not beside.busy)
        assert undone == [True]
        assert not begun

    run(test)


@pytest.mark.parametrize("turns", range(6))
def test_a_result_for_a_caller_that_was_cancelled_is_undone(turns: int) -> None:
    """At whatever moment that happens: the result is either had or undone."""

    async def test() -> None:
        beside, undone, gate = offload(), [], threading.Event()
        (call,) = calls(beside, [lambda: gate.wait() and "result"], undone)
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns % 2:
            gate.set()
        call.cancel()
        gate.set()
        had = await asyncio.gather(call, return_exceptions=True)
        await until(lambda: not beside.busy)
        await until(lambda: had == ["result"] or undone == ["result"] or turns == 0)

    run(test)


def test_a_result_in_the_same_moment_as_the_cancelling_is_undone() -> None:
    """The answer was there, the caller had not woken up yet."""

    async def test() -> None:
        beside, undone = offload(), []
        (call,) = calls(beside, [lambda: "result"], undone)
        await until(lambda: beside.busy)
        await until(lambda: not beside.busy)  # delivered just now
        assert not call.done()
        call.cancel()
        await asyncio.wait({call})
        assert undone == ["result"]

    run(test)


def test_results_for_a_loop_that_is_closed_are_undone_by_the_thread() -> None:
    """Nobody else is left to do it."""
    beside, undone, gate = offload(), [], threading.Event()
    begun = threading.Event()

    def work() -> str:
        begun.set()
        gate.wait()
        return "result"

    async def leave() -> None:
        calls(beside, [work], undone)
        await until(begun.is_set)

    asyncio.run(leave())
    gate.set()
    beside._threads.shutdown(wait=True)
    assert undone == ["result"]
    assert not beside.busy


def test_one_serves_several_loops() -> None:
    """One after another, also when a loop ended before its calls were begun."""
    beside = offload()

    async def leave() -> None:
        calls(beside, [lambda: 1], [])
        await asyncio.sleep(0)

    async def ask() -> int:
        return await beside.call(lambda: 2, lambda _: None)

    asyncio.run(leave())
    assert asyncio.run(ask()) == 2



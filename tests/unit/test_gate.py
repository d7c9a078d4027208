"""A few places, the most urgent first, and nobody while it is shut."""

from __future__ import annotations

import asyncio

import pytest
from house import run, settle
from hypothesis import given
from hypothesis import strategies as st

from whisperd.gate import Gate


class Visitors:
    """Who waits and who is inside."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.inside: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, rank: int = 1) -> None:
        """Stands in line."""

        async def enter() -> None:
            await self.gate.enter(rank)
            self.inside.append(name)

        self.tasks[name] = asyncio.get_running_loop().create_task(enter())
        await settle(3)

    async def go(self, name: str) -> None:
        """Leaves."""
        self.inside.remove(name)
        self.gate.leave()
        await settle(3)

    async def give_up(self, name: str) -> None:
        """Leaves the line."""
        self.tasks[name].cancel()
        await settle(3)


def test_those_who_find_no_place_wait_for_one() -> None:
    """In the order of their coming."""

    async def test() -> None:
        visitors = Visitors(Gate(2))
        for name in "abcd":
            await visitors.come(name)
        assert visitors.inside == ["a", "b"]
        await visitors.go("a")
        await visitors.go("b")
        assert visitors.inside == ["c", "d"]

    run(test)


def test_the_most_urgent_goes_first() -> None:
    """Whoever came before."""

    async def test() -> None:
        visitors = Visitors(Gate(1))
        for name, rank in (("inside", 1), ("bulk", 2), ("normal", 1), ("interactive", 0), ("normal too", 1)):
            await visitors.come(name, rank)
        order = []
        while visitors.inside:
            order += visitors.inside
            await visitors.go(visitors.inside[0])
        assert order == ["inside", "interactive", "normal", "normal too", "bulk"]

    run(test)


def test_nobody_enters_while_it_is_shut() -> None:
    """Who is inside stays, and may leave; when it opens, there is room for as many as ever."""

    async def test() -> None:
        visitors = Visitors(Gate(2))
        await visitors.come("a")
        visitors.gate.shut(True)
        for name in "bcd":
            await visitors.come(name)
        await visitors.go("a")
        assert visitors.inside == []
        visitors.gate.shut(False)
        await settle(3)
        assert visitors.inside == ["b", "c"]

    run(test)


def test_who_gives_up_leaves_no_gap() -> None:
    """In line, or at the very moment in which the place was given."""

    async def test() -> None:
        visitors = Visitors(Gate(1))
        for name in "abcd":
            await visitors.come(name)
        await visitors.give_up("b")
        visitors.inside.remove("a")
        visitors.gate.leave()  # c has the place now, but does not know it yet
        await visitors.give_up("c")
        assert visitors.inside == ["d"]
        for name in "bc":
            with pytest.raises(asyncio.CancelledError):
                await visitors.tasks[name]

    run(test)


@given(st.lists(st.tuples(st.sampled_from(["come", "go", "give up", "shut", "open"]), st.integers(0, 100))))
def test_no_place_is_lost_or_given_twice(events: list[tuple[str, int]]) -> None:
    """Whatever the order of coming, going and giving up."""

    async def test() -> None:
        visitors, count = Visitors(Gate(3)), 0
        for event, number in events:
            if event == "come":
                count += 1
                await visitors.come(str(count), number % 3)
            elif event == "go" and visitors.inside:
                await visitors.go(visitors.inside[number % len(visitors.inside)])
            elif event == "give up" and visitors.tasks:
                await visitors.give_up(list(visitors.tasks)[number % len(visitors.tasks)])
            else:
                visitors.gate.shut(event == "shut")
                await settle(3)
            assert len(visitors.inside) <= 3
        visitors.gate.shut(False)
        while any(not task.done() for task in visitors.tasks.values()):
            await settle(3)
            assert visitors.inside
            await visitors.go(visitors.inside[0])
        while visitors.inside:
            await visitors.go(visitors.inside[0])
        for name in ("x", "y", "z"):
            await visitors.come(name)
        assert visitors.inside == ["x", "y", "z"]

    run(test)

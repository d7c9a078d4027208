"""One client's side: every slot is answered once, in the order that was promised, to whoever reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from house import MemoryLink, make_job, run
from hypothesis import given
from hypothesis import strategies as st

from whisperd.admission import ALL_ROLES, Peer
from whisperd.framing import Line
from whisperd.session import Session, close_fds
from whisperd.transport import SLOW_READER_BYTES


class Register:
    """Notes what a session hands on."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def handle_line(self, session: Session, line: Line) -> None:
        self.events.append(("line", line.data))

    def session_ended(self, session: Session) -> None:
        self.events.append("ended")

    def session_lost(self, session: Session) -> None:
        self.events.append("lost")



def session(**settings: Any) -> tuple[Session, MemoryLink, Register]:
    """A session with both its neighbours."""
    link, desk = MemoryLink(), Register()
    one = Session(Peer("test", 1000, 1, ALL_ROLES, True), link, desk, **settings)
    link.on_abort = one.lost
    return one, link, desk


def reply(number: int) -> bytes:
    """A line that can be told from others."""
    return json.dumps({"n": number}).encode() + b"\n"


def numbers(link: MemoryLink) -> list[int]:
    """Those lines, as they were written."""
    return [message["n"] for message in link.messages]


@given(st.permutations(range(8)), st.booleans())
def test_answers_leave_as_they_come_or_in_the_order_of_the_requests(order: list[int], ordered: bool) -> None:
    """Whatever the order in which the work is done, each leaves once."""

    async def test() -> None:
        one, link, _ = session(ordered=ordered)
        slots = [one.open_slot() for _ in order]
        for done, number in enumerate(order):
            one.answer(slots[number], reply(number))
            finished = order[: done + 1]
            if ordered:
                ready = next((n for n in range(len(order)) if n not in finished), len(order))
                assert numbers(link) == list(range(ready))
            else:
                assert numbers(link) == finished
        assert one.quiet

    run(test)


def test_a_slot_is_answered_once() -> None:
    """A second answer is a bug that must be seen, not a line that confuses a client."""

    async def test() -> None:
        one, link, _ = session()
        slot = one.open_slot()
        one.answer(slot, reply(1))
        with pytest.raises(AssertionError, match="answered once"):
            one.answer(slot, reply(1))
        assert numbers(link) == [1]

    run(test)


def test_a_session_is_quiet_when_nothing_is_owed() -> None:
    """Open slots, jobs and the backlog all count."""

    async def test() -> None:
        one, _, _ = session()
        assert one.quiet
        slot = one.open_slot()
        assert not one.quiet
        one.answer(slot, reply(1))
        assert one.quiet
        one.jobs["a"] = make_job()
        assert not one.quiet

    run(test)


def test_ids_in_flight_are_those_of_jobs_backlog_and_pending_control() -> None:
    """0, the empty string and their look-alikes are told apart."""

    async def test() -> None:
        one, _, _ = session()
        one.jobs[0] = make_job()
        one.backlog_ids.add("")
        one.control_slots["c"] = one.open_slot()
        assert [one.in_flight(id) for id in (0, "", "c")] == [True] * 3
        assert [one.in_flight(id) for id in ("0", 1, "a")] == [False] * 3

    run(test)


def test_progress_is_left_out_for_a_client_that_does_not_read() -> None:
    """And counted; it goes on when the client reads again."""

    async def test() -> None:
        dropped = 0

        def drop() -> None:
            nonlocal dropped
            dropped += 1

        one, link, _ = session(on_dropped=drop)
        link.unread = SLOW_READER_BYTES + 1
        one.notify("transcribe.progress", {})
        assert (link.messages, dropped) == ([], 1)
        link.unread = SLOW_READER_BYTES
        one.notify("transcribe.progress", {})
        assert (len(link.messages), dropped) == (1, 1)

    run(test)


def test_replies_are_not_left_out_but_past_the_limit_the_client_is_dropped() -> None:
    """Its session hears of it once."""

    async def test() -> None:
        one, link, desk = session(output_max_bytes=1000)
        link.unread = 1000
        one.answer(one.open_slot(), reply(1))
        assert (numbers(link), link.aborted) == ([1], False)
        link.unread = 1001
        one.answer(one.open_slot(), reply(2))
        assert link.aborted
        one.lost()
        assert desk.events == ["lost"]

    run(test)


def test_nothing_is_written_to_a_client_that_is_gone() -> None:
    """Its slots close all the same."""

    async def test() -> None:
        one, link, _ = session(ordered=True)
        slots = [one.open_slot() for _ in range(2)]
        one.lost()
        one.notify("transcribe.progress", {})
        for slot in slots:
            one.answer(slot, reply(1))
        assert link.messages == []
        assert one.open_slots == 0

    run(test)


def test_lines_of_a_client_that_is_gone_are_dropped_with_their_descriptors() -> None:
    """They may come in the same chunk as the news of its end."""

    async def test() -> None:
        one, _, desk = session()
        one.lost()
        fd = os.memfd_create("test")
        one.received(Line(b"{}", [fd]))
        assert desk.events == ["lost"]
        assert not Path(f"/proc/self/fd/{fd}").exists()

    run(test)


def test_lines_and_their_end_are_handed_on() -> None:
    """In their order."""

    async def test() -> None:
        one, _, desk = session()
        one.received(Line(b"a"))
        one.ended()
        assert desk.events == [("line", b"a"), "ended"]
        assert one.input_ended

    run(test)


def test_closing_descriptors_leaves_an_empty_list() -> None:
    """So that nobody closes them twice."""
    fds = [os.memfd_create("test"), os.memfd_create("test")]
    close_fds(fds)
    assert fds == []
    close_fds(fds)

"""Lines in fair turns, replies gathered: what the links do between the bytes and their owners."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

import pytest
from house import run, settle

from whisperd.framing import Line
from whisperd.inbox import Inbox, Turns
from whisperd.transport import SLOW_READER_BYTES, HangupWatch, SocketLink, StdioLink


class Listener:
    """An owner that notes what it hears; `on_line` may answer."""

    def __init__(self, heard: list[object] | None = None, name: str = "", on_line: Callable[[], None] | None = None):
        self.heard = [] if heard is None else heard
        self.name = name
        self.on_line = on_line or (lambda: None)

    def received(self, line: Line) -> None:
        self.heard.append(self.name + bytes(line.data or b"").decode())
        self.on_line()

    def ended(self) -> None:
        self.heard.append("ended")

    def lost(self) -> None:
        self.heard.append("lost")

    def drained(self) -> None:
        self.heard.append("drained")


def linked(owner: Listener, max_line_bytes: int = 1 << 20) -> tuple[SocketLink, socket.socket]:
    """A link and the client's end of it."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    link = SocketLink(ours, max_line_bytes, HangupWatch(), Turns())
    link.start(owner)
    return link, theirs


async def read(sock: socket.socket, size: int) -> bytes:
    """Exactly so many bytes from a client's end."""
    data = b""
    while len(data) < size:
        data += await asyncio.get_running_loop().sock_recv(sock, size - len(data))
    return data


def test_clients_have_turns() -> None:
    """A chunk of many lines does not come before the one line of another client."""

    async def test() -> None:
        heard: list[object] = []
        turns, many, one = Turns(), Listener(heard, "many "), Listener(heard, "one ")
        inboxes = [Inbox(100, turns, lambda: None) for _ in range(2)]
        inboxes[0].take(many, b"".join(b"%d\n" % number for number in range(5)), [])
        inboxes[1].take(one, b"a\nb\n", [])
        await settle()
        assert heard == ["many 0", "one a", "many 1", "one b", "many 2", "many 3", "many 4"]

    run(test)


def test_a_line_that_cannot_be_taken_holds_nobody_up() -> None:
    """Neither those behind it nor other clients, who share the turns."""

    def stumble() -> None:
        raise ZeroDivisionError

    async def test() -> None:
        heard: list[object] = []
        turns = Turns()
        clumsy, sound = Listener(heard, "clumsy ", stumble), Listener(heard, "sound ")
        inboxes = [Inbox(100, turns, lambda: heard.append("ready")) for _ in range(2)]
        inboxes[0].take(clumsy, b"0\n1\n2\n", [])
        inboxes[1].take(sound, b"a\nb\n", [])
        await settle()
        assert heard == ["clumsy 0", "sound a", "clumsy 1", "sound b", "ready", "clumsy 2", "ready"]

    run(test)


def test_the_loop_has_a_turn_between_many_lines() -> None:
    """However many lines came at once, other work waits for milliseconds only."""

    async def test() -> None:
        heard: list[object] = []
        inbox = Inbox(100, Turns(), lambda: None)
        spin = Listener(heard, on_line=lambda: [None for _ in range(20_000)] and None)
        inbox.take(spin, b"x\n" * 1000, [])
        await settle(3)
        assert 0 < len(heard) < 1000
        assert inbox.full

    run(test)


def test_the_end_of_input_comes_once_and_after_the_last_line() -> None:
    """Also where that has no newline."""

    async def test() -> None:
        owner, inbox = Listener(), Inbox(100, Turns(), lambda: None)
        inbox.take(owner, b"a\nb", [])
        inbox.take(owner, b"", [])
        await settle()
        assert owner.heard == ["a", "b", "ended"]

    run(test)


def test_an_abandoned_inbox_hands_nothing_on_and_closes_descriptors() -> None:
    """Its connection is gone, although its turn comes."""

    async def test() -> None:
        owner, inbox = Listener(), Inbox(100, Turns(), lambda: None)
        ends = os.pipe()
        inbox.take(owner, b"a\nb\nc\n", list(ends))
        inbox.abandon()
        await settle()
        assert owner.heard == ["a"]
        for fd in ends:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)

    run(test)


def test_replies_of_one_turn_go_out_together_and_in_order() -> None:
    """Nothing is sent before the turn ends, and then all at once."""

    async def test() -> None:
        link, client = linked(Listener())
        for number in range(10):
            link.write(b"%d\n" % number)
        with pytest.raises(BlockingIOError):
            client.recv(100)
        assert link.buffered() == 20
        await link.flushed()
        assert client.recv(100) == b"".join(b"%d\n" % number for number in range(10))
        assert link.buffered() == 0
        link.abort()
        client.close()

    run(test)


def test_much_output_does_not_wait_for_the_end_of_the_turn() -> None:
    """A client that reads is not taken for one that does not because of a long turn."""

    async def test() -> None:
        link, client = linked(Listener())
        for _ in range(4):
            link.write(b"x" * 20_000)
        assert link.buffered() < 20_000
        link.abort()
        client.close()

    run(test)


def test_output_beyond_the_sockets_buffer_arrives_whole_and_the_owner_hears_when_it_has() -> None:
    """Short and long lines mixed; reading pauses meanwhile."""

    async def test() -> None:
        owner = Listener()
        link, client = linked(owner)
        lines = [bytes([65 + number % 26]) * size for number, size in enumerate([10, 3 << 20, 5, 70_000, 1, 2 << 20])]
        for line in lines:
            link.write(line)
        assert link.buffered() > SLOW_READER_BYTES
        client.send(b"not read yet\n")
        await settle()
        assert owner.heard == []
        assert await read(client, sum(map(len, lines))) == b"".join(lines)
        await link.flushed()
        while len(owner.heard) < 2:
            await asyncio.sleep(0)
        assert owner.heard == ["drained", "not read yet"]
        link.abort()
        client.close()

    run(test)


def test_a_link_that_is_closed_sends_what_was_written_first() -> None:
    """Whether or not the turn was over."""

    async def test() -> None:
        link, client = linked(Listener())
        link.write(b"last words\n")
        link.close()
        await link.flushed()
        assert await read(client, 11) == b"last words\n"
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
        client.close()

    run(test)


def test_a_paused_link_reads_nothing_and_goes_on_when_resumed() -> None:
    """Nothing is lost in between."""

    async def test() -> None:
        owner = Listener()
        link, client = linked(owner)
        link.pause()
        client.send(b"a\n")
        await settle()
        assert owner.heard == []
        link.resume()
        while not owner.heard:
            await asyncio.sleep(0)
        client.send(b"b\n")
        while len(owner.heard) < 2:
            await asyncio.sleep(0)
        assert owner.heard == ["a", "b"]
        link.abort()
        assert owner.heard[-1] == "lost"
        client.close()

    run(test)


def test_stdio_writes_what_came_before_the_end() -> None:
    """Closed in the same turn as the last reply."""

    async def test() -> None:
        ends_in, ends_out = os.pipe(), os.pipe()
        link = StdioLink(ends_in[0], ends_out[1], 1000, Turns())
        link.start(Listener())
        link.write(b"a\n")
        link.write(b"b\n")
        link.close()
        await link.flushed()
        assert os.read(ends_out[0], 100) == b"a\nb\n"
        for fd in (*ends_in, *ends_out):
            os.close(fd)

    run(test)

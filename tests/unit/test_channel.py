"""Messages and descriptors between the supervisor and a worker, over real socket pairs."""

from __future__ import annotations

import array
import asyncio
import os
import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisperd.channel import (
    FDS_MAX,
    MESSAGE_MAX_BYTES,
    OUT_OF_DESCRIPTORS,
    AsyncChannel,
    Channel,
    ChannelClosed,
    Frames,
    encode_frame,
    receive_chunk,
)

Message = dict[str, Any]
DEADLINE_S = 10.0


def memory_file(text: str) -> int:
    """A descriptor to read this text from."""
    fd = os.memfd_create("test")
    os.write(fd, text.encode())
    return fd


def content(fd: int) -> str:
    """The text of a memory file, which is closed."""
    try:
        return os.pread(fd, 100, 0).decode()
    finally:
        os.close(fd)


def memory_files() -> int:
    """How many memory files this process holds."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.append(entry.readlink().name)
        except FileNotFoundError:  # the descriptor that lists the folder
            continue
    return sum("memfd:test" in link for link in links)


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """All memory files of the block must be closed at its end."""
    before = memory_files()
    yield
    assert memory_files() == before


# -- frames ------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.text(max_size=20), st.integers(0, 3)), max_size=8),
    st.lists(st.integers(0, 500), max_size=20),
)
def test_frames_cut_anywhere_give_the_same_messages(messages: list[tuple[str, int]], places: list[int]) -> None:
    """Each with its own descriptors, which come with the first byte of its frame. Descriptors are numbers here."""
    stream, carried, wanted, count = b"", {}, [], 0
    for text, fds in messages:
        own = list(range(count, count + fds))
        count += fds
        carried[len(stream)] = own
        stream += encode_frame({"text": text}, own)
        wanted.append(({"text": text}, own))
    # The kernel ends a read behind the buffer that brought descriptors: never two frames with some in one chunk.
    edges = sorted({0, len(stream), *carried, *(place % (len(stream) + 1) for place in places)})
    frames, got = Frames(), []
    for start, stop in pairwise(edges):
        got += frames.feed(stream[start:stop], carried.get(start, []))
    assert got == wanted


def test_several_messages_may_come_in_one_chunk() -> None:
    """The last of them unfinished."""
    frames = Frames()
    stream = encode_frame({"n": 1}) + encode_frame({"n": 2}) + encode_frame({"n": 3})
    assert frames.feed(stream[:-1], []) == [({"n": 1}, []), ({"n": 2}, [])]
    assert frames.feed(stream[-1:], []) == [({"n": 3}, [])]


@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        (struct.pack("<IB", MESSAGE_MAX_BYTES + 1, 0), "over the limit"),
        (encode_frame({}, [1, 2]), "2 descriptors announced, 0 came"),
        (struct.pack("<IB", 3, 0) + b"{a}", "not JSON"),
        (struct.pack("<IB", 0, 0), "not JSON"),
        (struct.pack("<IB", 2, 0) + b"[]", "not a JSON object"),
        (struct.pack("<IB", 3000, 0) + b"[" * 3000, "not JSON"),
    ],
)
def test_what_is_no_frame_ends_the_channel(chunk: bytes, said: str) -> None:
    """A broken or hostile worker can send bytes, and gets no further."""
    with pytest.raises(ChannelClosed, match=said):
        Frames().feed(chunk, [])


def test_a_message_of_exactly_the_limit_passes() -> None:
    """The bound is on the body."""
    text = "x" * (MESSAGE_MAX_BYTES - len(orjson.dumps({"t": ""})))
    frame = encode_frame({"t": text})
    assert Frames().feed(frame, []) == [({"t": text}, [])]
    with pytest.raises(ValueError, match="over the limits"):
        encode_frame({"t": text + "x"})


def test_too_many_descriptors_are_refused_before_they_are_sent() -> None:
    """The kernel would take more."""
    with pytest.raises(ValueError, match="65 descriptors"):
        encode_frame({}, range(FDS_MAX + 1))


def test_descriptors_that_nobody_announced_cannot_pile_up() -> None:
    """Each frame says how many are its own; what lies around beyond that ends the channel."""
    frames = Frames()
    frame = encode_frame({})
    with nothing_left_open():
        for _ in range(FDS_MAX):
            assert frames.feed(frame, [memory_file("stray")]) == [({}, [])]
        with pytest.raises(ChannelClosed, match="more descriptors"):
            frames.feed(frame, [memory_file("stray")])
        frames.close()


def test_descriptors_of_unfinished_and_of_good_messages_are_closed_when_a_later_frame_is_bad() -> None:
    """Nobody was given them, so the frames still own them."""
    frames = Frames()
    with nothing_left_open():
        good = encode_frame({}, [0])
        with pytest.raises(ChannelClosed):
            frames.feed(good + struct.pack("<IB", 3, 1) + b"{a}", [memory_file("good"), memory_file("bad")])
        frames.close()
        frames.close()


# -- the worker's end --------------------------------------------------------------------------------------------


@contextmanager
def blocking_pair() -> Iterator[tuple[Channel, socket.socket]]:
    """A worker's channel and the socket at its other end, both with deadlines."""
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_S)
    channel = Channel(theirs.detach())
    channel._socket.settimeout(DEADLINE_S)
    with ours, channel._socket:
        yield channel, ours


def test_a_worker_gets_messages_with_their_descriptors() -> None:
    """In order, each with its own, close-on-exec."""
    with blocking_pair() as (channel, ours), nothing_left_open():
        sent = [memory_file("first"), memory_file("second")]
        socket.send_fds(ours, [encode_frame({"n": 1}, [0])], sent[:1])
        ours.sendall(encode_frame({"n": 2}))
        socket.send_fds(ours, [encode_frame({"n": 3}, [0])], sent[1:])
        for fd in sent:
            os.close(fd)
        message, fds = channel.receive()
        assert (message, [os.get_inheritable(fd) for fd in fds]) == ({"n": 1}, [False])
        assert content(fds[0]) == "first"
        assert channel.receive() == ({"n": 2}, [])
        message, fds = channel.receive()
        assert (message, content(fds[0])) == ({"n": 3}, "second")


def test_a_worker_s_descriptors_go_with_its_message() -> None:
    """It keeps its own, as the message brought a copy."""
    with blocking_pair() as (channel, ours), nothing_left_open():
        fd = memory_file("samples")
        channel.send({"event": "prepared"}, [fd])
        channel.send({"event": "beat"})
        assert content(fd) == "samples"
        frames, messages = Frames(), []
        while len(messages) < 2:
            messages += frames.feed(*receive_chunk(ours))
        assert [message["event"] for message, _ in messages] == ["prepared", "beat"]
        assert content(messages[0][1][0]) == "samples"
        assert messages[1][1] == []


def test_a_worker_hears_that_the_supervisor_is_gone() -> None:
    """Closed in order, or killed with unread messages: both are the end of the channel, in both directions."""
    with blocking_pair() as (channel, ours):
        ours.close()
        with pytest.raises(ChannelClosed):
            channel.receive()
        with pytest.raises(ChannelClosed):
            channel.send({"event": "beat"})
    with blocking_pair() as (channel, ours):
        channel.send({"event": "beat"})
        ours.close()
        with pytest.raises(ChannelClosed):
            channel.receive()


# -- the supervisor's end ----------------------------------------------------------------------------------------


class Listener:
    """Both ends of a channel on a loop: what the supervisor heard, and the worker's bare socket."""

    def __init__(self, receive_buffer: int | None = None) -> None:
        ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        if receive_buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, receive_buffer)
        self.messages: list[tuple[Message, list[int]]] = []
        self.ends: list[str] = []
        self._news = asyncio.Event()
        self.channel = AsyncChannel(ours, self._received, self._closed)

    def _received(self, message: Message, fds: list[int]) -> None:
        self.messages.append((message, fds))
        self._news.set()

    def _closed(self, reason: str) -> None:
        self.ends.append(reason)
        self._news.set()

    async def news(self) -> None:
        """Waits for the next message or the end."""
        await self._news.wait()
        self._news.clear()

    async def sent(self, count: int) -> list[tuple[Message, list[int]]]:
        """The next messages at the worker's end."""
        frames, messages, loop = Frames(), [], asyncio.get_running_loop()
        while len(messages) < count:
            readable = asyncio.Event()
            loop.add_reader(self.theirs, readable.set)
            await readable.wait()
            loop.remove_reader(self.theirs)
            messages += frames.feed(*receive_chunk(self.theirs))
        return messages

    def close(self) -> None:
        """Ends both sides."""
        self.channel.close()
        self.theirs.close()


def with_listener(test: Any, **settings: Any) -> None:
    """Runs an async test with a listener and a deadline; no memory file may be left open."""

    async def main() -> None:
        async with asyncio.timeout(DEADLINE_S):
            listener = Listener(**settings)
            try:
                await test(listener)
            finally:
                listener.close()

    with nothing_left_open():
        asyncio.run(main())


def test_the_supervisor_hears_messages_with_their_descriptors() -> None:
    """Split anywhere on the way."""

    async def test(listener: Listener) -> None:
        fd = memory_file("samples")
        frame = encode_frame({"event": "prepared"}, [fd])
        socket.send_fds(listener.theirs, [frame[:3]], [fd])
        os.close(fd)
        for at in range(3, len(frame)):
            await asyncio.sleep(0)
            listener.theirs.send(frame[at : at + 1])
        await listener.news()
        ((message, fds),) = listener.messages
        assert message == {"event": "prepared"}
        assert content(fds[0]) == "samples"

    with_listener(test)


def test_the_sender_may_close_its_descriptor_at_once() -> None:
    """The channel sends a copy, also when the worker reads late."""

    async def test(listener: Listener) -> None:
        for number in range(20):
            fd = memory_file(f"input {number}")
            listener.channel.send({"n": number, "pad": "x" * 10_000}, [fd])
            os.close(fd)
        messages = await listener.sent(20)
        assert [message["n"] for message, _ in messages] == list(range(20))
        assert [content(fds[0]) for _, fds in messages] == [f"input {number}" for number in range(20)]

    with_listener(test, receive_buffer=4096)


def test_a_message_larger_than_the_socket_s_buffer_arrives_whole() -> None:
    """And the one behind it."""

    async def test(listener: Listener) -> None:
        listener.channel.send({"pad": "x" * 3_000_000})
        listener.channel.send({"n": 2})
        (first, _), (second, _) = await listener.sent(2)
        assert (len(first["pad"]), second) == (3_000_000, {"n": 2})

    with_listener(test, receive_buffer=4096)


def test_closing_forgets_what_was_not_sent_with_its_descriptors() -> None:
    """And does not call `closed`, as it was our own will."""

    async def test(listener: Listener) -> None:
        for _ in range(20):
            fd = memory_file("input")
            listener.channel.send({"pad": "x" * 100_000}, [fd])
            os.close(fd)
        listener.channel.close()
        listener.channel.close()
        await asyncio.sleep(0)
        assert listener.ends == []

    with_listener(test, receive_buffer=4096)


def test_the_worker_s_end_is_told_once() -> None:
    """However it is found out."""

    async def test(listener: Listener) -> None:
        listener.theirs.close()
        listener.channel.send({"n": 1})  # fails, but not from inside the call
        assert listener.ends == []
        await listener.news()
        await asyncio.sleep(0)
        assert len(listener.ends) == 1

    with_listener(test)


@pytest.mark.parametrize(
    "garbage",
    [struct.pack("<IB", 2**31, 0), struct.pack("<IB", 2, 1) + b"{}", struct.pack("<IB", 1, 0) + b"{", b"\xff" * 100],
)
def test_garbage_from_a_worker_ends_its_channel(garbage: bytes) -> None:
    """It is told as a loss, and descriptors that came with it are closed."""

    async def test(listener: Listener) -> None:
        fd = memory_file("stray")
        socket.send_fds(listener.theirs, [encode_frame({"good": 1}, [0])], [fd])
        await listener.news()
        os.close(listener.messages[0][1][0])
        socket.send_fds(listener.theirs, [struct.pack("<IB", 50, 1)], [fd])
        os.close(fd)
        listener.theirs.send(b'{"a": "' + b"x" * 41 + b'"}' + garbage)
        await listener.news()
        assert len(listener.ends) == 1
        for _, fds in listener.messages[1:]:
            os.close(fds[0])

    with_listener(test)


def test_a_message_that_cannot_be_sent_leaves_nothing_behind() -> None:
    """Too large, not JSON, or with a descriptor that is none: the caller hears it, and later messages go out."""

    async def test(listener: Listener) -> None:
        fd = memory_file("input")
        with pytest.raises(ValueError, match="over the limits"):
            listener.channel.send({"pad": "x" * (MESSAGE_MAX_BYTES + 1)}, [fd])
        with pytest.raises(TypeError):
            listener.channel.send({"pad": object()}, [fd])
        with pytest.raises(OSError, match="Bad file descriptor"):
            listener.channel.send({}, [fd, 10_000])
        os.close(fd)
        listener.channel.send({"n": 1})
        assert await listener.sent(1) == [({"n": 1}, [])]

    with_listener(test)


def test_more_descriptors_than_allowed_are_cut_off_by_the_kernel_and_end_the_channel() -> None:
    """The room for them is bounded, so that no message can fill the supervisor's table."""

    async def test(listener: Listener) -> None:
        fds = [memory_file("many") for _ in range(FDS_MAX + 30)]
        packed = array.array("i", fds)
        frame = struct.pack("<IB", 2, FDS_MAX + 30) + b"{}"
        listener.theirs.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)])
        for fd in fds:
            os.close(fd)
        await listener.news()
        assert len(listener.ends) == 1

    with_listener(test)


def test_a_message_that_we_have_no_descriptors_for_is_told_as_our_own_shortage() -> None:
    """The kernel cuts them off; what of them came is closed, and the sender is not said to have lied."""

    async def test(listener: Listener) -> None:
        fds = [memory_file("samples") for _ in range(3)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(fds[0])
        os.close(free)
        socket.send_fds(listener.theirs, [encode_frame({"event": "prepared"}, fds)], fds)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))  # room for one of the three
        try:
            await listener.news()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fds:
            os.close(fd)
        assert (listener.messages, listener.ends) == ([], [OUT_OF_DESCRIPTORS])

    with_listener(test)

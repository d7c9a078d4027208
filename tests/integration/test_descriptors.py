"""Files passed as descriptors: which line they belong to, what is refused, and that none is ever left open."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from daemon import Daemon, SocketClient, Start, digest_of, request

pytestmark = pytest.mark.integration


def wants(id: str, index: int = 0) -> bytes:
    """A `transcribe` of a passed descriptor."""
    return request("transcribe", id, audio={"fd": index})


def file_with(data: bytes) -> IO[bytes]:
    """An unnamed file with these bytes."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 -- the caller closes it
    file.write(data)
    file.flush()
    return file


@pytest.fixture
def client(everyday: Daemon) -> Iterator[SocketClient]:
    """A connection whose every descriptor must be closed in the end."""
    client = everyday.connect()
    client.call("ping")
    before = everyday.fds()
    yield client
    client.call("ping")
    client.check_settled()
    assert everyday.fds() == before


def test_a_passed_file_is_transcribed(client: SocketClient) -> None:
    """Read from its start, wherever the client's own position is."""
    with file_with(b"passed") as file:
        client.send_fds(wants("a"), [file.fileno()])
        assert client.result("a")["text"] == digest_of(b"passed")


def test_a_memory_file_is_transcribed(client: SocketClient) -> None:
    """No disk needed."""
    fd = os.memfd_create("clip")
    os.write(fd, b"in memory")
    client.send_fds(wants("a"), [fd])
    os.close(fd)
    assert client.result("a")["text"] == digest_of(b"in memory")


def test_descriptors_belong_to_the_line_they_came_with(client: SocketClient) -> None:
    """Lines in quick succession, every third without one, each with its own."""
    for number in range(60):
        with file_with(b"file %d" % number) as file:
            if number % 3:
                client.send_fds(wants(f"{number}"), [file.fileno()])
            else:
                client.send(request("ping", f"{number}"))
    for number in range(60):
        if number % 3:
            assert client.result(f"{number}")["text"] == digest_of(b"file %d" % number)
        else:
            assert client.result(f"{number}")["pong"] is True


def test_a_lines_descriptors_are_counted_from_zero(client: SocketClient) -> None:
    """Four with one line, in the order of the call; unclaimed ones are closed."""
    files = [file_with(b"file %d" % number) for number in range(4)]
    fds = [file.fileno() for file in files]
    for index in range(4):
        client.send_fds(wants(f"{index}", index), fds)
    for index in range(4):
        assert client.result(f"{index}")["text"] == digest_of(b"file %d" % index)
    for file in files:
        file.close()


def test_a_line_in_two_pieces_keeps_the_descriptor_of_the_first(client: SocketClient) -> None:
    """Also when the daemon has read the first before the second is sent."""
    line = wants("halved")
    with file_with(b"halved") as file:
        client.expect("halved", "transcribe")
        client.send_fds(line[:20], [file.fileno()])
    client.send_bytes(line[20:])
    assert client.result("halved")["text"] == digest_of(b"halved")


def test_a_long_line_keeps_its_descriptor(client: SocketClient) -> None:
    """One that the kernel cuts into many buffers, only the first of which carries it."""
    line = wants("long")[:-1] + b" " * 3_000_000 + b"\n"
    with file_with(b"long") as file:
        client.expect("long", "transcribe")
        client.send_fds(line, [file.fileno()])
    assert client.result("long")["text"] == digest_of(b"long")


def test_a_line_without_newline_at_the_end_keeps_its_descriptor(everyday: Daemon) -> None:
    """The end of the input ends the line."""
    client = everyday.connect()
    with file_with(b"last") as file:
        client.send_fds(wants("last")[:-1], [file.fileno()])
    client.end_input()
    assert client.result("last")["text"] == digest_of(b"last")


@pytest.mark.parametrize("line", [b"\n", b"{bad\n", request("ping", "a"), request("ping"), request("nonsense", "b")])
def test_unclaimed_descriptors_are_closed(client: SocketClient, line: bytes) -> None:
    """With a blank line, a bad one, a method that takes none, a notification, an unknown method."""
    with file_with(b"unclaimed") as file:
        for _ in range(10):
            client.send_fds(line, [file.fileno()] * 4)
            if b"bad" in line or b'"id"' in line:
                assert client.receive()


def test_descriptors_of_a_line_over_the_limit_are_closed(client: SocketClient) -> None:
    """It is thrown away with what came with it."""
    with file_with(b"unclaimed") as file:
        client.send_fds(b"x" * 1000, [file.fileno()])
        client.send_bytes(b"x" * (65 << 20))
        client.send_fds(b"x" * 1000, [file.fileno()])
        client.send_fds(b"x\n", [file.fileno()])
    assert client.error(None)["kind"] == "line_too_long"


def test_descriptors_of_a_line_that_never_ends_are_closed(client: SocketClient, everyday: Daemon) -> None:
    """The client leaves in the middle of it."""
    leaving = everyday.connect()
    with file_with(b"unclaimed") as file:
        leaving.send_fds(b"{", [file.fileno()] * 3)
    leaving.close()
    client.until("status", lambda status: status["connections"] == 2)


def test_more_than_four_are_not_kept(client: SocketClient) -> None:
    """The request hears that there is no fifth; the first four can be used."""
    with file_with(b"one of many") as file:
        client.send_fds(wants("fifth", 4), [file.fileno()] * 9)
        error = client.error("fifth")
        assert (error["kind"], error["pointer"]) == ("invalid_params", "/audio/fd")
        client.send_fds(wants("fourth", 3), [file.fileno()] * 9)
        assert client.result("fourth")["text"] == digest_of(b"one of many")


def test_descriptors_cannot_be_heaped_up_in_one_line(client: SocketClient, everyday: Daemon) -> None:
    """Byte by byte, four with each: the daemon must not run out of them."""
    heaping = everyday.connect()
    heaping.call("ping")
    before = len(everyday.fds())
    with file_with(b"heap") as file:
        try:
            for _ in range(200):
                heaping.send_fds(b" ", [file.fileno()] * 4)
        except (BrokenPipeError, ConnectionResetError):
            pass
    heaping.wait_until_read()
    client.call("ping")  # what was read last is dealt with by now
    assert len(everyday.fds()) <= before + 4
    heaping.close()
    client.until("status", lambda status: status["connections"] == 2)


@pytest.mark.parametrize(("index", "sent"), [(0, 0), (1, 1), (3, 2)])
def test_an_index_out_of_range_is_pointed_at(client: SocketClient, index: int, sent: int) -> None:
    """No descriptor came, or too few."""
    with file_with(b"few") as file:
        if sent:
            client.send_fds(wants("a", index), [file.fileno()] * sent)
        else:
            client.send(wants("a", index))
        error = client.error("a")
    assert (error["kind"], error["pointer"]) == ("invalid_params", "/audio/fd")


@pytest.mark.parametrize("index", [-1, 4, 1 << 40])
def test_an_impossible_index_is_refused_by_the_schema(client: SocketClient, index: int) -> None:
    """There are at most four."""
    error = client.refusal("transcribe", audio={"fd": index})
    assert (error["kind"], error["pointer"]) == ("invalid_params", "/audio/fd")


@pytest.mark.parametrize("what", ["pipe", "socket", "directory", "device", "write-only file", "path-only handle"])
def test_what_is_no_readable_file_is_refused(client: SocketClient, tmp_path: Path, what: str) -> None:
    """Reading it could wait for ever, or is not possible."""
    opened = {
        "pipe": lambda: os.pipe(),
        "socket": lambda: [sock.detach() for sock in socket.socketpair()],
        "directory": lambda: [os.open(tmp_path, os.O_RDONLY)],
        "device": lambda: [os.open("/dev/zero", os.O_RDONLY)],
        "write-only file": lambda: [os.open(tmp_path / "w", os.O_WRONLY | os.O_CREAT)],
        "path-only handle": lambda: [os.open(__file__, os.O_PATH)],
    }[what]()
    client.send_fds(wants("a"), [opened[0]])
    error = client.error("a")
    for fd in opened:
        os.close(fd)
    assert error["kind"] in ("invalid_params", "audio_unreadable")


def test_one_file_passed_twice_at_once_is_read_twice(client: SocketClient) -> None:
    """Both share a position in the file, which nobody may rely on."""
    with file_with(b"shared" * 100_000) as file:
        for number in range(20):
            client.send_fds(wants(f"{number}"), [file.fileno()])
        for number in range(20):
            assert client.result(f"{number}")["text"].startswith(digest_of(b"shared" * 100_000))
        assert file.tell() == 600_000


def test_an_empty_file_is_unreadable_and_a_large_one_too_long(start: Start) -> None:
    """Typed errors, whatever the way in."""
    client = start(max_audio_bytes=1000).connect()
    for data, kind in ((b"", "audio_unreadable"), (bytes(1001), "audio_too_long")):
        with file_with(data) as file:
            client.send_fds(wants("a"), [file.fileno()])
            assert client.error("a")["kind"] == kind


def test_the_control_socket_closes_what_it_is_passed(client: SocketClient, everyday: Daemon) -> None:
    """Nothing there takes audio."""
    control = everyday.control()
    with file_with(b"unclaimed") as file:
        control.send_fds(request("ping", "a"), [file.fileno()] * 4)
        assert control.result("a")["pong"] is True
    control.close()
    client.until("status", lambda status: status["connections"] == 2)


def test_a_clients_own_write_after_sending_does_not_hurt_the_daemon(client: SocketClient) -> None:
    """A file that shrinks to nothing while it waits is an unreadable file, no more."""
    with file_with(b"shrinking") as file:
        client.send_fds(wants("a"), [file.fileno()])
        os.ftruncate(file.fileno(), 0)
        reply = client.reply("a")
    assert "result" in reply or reply["error"]["data"]["kind"] == "audio_unreadable"

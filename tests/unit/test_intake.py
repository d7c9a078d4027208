"""A client's audio into a descriptor: what may be opened, and that nothing is left open."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperd.errors import WhisperdError
from whisperd.intake import (
    check_fd,
    check_fd_in_thread,
    open_path,
    open_path_in_thread,
    shortage,
    spool_base64,
    stuck,
    take_fd,
)

MAX = 1 << 20
SLICE = 1 << 20  # characters of base64 that are decoded at one go
DEADLINE_S = 10.0


def open_files() -> int:
    """How many descriptors this process holds."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """Whatever a test does, as many descriptors are open after it as before."""

    async def warm_up() -> None:  # the pool's threads and the first loop take theirs once
        os.close(await open_path_in_thread(__file__, (), True, MAX))

    asyncio.run(warm_up())
    before = open_files()
    yield
    assert open_files() == before


def content(fd: int) -> bytes:
    """What a descriptor holds, which is closed."""
    try:
        return os.pread(fd, MAX * 4, 0)
    finally:
        os.close(fd)


def refused(path: Path | str, roots: tuple[str, ...] = (), relative_allowed: bool = False, max_bytes: int = MAX) -> str:
    """The kind of error that opening ends in."""
    with pytest.raises(WhisperdError) as caught:
        open_path(str(path), roots, relative_allowed, max_bytes)
    assert len(caught.value.message) < 5000
    return caught.value.kind


def spooled(data: str, max_bytes: int = MAX * 8) -> bytes:
    """What base64 becomes."""
    return content(asyncio.run(spool_base64(data, max_bytes)))


# -- paths -------------------------------------------------------------------------------------------------------


def test_a_regular_file_is_opened_for_reading(tmp_path: Path) -> None:
    """Close-on-exec, from its start."""
    file = tmp_path / "a b.flac"
    file.write_bytes(b"audio")
    fd = open_path(str(file), (), False, MAX)
    assert not os.get_inheritable(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(fd, b"x")
    assert content(fd) == b"audio"


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    """Neither is one below a file."""
    (tmp_path / "file").touch()
    assert refused(tmp_path / "missing.flac") == "audio_not_found"
    assert refused(tmp_path / "file" / "below") == "audio_not_found"


def test_what_is_no_regular_file_is_unreadable_and_nobody_waits_for_it(tmp_path: Path) -> None:
    """Opening a FIFO waits for a writer, opening a device may do anything: neither is opened."""
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock"))
        for path in (tmp_path, tmp_path / "fifo", tmp_path / "sock", "/dev/zero", "/proc/self/fd"):
            assert refused(path) == "audio_unreadable"


def test_a_name_that_the_system_refuses_is_unreadable(tmp_path: Path) -> None:
    """Too long, or a link to itself."""
    (tmp_path / "loop").symlink_to("loop")
    assert refused(tmp_path / "loop") == "audio_unreadable"
    assert refused(tmp_path / ("x" * 300)) == "audio_unreadable"


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    """The daemon's own rights decide."""
    file = tmp_path / "secret"
    file.touch(0o000)
    assert refused(file) == "audio_unreadable"


def test_relative_paths_are_for_stdio_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the parent knows the daemon's working directory; a socket client is told to send an absolute one."""
    (tmp_path / "a.wav").write_bytes(b"audio")
    monkeypatch.chdir(tmp_path)
    assert refused("a.wav") == "invalid_params"
    assert content(open_path("a.wav", (), True, MAX)) == b"audio"


def test_a_file_over_the_limit_is_too_long(tmp_path: Path) -> None:
    """One of exactly the limit is not."""
    file = tmp_path / "long"
    file.write_bytes(b"12345")
    assert refused(file, max_bytes=4) == "audio_too_long"
    assert content(open_path(str(file), (), False, 5)) == b"12345"


# -- allowed folders ---------------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """An allowed folder and one beside it, each with a file, and links between them."""
    for name in ("allowed", "allowed-not", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").write_bytes(name.encode())
    (tmp_path / "allowed" / "out.wav").symlink_to(tmp_path / "other" / "a.wav")
    (tmp_path / "allowed" / "door").symlink_to(tmp_path / "other")
    (tmp_path / "allowed" / "in.wav").symlink_to("a.wav")
    (tmp_path / "entrance").symlink_to(tmp_path / "allowed")
    return tmp_path


@pytest.mark.parametrize("name", ["allowed/a.wav", "allowed/in.wav", "other/../allowed/a.wav", "entrance/a.wav"])
def test_files_in_allowed_folders_are_opened(house: Path, name: str) -> None:
    """Whatever way leads there."""
    assert content(open_path(str(house / name), (str(house / "allowed"),), False, MAX)) == b"allowed"


@pytest.mark.parametrize(
    "name", ["other/a.wav", "allowed/out.wav", "allowed/door/a.wav", "allowed/../other/a.wav", "allowed-not/a.wav"]
)
def test_files_elsewhere_are_forbidden_whatever_they_are_called(house: Path, name: str) -> None:
    """Links and dots are followed first, and a folder whose name begins alike is another folder."""
    assert refused(house / name, (str(house / "allowed"),)) == "forbidden"


def test_an_allowed_folder_may_be_a_link_itself(house: Path) -> None:
    """What counts is where it leads."""
    assert content(open_path(str(house / "allowed" / "a.wav"), (str(house / "entrance"),), False, MAX)) == b"allowed"


def test_one_of_several_folders_is_enough(house: Path) -> None:
    """They are alternatives."""
    roots = (str(house / "nowhere"), str(house / "other"))
    assert content(open_path(str(house / "other" / "a.wav"), roots, False, MAX)) == b"other"
    assert refused(house / "allowed" / "a.wav", roots) == "forbidden"


# -- opening in a thread -----------------------------------------------------------------------------------------


def test_a_caller_that_gives_up_leaks_no_descriptor(tmp_path: Path) -> None:
    """Cancelled while the thread is opening: what it opens is closed."""
    file = tmp_path / "a.wav"
    file.write_bytes(b"audio")

    async def give_up() -> None:
        loop = asyncio.get_running_loop()
        for steps in range(40):
            opening = loop.create_task(open_path_in_thread(str(file), (), False, MAX))
            for _ in range(steps % 4):
                await asyncio.sleep(0)
            opening.cancel()
            try:
                os.close(await opening)
            except asyncio.CancelledError:
                continue
        while stuck():  # a thread has one in hand still
            await asyncio.sleep(0)

    async def main() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await give_up()

    asyncio.run(main())


def test_errors_come_through_the_thread(tmp_path: Path) -> None:
    """With their kinds."""
    with pytest.raises(WhisperdError, match="no file") as caught:
        asyncio.run(open_path_in_thread(str(tmp_path / "missing"), (), False, MAX))
    assert caught.value.kind == "audio_not_found"


# -- descriptors -------------------------------------------------------------------------------------------------


def memory_file(data: bytes) -> int:
    """A descriptor to read these bytes from."""
    fd = os.memfd_create("test")
    os.write(fd, data)
    return fd


def checked(fd: int, max_bytes: int = MAX) -> WhisperdError:
    """What a passed descriptor is refused with."""
    with pytest.raises(WhisperdError) as caught:
        check_fd(fd, max_bytes)
    return caught.value


def test_a_passed_descriptor_becomes_one_of_ours() -> None:
    """The client's own may be closed; ours is not inherited by workers."""
    theirs = [memory_file(b"first"), memory_file(b"second")]
    ours = take_fd(theirs, 1)
    for fd in theirs:
        os.close(fd)
    assert not os.get_inheritable(ours)
    check_fd(ours, MAX)
    assert content(ours) == b"second"


def test_a_descriptor_that_did_not_come_is_invalid_params() -> None:
    """With a pointer to its number."""
    with pytest.raises(WhisperdError, match="0 descriptors came") as caught:
        take_fd([], 0)
    assert (caught.value.kind, caught.value.data["pointer"]) == ("invalid_params", "/audio/fd")


def test_pipes_sockets_and_folders_are_invalid_params(tmp_path: Path) -> None:
    """They cannot be read twice, or at all."""
    ends = [*os.pipe(), *(sock.detach() for sock in socket.socketpair()), os.open(tmp_path, os.O_RDONLY)]
    for fd in ends:
        error = checked(fd)
        assert (error.kind, error.data["pointer"]) == ("invalid_params", "/audio/fd")
        assert "regular file" in error.message
        os.close(fd)


def test_a_descriptor_that_cannot_be_read_is_invalid_params(tmp_path: Path) -> None:
    """Open for writing only, or as a mere name."""
    file = tmp_path / "clip"
    file.write_bytes(b"audio")
    for flags in (os.O_WRONLY, os.O_PATH):
        fd = os.open(file, flags)
        error = checked(fd)
        assert (error.kind, error.data["pointer"]) == ("invalid_params", "/audio/fd")
        os.close(fd)


def test_a_descriptor_of_a_file_over_the_limit_is_too_long() -> None:
    """The same limit as for paths; one of exactly the limit is not."""
    fd = memory_file(b"12345")
    assert checked(fd, 4).kind == "audio_too_long"
    check_fd(fd, 5)
    os.close(fd)


def test_a_file_in_memory_is_checked_at_once() -> None:
    """It cannot hang, so no thread is asked; what is wrong with it is told all the same."""

    async def main() -> None:
        fd = memory_file(b"12345")
        checking = check_fd_in_thread(fd, MAX)
        with pytest.raises(StopIteration):
            checking.send(None)  # it has come to its end without waiting for anything
        with pytest.raises(WhisperdError, match="more than max_audio_bytes"):
            await check_fd_in_thread(fd, 4)
        os.close(fd)

    asyncio.run(main())


def test_a_descriptor_is_checked_in_a_thread_whatever_becomes_of_the_caller(tmp_path: Path) -> None:
    """It looks at a duplicate: the caller may close its own at once, and a caller that gives up leaks nothing."""

    async def main() -> None:
        (tmp_path / "clip").write_bytes(b"12345")
        fd = os.open(tmp_path / "clip", os.O_RDONLY)
        await check_fd_in_thread(fd, MAX)
        with pytest.raises(WhisperdError, match="more than max_audio_bytes"):
            await check_fd_in_thread(fd, 4)
        for steps in range(20):
            checking = asyncio.get_running_loop().create_task(check_fd_in_thread(fd, MAX))
            for _ in range(steps % 4):
                await asyncio.sleep(0)
            checking.cancel()
            await asyncio.wait({checking})
        os.close(fd)
        while stuck():
            await asyncio.sleep(0)

    asyncio.run(main())


# -- shortage ----------------------------------------------------------------------------------------------------


def test_a_shortage_of_the_machine_is_nobody_s_fault_and_passes() -> None:
    """Descriptors, memory and room on the disk; anything else is what it is."""
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC):
        short = shortage(OSError(number, os.strerror(number)))
        assert short is not None
        assert (short.kind, short.retryable, short.data["retry_after_ms"]) == ("overloaded", True, 1000)
    assert shortage(OSError(errno.EIO, "")) is None
    assert shortage(ValueError()) is None


def test_without_free_descriptors_the_request_is_told_to_come_back(tmp_path: Path) -> None:
    """By path and by descriptor; and when some are free again, it works."""
    file = tmp_path / "clip"
    file.write_bytes(b"audio")
    fd, limits = memory_file(b"audio"), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
    try:
        with pytest.raises(WhisperdError) as by_path:
            open_path(str(file), (), False, MAX)
        with pytest.raises(WhisperdError) as by_fd:
            take_fd([fd], 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (by_path.value.kind, by_fd.value.kind) == ("overloaded", "overloaded")
    os.close(take_fd([fd], 0))
    os.close(fd)


# -- base64 ------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_base64_comes_out_as_the_bytes_that_went_in(data: bytes) -> None:
    """In one piece, and wrapped into lines as `base64` does it."""
    assert spooled(base64.b64encode(data).decode()) == data
    assert spooled(base64.encodebytes(data).decode()) == data


@pytest.mark.parametrize("extra", [-4, -3, -1, 0, 1, 2, 3, 4])
def test_base64_is_whole_around_the_border_of_a_slice(extra: int) -> None:
    """Where padding might be mistaken for damage, or damage for padding."""
    data = os.urandom(SLICE // 4 * 3 + extra)
    assert spooled(base64.b64encode(data).decode()) == data
    assert spooled(base64.encodebytes(data).decode()) == data


def test_several_slices_are_put_together_in_order() -> None:
    """Three of them and a rest."""
    data = os.urandom(SLICE // 4 * 3 * 3 + 1000)
    assert spooled(base64.b64encode(data).decode()) == data


PADDED_WITHIN = base64.b64encode(b"x" * (SLICE // 4 * 3 - 1)).decode() + "AAAA"


@pytest.mark.parametrize(
    "data",
    [
        *("A", "AA", "AAA", "AA=", "A===", "====", "AA==AAAA"),
        *("AAAA*", "AAAA-_", "AAAAé", "data:;base64,AAAA", PADDED_WITHIN),
    ],
    ids=lambda data: data[:12],
)
def test_what_is_no_base64_is_invalid_params(data: str) -> None:
    """Missing or misplaced padding, other alphabets, a data URL; the audio itself is not in the message."""
    with pytest.raises(WhisperdError, match="not base64") as caught:
        spooled(data)
    assert (caught.value.kind, caught.value.data["pointer"]) == ("invalid_params", "/audio/data")
    assert len(caught.value.message) < 150


@settings(max_examples=50)
@given(st.text(alphabet="Aa0+/= \n-é", max_size=40))
def test_any_text_is_decoded_or_refused(data: str) -> None:
    """Nothing but invalid_params comes out."""
    try:
        spooled(data)
    except WhisperdError as error:
        assert error.kind == "invalid_params"  # noqa: PT017 - both outcomes are right


def test_base64_over_the_limit_is_refused_before_it_is_decoded() -> None:
    """The limit is on the decoded bytes."""
    assert spooled(base64.b64encode(b"x" * 300).decode(), max_bytes=300) == b"x" * 300
    with pytest.raises(WhisperdError) as caught:
        spooled(base64.b64encode(b"x" * 303).decode(), max_bytes=300)
    assert caught.value.kind == "audio_too_long"


def test_decoding_gives_way_to_others_between_slices() -> None:
    """64 MiB at one go would hold up every other client."""
    turns = 0

    async def main() -> None:
        nonlocal turns

        async def other() -> Any:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        busy = asyncio.get_running_loop().create_task(other())
        os.close(await spool_base64("A" * (SLICE * 5), MAX * 8))
        busy.cancel()

    asyncio.run(main())
    assert turns >= 4


def test_decoding_that_is_cancelled_leaves_nothing_open() -> None:
    """A client that vanishes while its audio is decoded."""

    async def main() -> None:
        spooling = asyncio.get_running_loop().create_task(spool_base64("A" * (SLICE * 3), MAX * 8))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        spooling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await spooling

    asyncio.run(main())

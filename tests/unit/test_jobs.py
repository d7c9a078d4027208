"""The life of a job is a table, and at its end everything that it held is given back."""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
from pathlib import Path

import pytest

from whisperd.jobs import MOVES, TERMINAL, IllegalMove, Job, Samples, State, Window, Work
from whisperd.messages import SAMPLE_RATE, DecodeOptions, RowOptions

# Written out a second time, from the contract: the code's table is checked against it, not against itself.
LEGAL = {
    ("RECEIVED", "ADMITTED"),
    ("RECEIVED", "FAILED"),
    ("RECEIVED", "CANCELLED"),
    ("ADMITTED", "PREPARING"),
    ("ADMITTED", "FAILED"),
    ("ADMITTED", "CANCELLED"),
    ("PREPARING", "QUEUED"),
    ("PREPARING", "DONE"),
    ("PREPARING", "FAILED"),
    ("PREPARING", "CANCELLED"),
    ("QUEUED", "RUNNING"),
    ("QUEUED", "FAILED"),
    ("QUEUED", "CANCELLED"),
    ("RUNNING", "DONE"),
    ("RUNNING", "FAILED"),
    ("RUNNING", "CANCELLED"),
}


def job(state: State = State.RECEIVED) -> Job:
    """A job of nobody, in this state."""
    work = Work("fake", DecodeOptions(), RowOptions(), {"path": "a"})
    return Job("j-1", None, 1, "transcribe", work, arrived=0.0, bytes_in=10, state=state)


def memory_file(data: bytes) -> int:
    """A descriptor to read these bytes from."""
    fd = os.memfd_create("test")
    os.write(fd, data)
    return fd


def is_open(fd: int) -> bool:
    """Whether the process still has this descriptor."""
    return Path(f"/proc/self/fd/{fd}").exists()


@pytest.mark.parametrize(("here", "there"), list(itertools.product(State, State)))
def test_a_job_moves_only_where_the_table_leads(here: State, there: State) -> None:
    """Every pair of states: the legal ones move, the others raise and leave the job where it was."""
    one = job(here)
    if (here.name, there.name) in LEGAL:
        one.move(there)
        assert one.state is there
    else:
        with pytest.raises(IllegalMove, match=f"{here.name} -> {there.name}"):
            one.move(there)
        assert one.state is here


def test_the_ends_are_final() -> None:
    """A job that is answered cannot be answered again."""
    assert {State.DONE, State.FAILED, State.CANCELLED} == TERMINAL
    for state in State:
        assert job(state).over == (state in TERMINAL)
        assert bool(MOVES[state]) != (state in TERMINAL)


def test_a_job_can_fail_or_be_cancelled_until_it_is_over() -> None:
    """Whatever happens at whatever moment has an end to go to."""
    for state in set(State) - TERMINAL:
        assert {State.FAILED, State.CANCELLED} <= MOVES[state]


def test_release_closes_what_the_job_holds() -> None:
    """The input and the samples; a second time closes nothing that is somebody else's by then."""
    one = job()
    one.fd, samples_fd = memory_file(b"input"), memory_file(b"")
    one.samples = Samples(samples_fd, 0)
    input_fd = one.fd
    one.release()
    assert not is_open(input_fd)
    assert not is_open(samples_fd)
    others = [memory_file(b""), memory_file(b"")]  # they get the numbers that have become free
    one.release()
    assert all(is_open(fd) for fd in others)
    for fd in others:
        os.close(fd)


def test_release_of_a_job_that_holds_nothing_does_nothing() -> None:
    """A job that is cancelled at once has neither descriptor nor task."""
    job().release()


def test_release_stops_the_timer_and_the_task() -> None:
    """Nothing of the job happens later."""

    async def main() -> None:
        one = job()
        loop = asyncio.get_running_loop()
        one.timer = timer = loop.call_later(60, lambda: None)
        one.task = task = loop.create_task(asyncio.Event().wait())  # type: ignore[arg-type]
        one.dispatcher = object()
        one.release()
        assert timer.cancelled()
        assert one.timer is one.task is one.dispatcher is None
        with pytest.raises(asyncio.CancelledError):
            await task
        done = loop.create_task(asyncio.sleep(0))
        await done
        one.task = done
        one.release()
        assert not done.cancelled()

    asyncio.run(main())


def test_samples_are_read_by_position() -> None:
    """Little-endian float32, the stop excluded; reading moves nothing."""
    samples = Samples(memory_file(struct.pack("<4f", 0.0, 0.5, -0.5, 1.0)), 4)
    assert struct.unpack("<2f", samples.read(1, 3)) == (0.5, -0.5)
    assert struct.unpack("<4f", samples.read(0, 4)) == (0.0, 0.5, -0.5, 1.0)
    samples.close()
    samples.close()
    assert samples.fd == -1


def test_a_window_is_as_long_as_its_audio() -> None:
    """The context around it is another matter."""
    assert Window(job(), 0, SAMPLE_RATE, 4 * SAMPLE_RATE, frames=1000).duration_s == 3.0


def test_jobs_and_windows_are_themselves() -> None:
    """Two that look alike are not the same: they are kept in sets and dictionaries."""
    one, other = job(), job()
    assert one != other
    assert len({one, other, Window(one, 0, 0, 1, 1), Window(one, 0, 0, 1, 1)}) == 4


def test_the_input_is_closed_once(tmp_path: Path) -> None:
    """When there are samples, and not again when the job ends."""
    one = job()
    one.fd = os.open(tmp_path, os.O_RDONLY)
    fd = one.fd
    one.close_input()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    again = os.open(tmp_path, os.O_RDONLY)  # gets the same number
    one.release()
    os.close(again)

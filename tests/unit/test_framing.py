"""Lines out of chunks, however the chunks were cut and whatever came with them."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisperd.framing import FDS_PER_LINE, Line, LineSplitter

LIMIT = 16

# Few different bytes, so that newlines, carriage returns and blanks meet in every way.
streams = st.lists(
    st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"\r", b" ", b"\n\n", b"x" * LIMIT, b"y" * (LIMIT + 1)]), max_size=40
).map(b"".join)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    """The stream in chunks that end at these places (counted modulo its length)."""
    edges = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    return [stream[start:stop] for start, stop in pairwise(edges)]


def split(chunks: list[bytes], limit: int = LIMIT) -> list[bytes | None]:
    """The lines of some chunks and the end of input; None for one over the limit."""
    splitter = LineSplitter(limit)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.finish()
    return [None if line.data is None else bytes(line.data) for line in lines]


def expected(stream: bytes, limit: int = LIMIT) -> list[bytes | None]:
    """The same by the plain rule: split at newlines, drop one carriage return, blank lines and what is too long."""
    lines: list[bytes | None] = []
    for line in stream.split(b"\n"):
        bare = line.removesuffix(b"\r")
        if len(bare) > limit:
            lines.append(None)
        elif bare.strip():
            lines.append(bare)
    return lines


@given(streams, st.lists(st.integers(0, 10_000), max_size=30))
def test_any_way_of_cutting_gives_the_same_lines(stream: bytes, places: list[int]) -> None:
    """Chunk borders mean nothing, not even between a carriage return and its newline."""
    assert split(cut(stream, places)) == expected(stream)


@given(streams)
def test_bytes_that_come_one_at_a_time_give_the_same_lines(stream: bytes) -> None:
    """The slowest sender is understood too."""
    assert split([stream[at : at + 1] for at in range(len(stream))]) == expected(stream)


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1])
@pytest.mark.parametrize("step", [1, 3, LIMIT, 100])
def test_the_limit_is_exact_and_leaves_line_endings_out(ending: bytes, size: int, step: int) -> None:
    """A line of exactly the limit passes with either ending, one byte more does not, in chunks of any size."""
    stream = b"z" * size + ending
    lines = split([stream[at : at + step] for at in range(0, len(stream), step)])
    assert lines == ([b"z" * size] if size <= LIMIT else [None])


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, LIMIT + 2])
def test_the_limit_is_exact_for_a_last_line_without_newline(size: int) -> None:
    """The end of input ends a line like a newline does."""
    assert split([b"z" * size]) == ([b"z" * size] if size <= LIMIT else [None])
    assert split([b"z" * size + b"\r"]) == ([b"z" * size] if size <= LIMIT else [None])


def test_a_line_that_is_too_long_is_reported_once_and_early_and_the_next_is_intact() -> None:
    """The report does not wait for the newline, and nothing of the long line leaks into the next."""
    splitter = LineSplitter(LIMIT)
    assert splitter.feed(b"z" * LIMIT) == []
    assert splitter.feed(b"zz") == [Line(None)]
    assert [splitter.feed(b"z" * 50) for _ in range(10)] == [[]] * 10
    assert splitter.feed(b"zz\nnext\n") == [Line(b"next")]
    assert splitter.finish() == []


def test_a_long_line_that_never_ends_is_reported_once() -> None:
    """The end of input inside a skipped line adds nothing."""
    assert split([b"z" * 1000]) == [None]


def test_a_carriage_return_inside_a_line_is_kept() -> None:
    """Only the one before the newline belongs to the ending."""
    assert split([b"a\rb\r\r\n"]) == [b"a\rb\r"]


def test_blank_lines_vanish() -> None:
    """Keep-alive newlines and lines of spaces cost nothing."""
    assert split([b"\n\r\n \t \n\n", b"a\n", b"\n"]) == [b"a"]


def test_a_last_line_without_newline_is_a_line() -> None:
    """`printf '{...}' | whisperd` works."""
    assert split([b"a\nb", b"c"]) == [b"a", b"bc"]


@given(st.lists(st.sampled_from([b"a", b"zzzzzzzz", b"\n", b"a\nb", b"\nzzz"]), max_size=200))
def test_what_is_kept_is_at_most_the_limit_and_a_chunk(chunks: list[bytes]) -> None:
    """The buffer is looked at after every chunk."""
    splitter = LineSplitter(LIMIT)
    for chunk in chunks:
        splitter.feed(chunk)
        assert len(splitter._partial) <= LIMIT + len(chunk)


def test_a_gigabyte_line_takes_the_memory_of_a_chunk() -> None:
    """What allocators saw at worst, over 1 GiB in chunks of 1 MiB, stays near the limit."""
    splitter = LineSplitter(4 << 20)
    chunk = b"z" * (1 << 20)
    tracemalloc.start()
    try:
        lines = [line for _ in range(1024) for line in splitter.feed(chunk)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lines == [Line(None)]
    assert peak < 8 << 20


def test_a_long_line_is_handed_out_without_a_copy() -> None:
    """Carriage return and blank test do not double the memory of a line of audio."""
    splitter = LineSplitter(64 << 20)
    chunk = b"z" * (1 << 20)
    tracemalloc.start()
    try:
        for _ in range(32):
            splitter.feed(chunk)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        (line,) = splitter.feed(b"\r\n")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert line.data is not None
    assert len(line.data) == 32 << 20
    assert peak - before < 1 << 20


def test_a_handed_out_line_is_not_touched_by_later_input() -> None:
    """The buffer of a line belongs to whoever got it."""
    splitter = LineSplitter(LIMIT)
    splitter.feed(b"fir")
    (line,) = splitter.feed(b"st\nsecond")
    splitter.feed(b" line\n")
    assert line.data == b"first"


# -- descriptors, modelled as integers ---------------------------------------------------------------------------


def test_descriptors_belong_to_the_line_with_the_chunk_s_last_byte() -> None:
    """Lines that end before it were sent by calls without descriptors."""
    splitter = LineSplitter(LIMIT)
    assert splitter.feed(b"one\ntwo\n", [7]) == [Line(b"one"), Line(b"two", [7])]
    assert splitter.feed(b"three\nfo", [8, 9]) == [Line(b"three")]
    assert splitter.feed(b"ur\nfive\n") == [Line(b"four", [8, 9]), Line(b"five")]


def test_a_blank_line_with_descriptors_is_handed_out_for_them_to_be_closed() -> None:
    """It has no meaning, but its descriptors must not stay open."""
    assert LineSplitter(LIMIT).feed(b"\n", [5]) == [Line(b"", [5])]
    splitter = LineSplitter(LIMIT)
    splitter.feed(b"  ", [5])
    assert splitter.finish() == [Line(b"  ", [5])]


def test_descriptors_of_a_line_that_is_too_long_come_out_with_its_report() -> None:
    """Found out early or late: whoever gets the report closes them."""
    early = LineSplitter(LIMIT)
    assert early.feed(b"z" * (LIMIT + 2), [5]) == [Line(None, [5])]
    late = LineSplitter(LIMIT)
    assert late.feed(b"z" * (LIMIT + 1), [5]) == []
    assert late.feed(b"\n", [6]) == [Line(None, [5, 6])]


def test_descriptors_that_come_in_a_skipped_line_come_out_at_once() -> None:
    """A line that never ends cannot collect the daemon's descriptors."""
    splitter = LineSplitter(LIMIT)
    splitter.feed(b"z" * (LIMIT + 2))
    assert splitter.feed(b"zz", [5, 6]) == [Line(b"", [5, 6])]
    assert splitter.feed(b"zz\n", [7]) == [Line(b"", [7])]
    assert splitter.feed(b"ok\n", [8]) == [Line(b"ok", [8])]


def test_a_line_keeps_only_as_many_descriptors_as_it_may_carry() -> None:
    """A client that dribbles a line with four descriptors on each byte gets the first four, the rest is closed."""
    splitter = LineSplitter(LIMIT)
    assert splitter.feed(b"a", [1, 2, 3, 4]) == []
    assert splitter.feed(b"b", [5, 6, 7, 8]) == [Line(b"", [5, 6, 7, 8])]
    assert splitter.feed(b"\n") == [Line(b"ab", [1, 2, 3, 4])]


def test_descriptors_of_an_unfinished_line_are_given_back_when_the_connection_is_gone() -> None:
    """The transport closes them."""
    splitter = LineSplitter(LIMIT)
    splitter.feed(b"half", [3, 4])
    assert splitter.abandon() == [3, 4]
    assert splitter.finish() == []


@given(
    st.lists(
        st.tuples(st.sampled_from([b"a", b"\n", b"a\nb", b"\r\n", b"z" * (LIMIT + 2), b" \n"]), st.integers(0, 4)),
        max_size=60,
    ),
    st.booleans(),
)
def test_no_descriptor_is_lost_or_doubled(sends: list[tuple[bytes, int]], vanishes: bool) -> None:
    """Every one comes out exactly once, in the order of arrival, and few are held back."""
    splitter = LineSplitter(LIMIT)
    came: list[int] = []
    out: list[int] = []
    for chunk, count in sends:
        fds = list(range(len(came), len(came) + count))
        came += fds
        for line in splitter.feed(chunk, fds):
            out += line.fds
        assert len(came) - len(out) <= FDS_PER_LINE
    if vanishes:
        out += splitter.abandon()
    else:
        for line in splitter.finish():
            out += line.fds
    assert sorted(out) == came

"""Log lines: their form, that nobody can forge or steer with them, and that they never hold up the daemon."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisperd.log import LINE_MAX_BYTES, log, setup

# What a client could put into a path, an id or a model's name, to forge a line of ours or steer a terminal.
HOSTILE = [
    "a\n2025-01-01T00:00:00.000Z CRITICAL forged",
    "a\r\nb",
    "\x1b[2J\x1b[31mred",
    "\x9b31m",
    "\u2028line\u2029paragraph\x85next",
    "\u202ereversed",
    'quote" level=ERROR x="',
    "back\\slash\\n",
    "\udcff undecodable",
    "\U000e0001 tag",
    "\x00",
]
hostile_text = st.sampled_from(HOSTILE) | st.text(max_size=60)


class Undecorated(io.StringIO):
    """A stream without a descriptor, which keeps what was written."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


@pytest.fixture(autouse=True)
def _restore_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    yield
    log.remove()


def written(format: str = "text", level: str = "INFO") -> Undecorated:
    stream = Undecorated()
    setup(level, format, stream)
    return stream


def test_a_text_line_has_time_level_message_and_fields() -> None:
    """In this order, with plain values bare."""
    stream = written()
    log.info("request finished", job="j1", client="stdio", total_ms=12.5, ok=True, model=None)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO     request finished "
        r"job=j1 client=stdio total_ms=12\.5 ok=true model=null\n",
        stream.getvalue(),
    )


def test_a_json_line_is_one_object_with_the_fields_beside_the_message() -> None:
    """Numbers stay numbers; bound fields are there too."""
    stream = written("json")
    log.bind(client="stdio").warning("request refused", job="j1", total_ms=12.5, model=None)
    line = orjson.loads(stream.getvalue())
    assert re.fullmatch(r"[\d-]{10}T[\d:.]{12}Z", line.pop("time"))
    assert line == {
        "level": "WARNING",
        "message": "request refused",
        "client": "stdio",
        "job": "j1",
        "total_ms": 12.5,
        "model": None,
    }


@given(hostile_text, hostile_text)
def test_no_field_forges_a_text_line(name: str, value: str) -> None:
    """Whatever the field is called and holds: one line, printable, with our own fields still to be read."""
    stream = written()
    log.info("request finished", **{f"x{name}": value}, job="j1")
    line = stream.getvalue()
    assert line.endswith(" job=j1\n")
    assert line[:-1].isprintable()
    assert len(re.findall(r'(?:[^\s"]|"(?:[^"\\]|\\.)*")+', line)) == 6  # time, level, two words, two fields


@given(hostile_text, hostile_text)
def test_no_field_forges_a_json_line(name: str, value: str) -> None:
    """One printable line, whose object gives the value back (surrogates, which UTF-8 lacks, escaped)."""
    stream = written("json")
    log.info("request finished", **{f"x{name}": value}, job="j1")
    line = stream.getvalue()
    assert line[:-1].isprintable()
    shown = orjson.loads(line)
    assert (shown["level"], shown["message"], shown["job"]) == ("INFO", "request finished", "j1")
    assert shown["x" + name.encode("utf-8", "backslashreplace").decode()] == value.encode(
        "utf-8", "backslashreplace"
    ).decode()


def test_a_field_cannot_replace_the_level_or_the_message() -> None:
    """A field of the same name gets another."""
    stream = written("json")
    log.bind(level="CRITICAL", message="forged", time="never").info("request finished")
    shown = orjson.loads(stream.getvalue())
    assert (shown["level"], shown["message"]) == ("INFO", "request finished")
    assert (shown["level_"], shown["message_"], shown["time_"]) == ("CRITICAL", "forged", "never")


@pytest.mark.parametrize("value", [2**70, float("nan"), {"a": [1]}, b"\xff\n", object])
def test_any_value_can_be_shown(value: object) -> None:
    """What JSON cannot carry is shown as text or null."""
    stream = written("json")
    log.info("odd", value=value)
    assert "value" in orjson.loads(stream.getvalue())


def test_a_long_value_is_cut_and_says_by_how_much() -> None:
    """A base64 file in the wrong field does not fill the disk."""
    stream = written("json")
    log.info("odd", value="x" * 10_000)
    assert orjson.loads(stream.getvalue())["value"] == "x" * 500 + "…(+9500 characters)"


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize("count", [1, 12, 60, 500])
def test_a_line_never_outgrows_a_pipes_atomic_write(format: str, count: int) -> None:
    """With more and longer fields the values get shorter, at last the fields are only counted."""
    stream = written(format)
    log.info("odd", **{f"field_{i}": "é\n" * 300 for i in range(count)})
    line = stream.getvalue()
    assert len(line.encode()) <= LINE_MAX_BYTES
    assert line.endswith("\n")
    if format == "json":
        assert orjson.loads(line)["message"] == "odd"
    if count == 500:
        assert "fields_left_out" in line


def test_an_exception_stays_on_one_line_with_its_last_frames() -> None:
    """Its message may quote a client, its frames are ours; variables are not shown."""
    secret = "what was said"
    stream = written()
    try:
        raise ValueError(f"bad\nvalue {len(secret)}")
    except ValueError:
        log.exception("request failed", job="j1")
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert r'error="ValueError: bad\nvalue 13"' in line
    assert "test_log.py:" in line
    assert secret not in line


def test_levels_below_the_chosen_one_are_silent() -> None:
    """And the level's case does not matter."""
    stream = written(level="warning")
    log.info("not this")
    log.error("but this")
    assert "not this" not in stream.getvalue()
    assert "but this" in stream.getvalue()


@pytest.mark.parametrize(("level", "format"), [("LOUD", "text"), ("INFO", "xml")])
def test_an_unknown_level_or_format_is_refused_with_the_known_ones(level: str, format: str) -> None:
    """So that a mistake in the configuration is seen at start."""
    with pytest.raises(ValueError, match=r"there are (TRACE|text)"):
        setup(level, format)


def test_a_second_setup_replaces_the_first() -> None:
    """No line is written twice."""
    first = written()
    second = written()
    log.info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


def test_a_reader_that_never_reads_costs_lines_and_no_time() -> None:
    """A parent with a full stderr pipe: what does not fit is lost, counted, and told once there is room."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as read_end, os.fdopen(writer, "w") as stream:
        setup("INFO", "text", stream)
        for number in range(2000):  # far more than a pipe of 64 KiB holds
            log.info("request finished", number=number, value="x" * 100)
        held = read_end.read(1024 * 1024).decode().splitlines()
        log.info("after")
        last = read_end.read(1024 * 1024).decode()
    assert len(held) < 2000
    assert [f"number={i} " in line for i, line in enumerate(held)] == [True] * len(held)
    assert last.endswith(f"after lines_lost={2000 - len(held)}\n")


def test_a_reader_that_went_away_is_no_error() -> None:
    """The daemon goes on without its log."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        setup("INFO", "text", stream)
        log.info("into the void")
        closed = Undecorated()
        closed.close()
        setup("INFO", "text", closed)
        log.info("into a closed file")
        after = written()
        log.info("and on")
    assert "and on" in after.getvalue()


@pytest.mark.parametrize(("format", "begins"), [("text", "<4>WARNING  slow"), ("json", '<4>{"level":')])
def test_under_systemd_lines_carry_a_priority_and_no_time(
    format: str, begins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal has its own clock; it is known by the device and inode of the stream."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as read_end, os.fdopen(writer, "w") as stream:
        status = os.fstat(writer)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        setup("INFO", format, stream)
        log.warning("slow", job="j1")
        line = read_end.read(4096).decode()
    assert line.startswith(begins)


def test_a_variable_inherited_from_systemd_does_not_make_a_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon spawned with a pipe of its own inside a unit writes plain lines."""
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as read_end, os.fdopen(writer, "w") as stream:
        setup("INFO", "text", stream)
        log.warning("slow")
        line = read_end.read(4096).decode()
    assert re.match(r"\d{4}-", line)


def test_stdout_stays_empty() -> None:
    """Protocol lines only, also while something goes wrong in a field."""
    code = (
        "from whisperd.log import log, setup\n"
        "class Bad:\n"
        "    def __str__(self): raise RuntimeError('no text')\n"
        "setup('TRACE'); log.info('fine', a=1); log.critical('bad', b=Bad()); log.info('still fine')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "INFO     fine a=1" in done.stderr
    assert "INFO     still fine" in done.stderr

"""Logs: one line on stderr per event, a static message with fields, which nothing a client sends can forge.

The convention is loguru's own: `log.info("request finished", job=job, client=client)`. The message is a
constant of our code, so that lines can be counted by it; what varies is a field. Fields are escaped until a
line holds only printable characters, and cut, so that neither a newline nor a terminal's control sequence
comes through. No transcript text belongs in a field.

A line is at most PIPE_BUF bytes and is written only when stderr takes it: a parent that never reads its
child's stderr loses lines, which are counted, and does not bring the daemon to a standstill. Nothing here
touches stdout.
"""

from __future__ import annotations

import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC
from typing import TYPE_CHECKING, Any, TextIO

import orjson
from loguru import logger as log

if TYPE_CHECKING:
    from loguru import Message, Record

__all__ = ["LEVELS", "log", "setup"]

LEVELS = ("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LINE_MAX_BYTES = select.PIPE_BUF  # 4096 on Linux: written whole, and never waited for once poll says so
_VALUE_MAX_CHARS = (500, 100, 20)  # tried in this order until the line fits
_TRACE_FRAMES = 5
_PRIORITIES = {"CRITICAL": 2, "ERROR": 3, "WARNING": 4, "SUCCESS": 5, "INFO": 6, "DEBUG": 7, "TRACE": 7}
_PLAIN_VALUE = re.compile(r"[^\s\"'=\\]+")

Fields = dict[str, Any]
Render = Callable[[str, str, str, Fields], str]


def setup(level: str = "INFO", format: str = "text", stream: TextIO | None = None) -> None:
    """Sends log lines to `stream` (stderr), replacing what was set up before; every process calls it once.

    level: a name of LEVELS, in any case. format: "text" or "json". Raises ValueError for another.
    Under systemd (stderr is the journal) lines begin with the priority that it reads, and it adds the time.
    """
    if level.upper() not in LEVELS:
        raise ValueError(f"{level!r} is no log level; there are {', '.join(LEVELS)}")
    renderers: dict[str, Render] = {"text": _text, "json": _json}
    if format not in renderers:
        raise ValueError(f"{format!r} is no log format; there are {', '.join(renderers)}")
    stream = sys.stderr if stream is None else stream
    sink = _Sink(stream, renderers[format], journal=_is_journal(stream, os.environ))
    log.remove()
    # diagnose would print the values of variables, and so transcripts; enqueue would lose the last lines.
    log.add(sink, level=level.upper(), format="{message}", colorize=False, backtrace=False, diagnose=False)


class _Sink:
    """Writes whole lines, or counts them as lost and says so with the next line that gets through."""

    def __init__(self, stream: TextIO, render: Render, journal: bool) -> None:
        self._stream = stream
        self._render = render
        self._journal = journal
        self._lost = 0

    def __call__(self, message: Message) -> None:
        record = message.record
        fields = _fields_of(record)
        if self._lost:
            fields["lines_lost"] = self._lost
        priority = f"<{_PRIORITIES.get(record['level'].name, 6)}>" if self._journal else ""
        time = "" if self._journal else _utc(record)
        if _write(self._stream, self._line(priority, time, record, fields)):
            self._lost = 0
        else:
            self._lost += 1

    def _line(self, priority: str, time: str, record: Record, fields: Fields) -> bytes:
        level, message = record["level"].name, record["message"]
        for limit in _VALUE_MAX_CHARS:
            shown = {_cut(name, limit): _limited(value, limit) for name, value in fields.items()}
            line = f"{priority}{self._render(time, level, _cut(message, limit), shown)}\n".encode()
            if len(line) <= LINE_MAX_BYTES:
                return line
        few = {"fields_left_out": len(fields)}
        return f"{priority}{self._render(time, level, _cut(message, limit), few)}\n".encode()


def _write(stream: TextIO, line: bytes) -> bool:
    """False when the line was not written: the reader is slow or gone, or the disk is full."""
    try:
        fd = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return _write_to_object(stream, line)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        if not poll.poll(0):
            return False
        return os.write(fd, line) == len(line)
    except OSError:
        return False


def _write_to_object(stream: TextIO, line: bytes) -> bool:
    """For a stream without a descriptor, as tests and embedding programs pass; a closed one takes nothing."""
    try:
        stream.write(line.decode())
    except (OSError, ValueError):
        return False
    return True


def _text(time: str, level: str, message: str, fields: Fields) -> str:
    shown = [f"{_text_value(name)}={_text_value(value)}" for name, value in fields.items()]
    return " ".join([*([time] if time else []), f"{level:<8}", _printable(message), *shown])


def _json(time: str, level: str, message: str, fields: Fields) -> str:
    head = {**({"time": time} if time else {}), "level": level, "message": message}
    body = {f"{name}_" if name in head else name: value for name, value in fields.items()}
    # JSON escapes only the first 32 control characters; the others could still steer a terminal.
    return _printable(orjson.dumps(head | body).decode())


def _text_value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return orjson.dumps(value).decode()
    text = str(value)
    if text.isalnum() and text.isascii():
        return text
    if _PLAIN_VALUE.fullmatch(text) and text.isprintable():
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{_printable(escaped)}"'


def _printable(text: str) -> str:
    """Control, bidirectional and unassigned characters, surrogates and line separators become \\u escapes.

    Valid inside JSON strings too: beyond the first 65,536 characters they become pairs, as JSON wants it.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def _limited(value: Any, limit: int) -> Any:
    """A value that both formats can show. Surrogates, as in undecodable file names, are shown escaped."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    return _cut(str(value), limit)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit and text.isascii():
        return text
    if len(text) > limit:
        text = f"{text[:limit]}…(+{len(text) - limit} characters)"
    return text.encode("utf-8", "backslashreplace").decode()


def _fields_of(record: Record) -> Fields:
    fields = dict(record["extra"])
    if (exception := record["exception"]) is not None and exception.type is not None:
        fields["error"] = f"{exception.type.__name__}: {exception.value}"
        frames = traceback.extract_tb(exception.traceback)[-_TRACE_FRAMES:]
        fields["trace"] = " < ".join(
            f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}"  # noqa: PTH119 -- of any text
            for frame in reversed(frames)
        )
    return fields


def _utc(record: Record) -> str:
    return record["time"].astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """systemd names the device and inode of the journal's stream; inherited by others, they do not match."""
    named = environ.get("JOURNAL_STREAM")
    if not named:
        return False
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return named == f"{status.st_dev}:{status.st_ino}"

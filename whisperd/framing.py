"""Bytes into lines, in memory bounded by the line limit. Does no I/O.

The rule that keeps it honest: every byte is looked at once, and what is kept is never more than the limit plus
one chunk. A line that outgrows the limit is reported when it is found out, then skipped to its newline without
being kept. It does not know what a line means.

Descriptors (`fds`) that arrived with a chunk belong to the line that holds the chunk's last byte: the kernel
ends a read behind the buffer that carried descriptors, and a client sends one line per sendmsg. Descriptors of a
line that is too long, and those beyond what a line may carry, come out at once on a line of their own, to be closed:
a line that never ends must not collect them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

FDS_PER_LINE = 4  # by the contract


@dataclass(slots=True)
class Line:
    """One line without its newline; `data` is None where the line was over the limit and thrown away."""

    data: bytes | bytearray | None
    fds: list[int] = field(default_factory=list)


class LineSplitter:
    """Feed it chunks, get lines. Blank lines vanish, unless descriptors came with them."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._partial = bytearray()
        self._skipping = False
        self._fds: list[int] = []

    def feed(self, chunk: bytes, fds: Sequence[int] = ()) -> list[Line]:
        """The lines that this chunk completes."""
        lines: list[Line] = []
        start = 0
        while (newline := chunk.find(b"\n", start)) != -1:
            self._end_line(lines, chunk, start, newline, fds if newline == len(chunk) - 1 else ())
            start = newline + 1
        if start < len(chunk):
            self._fds.extend(fds)
            if not self._skipping:
                self._partial += memoryview(chunk)[start:]
                if len(self._partial) > self.max_bytes + 1:  # + 1: a trailing \r does not count
                    self._overflow(lines)
            kept = 0 if self._skipping else FDS_PER_LINE
            if len(self._fds) > kept:
                lines.append(Line(b"", self._fds[kept:]))
                del self._fds[kept:]
        return lines

    def finish(self) -> list[Line]:
        """At end of input: the unterminated last line, if there is one."""
        lines: list[Line] = []
        if self._partial or self._fds:
            self._end_line(lines, b"", 0, 0, ())
        return lines

    def abandon(self) -> list[int]:
        """The connection is gone: descriptors whose line never came whole, for the caller to close."""
        self._partial = bytearray()
        return self._take_fds()

    def _overflow(self, lines: list[Line]) -> None:
        self._partial = bytearray()
        self._skipping = True
        lines.append(Line(None, self._take_fds()))

    def _end_line(self, lines: list[Line], chunk: bytes, start: int, end: int, fds: Sequence[int]) -> None:
        self._fds.extend(fds)
        if self._skipping:
            self._skipping = False
            if self._fds:
                lines.append(Line(b"", self._take_fds()))
            return
        data: bytes | bytearray
        if self._partial:
            self._partial += memoryview(chunk)[start:end]
            data, self._partial = self._partial, bytearray()
        else:
            data = chunk[start:end]
        if data.endswith(b"\r"):
            data = data[:-1] if isinstance(data, bytes) else _without_last(data)
        if len(data) > self.max_bytes:
            lines.append(Line(None, self._take_fds()))
        elif self._fds or (data and not data.isspace()):  # strip would copy a long line
            lines.append(Line(data, self._take_fds()))

    def _take_fds(self) -> list[int]:
        taken, self._fds = self._fds, []
        return taken


def _without_last(data: bytearray) -> bytearray:
    """Drops the last byte in place: a copy would double the memory of a long line."""
    del data[-1]
    return data

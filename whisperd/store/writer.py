"""The store: one row per finished request, written by one thread, and never in a request's way.

`record_request` puts a row into a bounded queue and returns; the writer thread takes what has gathered, at the
latest after a second, and commits it at once. A row leaves the queue when it is on disk and not before, so a
locked file or a full disk costs nothing while the queue has room, and afterwards the newest rows, which are
counted. The store may be broken from start to end: its state says why, opening is tried again, and
transcription goes on. No transcript text and no path of a client gets in here.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import deque
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from whisperd.log import log
from whisperd.store.file import FILE_NAME, StoreFile, StoreRefused, WrittenElsewhere, is_corrupt

if TYPE_CHECKING:
    from sqlite_utils import Database

_FIRST_OPEN_S = 5.0  # how long start-up waits to learn whether the store works
_TRIM_S = 300.0  # retention is looked at this often
_TRIM_ROWS = 500  # deleted in one transaction: some milliseconds
_DAY_S = 86_400.0

_BAD_ROW = (sqlite3.IntegrityError, sqlite3.ProgrammingError, OverflowError, UnicodeEncodeError)


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A finished request. `ts`: seconds since 1970, at its end; `outcome`: "ok" or the error's kind."""

    ts: float
    job: str
    client: str
    method: str
    outcome: str
    uid: int | None = None
    model: str | None = None
    language: str | None = None
    duration_s: float | None = None
    speech_s: float | None = None
    windows: int | None = None
    queue_ms: float | None = None
    media_ms: float | None = None
    vad_ms: float | None = None
    infer_ms: float | None = None
    total_ms: float | None = None
    rtf: float | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None


_COLUMNS = tuple(field.name for field in fields(RequestRow))
_VALUES = attrgetter(*_COLUMNS)
_INSERT = f"INSERT INTO requests ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_TRIM_BY_AGE = "DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE ts < ? ORDER BY ts LIMIT ?)"
_TRIM_BY_NUMBER = (
    "DELETE FROM requests WHERE id IN (SELECT id FROM requests "
    "WHERE id <= (SELECT max(id) FROM requests) - ? ORDER BY id LIMIT ?)"
)


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Bounds of the store; the defaults keep the file under about 150 MB (113 bytes a row)."""

    retention_days: float = 90.0
    rows_max: int = 1_000_000  # 11 days at one request a second
    queue_max: int = 4096  # over an hour of a broken store at one request a second, in about 3 MB
    flush_rows: int = 256
    flush_s: float = 1.0
    retry_s: float = 15.0


@dataclass(frozen=True, slots=True)
class StoreState:
    """`reason` tells why it is not ok. `elsewhere`: another daemon writes this file, which is no fault of it.

    dropped: rows lost since start; queued: rows not yet on disk; set_aside: the last file found corrupt.
    """

    ok: bool
    reason: str | None
    dropped: int
    queued: int = 0
    elsewhere: bool = False
    set_aside: Path | None = None


class Store:
    """Start it with `Store.open` or `Store.begin`. All methods may be called from any thread."""

    def __init__(self, path: Path, limits: StoreLimits) -> None:
        self._file = StoreFile(path / FILE_NAME if path.is_dir() else path)
        self._limits = limits
        self._rows: deque[RequestRow] = deque()
        self._recorded = 0  # rows that were ever queued; those of them no longer queued are settled
        self._dropped = 0
        self._reason: str | None = "it is being opened"
        self._elsewhere = False
        self._closing = False
        self._ended = False
        self._turns = 0  # rounds of the writer, which `flush` waits for
        self._database: Database | None = None  # the writer thread's own, like all deadlines but flush_at
        self._damaged = False
        self._flush_at = 0.0
        self._retry_at = 0.0
        self._trim_at = 0.0
        self._changed = threading.Condition()
        # A daemon thread: a file system that hangs must not keep the process from ending.
        self._writer = threading.Thread(target=self._run, name="store-writer", daemon=True)

    @classmethod
    def open(cls, path: Path, limits: StoreLimits | None = None) -> Store:
        """Starts the writer and waits, up to 5 s, until it knows whether the file can be used.

        Never raises for the file's sake: see `state`. A directory means the file of the usual name in it.
        """
        store = cls.begin(path, limits)
        store.wait_opened()
        return store

    @classmethod
    def begin(cls, path: Path, limits: StoreLimits | None = None) -> Store:
        """Starts the writer and waits for nothing: a start-up has better things to do meanwhile."""
        store = cls(path, StoreLimits() if limits is None else limits)
        store._writer.start()
        return store

    def wait_opened(self) -> None:
        """Until it is known whether the file can be used, up to 5 s."""
        with self._changed:
            self._changed.wait_for(lambda: self._turns > 0 or self._ended, _FIRST_OPEN_S)

    @property
    def path(self) -> Path:
        """The file, for readers: `store.file.connect_readonly(store.path)`."""
        return self._file.path

    @property
    def state(self) -> StoreState:
        with self._changed:
            return StoreState(
                ok=self._reason is None,
                reason=self._reason,
                dropped=self._dropped,
                queued=len(self._rows),
                elsewhere=self._elsewhere,
                set_aside=self._file.set_aside,
            )

    def record_request(self, row: RequestRow) -> None:
        """Never blocks and never raises; a row for which there is no room is counted as dropped."""
        with self._changed:
            if self._ended or self._closing or len(self._rows) >= self._limits.queue_max:
                self._dropped += 1
                return
            self._rows.append(row)
            self._recorded += 1
            if len(self._rows) == 1:
                self._flush_at = time.monotonic() + self._limits.flush_s
            if len(self._rows) in (1, self._limits.flush_rows):
                self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Lets the writer try now. True when nothing that was recorded before is still queued."""
        deadline = time.monotonic() + timeout
        with self._changed:
            recorded = self._recorded
            # The round under way may have begun before the last row came: the one after must have a try.
            last_turn = self._turns + 2
            while self._recorded - len(self._rows) < recorded:
                left_s = deadline - time.monotonic()
                if self._ended or self._turns >= last_turn or left_s <= 0:
                    return False
                self._flush_at = self._retry_at = 0.0
                self._changed.notify_all()
                self._changed.wait(left_s)
            return True

    def close(self, timeout: float) -> StoreState:
        """Writes what is queued and ends the writer; rows that it cannot write in time count as dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._writer.join(timeout)
        with self._changed:
            self._ended = True
            self._dropped += len(self._rows)
            self._rows.clear()
            self._reason = self._reason or "it is closed"
        return self.state

    def _run(self) -> None:
        """The writer thread."""
        try:
            while self._turn():
                self._wait()
        except Exception as error:
            # A fault of ours. The daemon goes on without its store, and both log and state say so.
            log.exception("store writer ended")
            self._set_reason(f"the writer has ended: {type(error).__name__}: {error}")
        finally:
            self._disconnect()
            self._file.release()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _turn(self) -> bool:
        """One round: open if need be, write, trim. False after the last one."""
        with self._changed:
            last = self._closing
        if self._database is None and (last or time.monotonic() >= self._retry_at):
            self._connect()
        if self._database is not None:
            self._write(self._database)
        if self._database is not None and not last and time.monotonic() >= self._trim_at:
            self._trim(self._database)
        with self._changed:
            self._turns += 1
            self._changed.notify_all()
        return not last

    def _wait(self) -> None:
        """Until there is something to do."""
        with self._changed:
            while not self._closing and (left_s := self._next_at() - time.monotonic()) > 0:
                self._changed.wait(left_s)

    def _next_at(self) -> float:
        if self._database is None:
            return self._retry_at
        if len(self._rows) >= self._limits.flush_rows:
            return 0.0
        return min(self._flush_at, self._trim_at) if self._rows else self._trim_at

    def _connect(self) -> None:
        try:
            if self._damaged:
                self._file.put_aside()
            self._damaged = False
            self._database = self._file.open()
        except (OSError, sqlite3.Error, StoreRefused) as error:
            self._fail(error)
            return
        if self._set_reason(None):
            log.info("store opened", path=self._file.path, set_aside=self._file.set_aside)

    def _write(self, database: Database) -> None:
        with self._changed:
            rows = list(self._rows)
        if not rows:
            return
        try:
            refused = _insert(database, rows)
        except sqlite3.Error as error:
            self._fail(error)
            return
        with self._changed:
            if self._ended:  # `close` has given up waiting and counted these as dropped
                return
            self._dropped += refused
            for _ in rows:
                self._rows.popleft()
            self._flush_at = time.monotonic() + self._limits.flush_s

    def _trim(self, database: Database) -> None:
        """Deletes one slice of what is too old or too much; after a full slice the next follows at once."""
        oldest = time.time() - self._limits.retention_days * _DAY_S
        try:
            with database.atomic():
                by_age = database.conn.execute(_TRIM_BY_AGE, (oldest, _TRIM_ROWS)).rowcount
                by_number = database.conn.execute(_TRIM_BY_NUMBER, (self._limits.rows_max, _TRIM_ROWS)).rowcount
        except sqlite3.Error as error:
            self._fail(error)
            return
        if max(by_age, by_number) < _TRIM_ROWS:
            self._trim_at = time.monotonic() + _TRIM_S

    def _fail(self, error: OSError | sqlite3.Error | StoreRefused) -> None:
        """Closes what is open and remembers why; the rows stay queued for the next attempt."""
        self._damaged = isinstance(error, sqlite3.Error) and is_corrupt(error)
        self._disconnect()
        with self._changed:
            self._retry_at = time.monotonic() + self._limits.retry_s
        elsewhere = isinstance(error, WrittenElsewhere)
        reason = str(error) if isinstance(error, StoreRefused) else f"{self._file.path}: {error}"
        if self._set_reason(reason, elsewhere):
            log.log("INFO" if elsewhere else "WARNING", "store not available", reason=reason)

    def _disconnect(self) -> None:
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):  # it is given up, for a reason already known
                self._database.close()
            self._database = None

    def _set_reason(self, reason: str | None, elsewhere: bool = False) -> bool:
        """True when it is another than before."""
        with self._changed:
            changed = self._reason != reason
            self._reason, self._elsewhere = reason, elsewhere
            return changed


def _insert(database: Database, rows: list[RequestRow]) -> int:
    """Commits all rows, or all but those that SQLite will never take, and gives the number of these."""
    try:
        with database.atomic():
            database.conn.executemany(_INSERT, map(_VALUES, rows))
    except _BAD_ROW:
        return _insert_singly(database, rows)
    return 0


def _insert_singly(database: Database, rows: list[RequestRow]) -> int:
    refused = 0
    with database.atomic():
        for row in rows:
            try:
                database.conn.execute(_INSERT, _VALUES(row))
            except _BAD_ROW as error:
                log.error("store refused a row", job=row.job, error=str(error))
                refused += 1
    return refused

"""The store's SQLite file: where it is, how it is opened, which version it has, what happens to a broken one.

One process writes, through one connection, which is also the only one that checkpoints: SQLite before 3.51.3
can corrupt a WAL file when two connections do. A lock file beside it keeps a second daemon out; readers are
read-only and short. A file that was written by a newer whisperd, or is somebody else's, is never touched, and what
is no database may be a mistyped name; one of ours that SQLite calls corrupt is renamed and kept, and a new one begun.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import sqlite3
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from whisperd.errors import WhisperdError

if TYPE_CHECKING:
    from sqlite_utils import Database

FILE_NAME = "whisperd.db"
SET_ASIDE_KEPT = 3  # a disk that keeps on corrupting must not be filled with the evidence
_APPLICATION_ID = 0x57535044  # "WSPD"; 0 is any new file
_MAGIC = b"SQLite format 3\0"  # a database begins with it …
_APPLICATION_ID_AT = 68  # … and has this four bytes long, the high one first, in its header (sqlite.org/fileformat2)
_BUSY_S = 1.0  # how long to wait for a lock that some other program holds
_WAL_MAX_BYTES = 16 * 1024 * 1024  # what is kept of a WAL file that a long reader made grow

# One tuple of statements per version, never changed once released: user_version counts those that were run.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE requests (
            id INTEGER PRIMARY KEY,
            ts REAL NOT NULL,
            job TEXT NOT NULL,
            client TEXT NOT NULL,
            uid INTEGER,
            method TEXT NOT NULL,
            model TEXT,
            language TEXT,
            outcome TEXT NOT NULL,
            duration_s REAL,
            speech_s REAL,
            windows INTEGER,
            queue_ms REAL,
            media_ms REAL,
            vad_ms REAL,
            infer_ms REAL,
            total_ms REAL,
            rtf REAL,
            bytes_in INTEGER,
            bytes_out INTEGER
        ) STRICT
        """,
        "CREATE INDEX requests_ts ON requests (ts)",
    ),
)


class StoreRefused(Exception):
    """The file is sound, but not ours to write now."""


class WrittenElsewhere(StoreRefused):
    """Another whisperd writes this file."""


def default_store_path(environ: Mapping[str, str]) -> Path:
    """$STATE_DIRECTORY (systemd's), else $XDG_STATE_HOME/whisperd, else ~/.local/state/whisperd."""
    if service := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(service) / FILE_NAME
    xdg = environ.get("XDG_STATE_HOME", "")
    if Path(xdg).is_absolute():  # the XDG rule: others are to be ignored
        return Path(xdg) / "whisperd" / FILE_NAME
    return Path(environ.get("HOME") or "/") / ".local" / "state" / "whisperd" / FILE_NAME


def connect_readonly(path: Path) -> sqlite3.Connection:
    """A reader; close it soon, for an open read keeps the WAL from being emptied. Rows are sqlite3.Row.

    Raises WhisperdError(store_unavailable).
    """
    try:
        connection = sqlite3.connect(f"file:{quote(os.fsencode(path))}?mode=ro", uri=True, timeout=_BUSY_S)
        try:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # opening alone reads nothing
        except sqlite3.Error:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise WhisperdError("store_unavailable", f"cannot read the store {path}: {error}") from error
    connection.row_factory = sqlite3.Row
    return connection


class StoreFile:
    """The path with its lock; `open` gives the one writing connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set_aside: Path | None = None  # the last file found corrupt since start
        self._lock_fd: int | None = None

    def open(self) -> Database:
        """Raises OSError, sqlite3.Error or StoreRefused. The caller's thread is the connection's."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock()
        try:
            return self._open()
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            if not self._was_ours():
                reason = f"{self.path} is broken ({error}) and not marked as ours; left as it is: name another file"
                raise StoreRefused(reason) from error
            self.put_aside()
            return self._open()

    def release(self) -> None:
        """Lets another process write; its connection must be closed before."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def put_aside(self) -> None:
        """Renames the file and what belongs to it, so that it can be looked at and a new one begun."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        target = self.path.with_name(f"{self.path.name}.corrupt-{stamp}-{time.monotonic_ns()}")
        for suffix in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").rename(f"{target}{suffix}")
        self.set_aside = target
        older = sorted(self.path.parent.glob(f"{self.path.name}.corrupt-*"), key=_modified_ns, reverse=True)
        for old in [path for path in older if not path.name.endswith(("-wal", "-shm"))][SET_ASIDE_KEPT:]:
            for suffix in ("-wal", "-shm", ""):
                Path(f"{old}{suffix}").unlink(missing_ok=True)

    def _was_ours(self) -> bool:
        """Whether a broken file may be renamed: it bears the name that only we give, or what is left of it our mark."""
        if self.path.name == FILE_NAME:
            return True
        with self.path.open("rb") as file:
            header = file.read(_APPLICATION_ID_AT + 4)
        return header.startswith(_MAGIC) and header[_APPLICATION_ID_AT:] == _APPLICATION_ID.to_bytes(4, "big")

    def _lock(self) -> None:
        if self._lock_fd is not None:
            return
        fd = os.open(f"{self.path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise WrittenElsewhere(f"another whisperd writes {self.path}") from None
        except OSError:
            os.close(fd)
            raise
        self._lock_fd = fd

    def _open(self) -> Database:
        # SQLite would create it with the umask's mode; the WAL files take over the mode of this one.
        fd = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise StoreRefused(f"{self.path} is no regular file")
            head = os.pread(fd, len(_MAGIC), 0)
            if head and head != _MAGIC and self.path.name != FILE_NAME:  # SQLite would overwrite some that are short
                raise StoreRefused(f"{self.path} is no database and was left as it is; name another file")
        finally:
            os.close(fd)
        connection = sqlite3.connect(self.path, timeout=_BUSY_S)
        try:
            _check_ours(connection, self.path)
            database = _sqlite_utils_database(connection)
            _configure(database)
            _migrate(database)
        except BaseException:
            connection.close()
            raise
        return database


def is_corrupt(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file itself is damaged or no database at all."""
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF  # errors raised by Python itself have no code
    return primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _check_ours(connection: sqlite3.Connection, path: Path) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if application != _APPLICATION_ID and (application or version or tables):
        raise StoreRefused(f"{path} is the database of another program")
    if version > len(MIGRATIONS):
        raise StoreRefused(
            f"{path} was written by a newer whisperd (version {version}, this one knows {len(MIGRATIONS)}); "
            "update whisperd or name another store"
        )


def _configure(database: Database) -> None:
    database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # counts only in a new file, before its first page
    database.enable_wal()
    database.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last rows, never the file
    database.execute(f"PRAGMA journal_size_limit = {_WAL_MAX_BYTES}")


def _migrate(database: Database) -> None:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        with database.atomic():
            for statement in statements:
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {number}")


def _sqlite_utils_database(connection: sqlite3.Connection) -> Database:
    """The import waits until a store is opened, and goes without numpy and pandas.

    sqlite-utils wants those two only to know their column types and takes an ImportError for "not there"; numpy
    alone would cost the supervisor 12 to 20 MB. Nothing else may import them in this process meanwhile, which
    the supervisor never does. Plugins of sqlite-utils are other people's code and stay out as well.
    """
    absent = [name for name in ("numpy", "pandas") if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment] # Python's own way to say: cannot be imported
    try:
        sqlite_utils = importlib.import_module("sqlite_utils")
    finally:
        for name in absent:
            del sys.modules[name]
    database: Database = sqlite_utils.Database(connection, execute_plugins=False)
    return database


def _modified_ns(path: Path) -> int:
    return path.stat().st_mtime_ns

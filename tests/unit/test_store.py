"""The store on real files: rows arrive, survive a kill, and no state of the file holds a request up."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path

import pytest

from whisperd.errors import WhisperdError
from whisperd.store.file import FILE_NAME, MIGRATIONS, SET_ASIDE_KEPT, connect_readonly, default_store_path
from whisperd.store.writer import RequestRow, Store, StoreLimits

WAIT_S = 60.0  # only reached when something is wrong
Opener = Callable[..., Store]


def row(number: int = 0, **changes: object) -> RequestRow:
    values: dict[str, object] = {
        "ts": time.time(),
        "job": f"job-{number}",
        "client": "sock:uid=1000",
        "uid": 1000,
        "method": "transcribe",
        "model": "tiny.en",
        "language": "en",
        "outcome": "ok",
        "duration_s": 4.5,
        "windows": 1,
        "total_ms": 120.25,
        "bytes_in": 100,
        "bytes_out": 200,
    }
    return RequestRow(**(values | changes))  # type: ignore[arg-type] # the values' types are as above


def jobs_in(path: Path) -> list[str]:
    with closing(connect_readonly(path)) as reader:
        return [record["job"] for record in reader.execute("SELECT job FROM requests ORDER BY id")]


def is_sound(path: Path) -> bool:
    with closing(connect_readonly(path)) as reader:
        return [tuple(found) for found in reader.execute("PRAGMA integrity_check")] == [("ok",)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / FILE_NAME


@pytest.fixture
def open_store(path: Path) -> Iterator[Opener]:
    """Opens stores and closes them at the end."""
    stores = []

    def opener(at: Path = path, **limits: float) -> Store:
        stores.append(Store.open(at, StoreLimits(**limits)))  # type: ignore[arg-type] # whole numbers where due
        return stores[-1]

    yield opener
    for store in stores:
        store.close(WAIT_S)


# Rows


def test_rows_arrive_with_every_field(open_store: Opener, path: Path) -> None:
    """In their order, as they were recorded, and readable while the store is open."""
    store = open_store()
    recorded = [row(number, language=None, uid=None) for number in range(3)]
    for one in recorded:
        store.record_request(one)
    assert store.flush(WAIT_S)
    names = [field.name for field in fields(RequestRow)]
    with closing(connect_readonly(path)) as reader:
        found = reader.execute(f"SELECT {', '.join(names)} FROM requests ORDER BY id").fetchall()
    assert [tuple(one) for one in found] == [tuple(getattr(one, name) for name in names) for one in recorded]
    assert store.state.ok
    assert (store.state.dropped, store.state.queued) == (0, 0)


def test_a_row_is_written_without_being_asked_for(open_store: Opener, path: Path) -> None:
    """By time: the thread wakes up by itself; seen through the queue that empties."""
    store = open_store(flush_s=0.01)
    store.record_request(row())
    with store._changed:
        assert store._changed.wait_for(lambda: not store._rows, WAIT_S)
    assert jobs_in(path) == ["job-0"]


def test_enough_rows_are_written_before_their_time(open_store: Opener, path: Path) -> None:
    """By count, although the time limit is an hour."""
    store = open_store(flush_s=3600.0, flush_rows=10)
    for number in range(10):
        store.record_request(row(number))
    with store._changed:
        assert store._changed.wait_for(lambda: not store._rows, WAIT_S)
    assert len(jobs_in(path)) == 10


def test_closing_writes_what_is_queued(path: Path) -> None:
    """And afterwards rows are counted as dropped."""
    store = Store.open(path, StoreLimits(flush_s=3600.0))
    store.record_request(row())
    state = store.close(WAIT_S)
    assert (state.ok, state.dropped, state.queued) == (False, 0, 0)
    store.record_request(row())
    assert store.state.dropped == 1
    assert jobs_in(path) == ["job-0"]


def test_the_file_and_its_directory_are_private(open_store: Opener, path: Path) -> None:
    """Also the files that SQLite puts beside it, whatever the umask."""
    old = os.umask(0)
    try:
        store = open_store()
        store.record_request(row())
        assert store.flush(WAIT_S)
    finally:
        os.umask(old)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    assert {file.name for file in path.parent.iterdir()} >= {path.name, f"{path.name}-wal"}


def test_the_file_is_opened_as_designed(open_store: Opener, path: Path) -> None:
    """WAL, strict tables, an index on the time, a numbered version."""
    open_store()
    with closing(connect_readonly(path)) as reader:
        assert reader.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert reader.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
        assert reader.execute("PRAGMA auto_vacuum").fetchone()[0] == 2
        assert [tuple(r) for r in reader.execute("SELECT name, strict FROM pragma_table_list('requests')")] == [
            ("requests", 1)
        ]
        plan = reader.execute("EXPLAIN QUERY PLAN SELECT * FROM requests WHERE ts > 1").fetchone()
        assert "requests_ts" in plan["detail"]


def test_a_row_that_sqlite_refuses_does_not_hold_up_the_others(open_store: Opener, path: Path) -> None:
    """A wrong type is dropped and counted; its neighbours in the same commit are written."""
    store = open_store(flush_s=3600.0)
    store.record_request(row(1))
    store.record_request(row(2, windows="many"))
    store.record_request(row(3, bytes_in=2**70))
    store.record_request(row(4, client="\udcff"))
    store.record_request(row(5))
    assert store.flush(WAIT_S)
    assert jobs_in(path) == ["job-1", "job-5"]
    assert store.state.ok
    assert store.state.dropped == 3


def test_a_full_queue_drops_and_counts(open_store: Opener, tmp_path: Path) -> None:
    """The caller is not held up; the oldest rows stay."""
    (tmp_path / "file").write_text("")
    store = open_store(tmp_path / "file" / FILE_NAME, queue_max=5)
    for number in range(12):
        store.record_request(row(number))
    assert (store.state.queued, store.state.dropped) == (5, 7)
    assert store.close(WAIT_S).dropped == 12


# Retention


def test_old_rows_are_deleted_in_slices(open_store: Opener, path: Path) -> None:
    """More than one slice of them; the young ones stay."""
    first = Store.open(path, StoreLimits(retention_days=1000))
    for number in range(1200):
        first.record_request(row(number, ts=time.time() - 91 * 86_400))
    first.record_request(row(5000))
    first.close(WAIT_S)
    store = open_store()
    with store._changed:
        assert store._changed.wait_for(lambda: store._trim_at > 0, WAIT_S)
    assert jobs_in(path) == ["job-5000"]


def test_the_number_of_rows_is_bounded(open_store: Opener, path: Path) -> None:
    """The oldest go first."""
    first = Store.open(path)
    for number in range(700):
        first.record_request(row(number))
    first.close(WAIT_S)
    store = open_store(rows_max=10)
    with store._changed:
        assert store._changed.wait_for(lambda: store._trim_at > 0, WAIT_S)
    assert jobs_in(path) == [f"job-{number}" for number in range(690, 700)]


# Trouble


RECORD_UNTIL_KILLED = """
import sys, time
from pathlib import Path
from whisperd.store.writer import RequestRow, Store
store = Store.open(Path(sys.argv[1]))
number = 0
while True:
    for _ in range(50):
        store.record_request(RequestRow(time.time(), f"job-{number}", "stdio", "transcribe", "ok"))
        number += 1
    if store.flush(60):
        print(number, flush=True)
"""


@pytest.mark.integration
def test_committed_rows_survive_a_kill(path: Path) -> None:
    """SIGKILL in the middle of writing: the file is sound, and what was flushed is there, in order."""
    command = [sys.executable, "-c", RECORD_UNTIL_KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        flushed = [int(writer.stdout.readline()) for _ in range(5)][-1]
        writer.send_signal(signal.SIGKILL)
    jobs = jobs_in(path)
    assert len(jobs) >= flushed
    assert jobs == [f"job-{number}" for number in range(len(jobs))]
    assert is_sound(path)


def test_a_corrupt_file_is_set_aside_and_a_new_one_begun(open_store: Opener, path: Path) -> None:
    """What was there is kept for whoever wants to look at it."""
    path.parent.mkdir()
    path.write_bytes(b"this is no database " * 1000)
    store = open_store()
    assert store.state.ok
    kept = store.state.set_aside
    assert kept is not None
    assert kept.read_bytes().startswith(b"this is no database")
    store.record_request(row())
    assert store.flush(WAIT_S)
    assert jobs_in(path) == ["job-0"]


@pytest.mark.parametrize("content", [b"x", b"milk, eggs\n" * 1000, b"SQLite format 3\0" + b"not ours " * 1000])
def test_a_mistyped_name_costs_nobody_a_file(open_store: Opener, tmp_path: Path, content: bytes) -> None:
    """What is no database, or a broken one without our mark, stays where and as it is; the reason names it."""
    notes = tmp_path / "notes.txt"
    notes.write_bytes(content)
    store = open_store(notes)
    assert not store.state.ok
    assert "notes.txt is" in str(store.state.reason)
    assert "left as it is" in str(store.state.reason)
    assert notes.read_bytes() == content
    assert store.state.set_aside is None
    assert not list(tmp_path.glob("*.corrupt-*"))


def test_a_broken_store_of_any_name_is_set_aside(open_store: Opener, tmp_path: Path) -> None:
    """Our mark in what is left of its header tells that it is ours."""
    path = tmp_path / "requests.db"
    first = Store.open(path)
    first.record_request(row(1))
    first.close(WAIT_S)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 3000)
    store = open_store(path)
    assert store.state.ok
    assert store.state.set_aside is not None


def test_corruption_found_while_writing_loses_no_queued_row(open_store: Opener, path: Path) -> None:
    """A damaged page deep in the file, found by the insert: set aside, and the row goes to the new file."""
    first = Store.open(path)
    for number in range(2000):
        first.record_request(row(number))
    first.close(WAIT_S)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(3 * 4096)  # behind the header, the page map and the schema
        file.write(b"\xff" * (size - 3 * 4096))
    store = open_store()
    store.record_request(row(7))
    assert store.flush(WAIT_S) or store.flush(WAIT_S)
    assert store.state.ok
    assert store.state.set_aside is not None
    assert jobs_in(path) == ["job-7"]


def test_files_set_aside_are_bounded(open_store: Opener, path: Path) -> None:
    """A disk that corrupts everything is not filled with copies."""
    path.parent.mkdir()
    for number in range(SET_ASIDE_KEPT + 2):
        path.write_bytes(b"no database %d " % number * 1000)
        open_store().close(WAIT_S)
    kept = sorted(path.parent.glob(f"{FILE_NAME}.corrupt-*"))
    assert len(kept) == SET_ASIDE_KEPT
    assert kept[-1].read_bytes().startswith(b"no database 4 ")


def test_a_place_that_cannot_be_written_degrades(open_store: Opener) -> None:
    """Not even root can; the state says which file and why, the rows are counted when the store closes."""
    store = open_store(Path("/proc/whisperd/whisperd.db"))
    store.record_request(row())
    assert not store.flush(WAIT_S)
    assert not store.state.ok
    assert "/proc/whisperd" in str(store.state.reason)
    assert store.close(WAIT_S).dropped == 1


def test_what_is_no_regular_file_is_refused(open_store: Opener, path: Path) -> None:
    """A pipe is neither opened as a database nor renamed as a corrupt one."""
    path.parent.mkdir()
    os.mkfifo(path)
    assert "no regular file" in str(open_store().state.reason)
    assert path.is_fifo()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any directory")
def test_a_read_only_directory_degrades_and_recovers(open_store: Opener, path: Path) -> None:
    """Once it can be written, the queued rows arrive."""
    path.parent.mkdir(mode=0o500)
    store = open_store()
    store.record_request(row())
    assert not store.flush(WAIT_S)
    assert "Permission denied" in str(store.state.reason)
    path.parent.chmod(0o700)
    assert store.flush(WAIT_S)
    assert store.state.ok


def test_a_locked_file_recovers(open_store: Opener, path: Path) -> None:
    """Another program holds the database: the rows wait for it, none is lost."""
    store = open_store()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store.record_request(row())
        assert not store.flush(WAIT_S)
        assert "locked" in str(store.state.reason)
        assert (store.state.dropped, store.state.queued) == (0, 1)
        other.execute("ROLLBACK")
    assert store.flush(WAIT_S)
    assert store.state.ok
    assert jobs_in(path) == ["job-0"]


FILL_THE_DISK = """
import resource, sys, time
from pathlib import Path
from whisperd.store.writer import RequestRow, Store
def record(count):
    for number in range(count):
        store.record_request(RequestRow(time.time(), f"job-{number}", "x" * 500, "transcribe", "ok"))
store = Store.open(Path(sys.argv[1]))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
record(1000)
print(store.flush(60), store.state.ok, store.state.queued)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(store.flush(60), store.state.ok, store.close(60).dropped)
"""


@pytest.mark.integration
def test_a_disk_without_room_recovers(path: Path) -> None:
    """The kernel refuses to let the files grow, as a full disk would; with room again all rows arrive."""
    command = [sys.executable, "-c", FILL_THE_DISK, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == ["False False 1000", "True True 0"]
    assert len(jobs_in(path)) == 1000
    assert is_sound(path)


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        ("PRAGMA application_id = 0x57535044; PRAGMA user_version = 99", "newer whisperd (version 99"),
        ("CREATE TABLE theirs (a)", "database of another program"),
        ("PRAGMA application_id = 7; PRAGMA user_version = 1", "database of another program"),
    ],
)
def test_a_newer_or_foreign_file_is_refused_untouched(
    open_store: Opener, path: Path, statements: str, says: str
) -> None:
    """Downgrading must not lose anything, nor a wrong --store."""
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as other:
        other.executescript(statements)
    before = path.read_bytes()
    store = open_store()
    assert not store.state.ok
    assert says in str(store.state.reason)
    assert path.read_bytes() == before
    assert store.state.set_aside is None


def test_two_daemons_never_write_one_file(open_store: Opener, path: Path) -> None:
    """The second is told so, keeps its rows, and takes over when the first has ended."""
    first, second = open_store(), open_store()
    assert first.state.ok
    assert (second.state.ok, second.state.elsewhere) == (False, True)
    second.record_request(row(2))
    assert not second.flush(WAIT_S)
    first.record_request(row(1))
    first.close(WAIT_S)
    assert second.flush(WAIT_S)
    assert (second.state.ok, second.state.elsewhere) == (True, False)
    assert jobs_in(path) == ["job-1", "job-2"]


def test_opening_again_keeps_the_rows(open_store: Opener, path: Path) -> None:
    """Migrations run once; a directory means the usual file in it."""
    first = open_store()
    first.record_request(row(1))
    first.close(WAIT_S)
    second = open_store(path.parent)
    second.record_request(row(2))
    assert second.flush(WAIT_S)
    assert second.path == path
    assert jobs_in(path) == ["job-1", "job-2"]


def test_a_reader_cannot_write_and_a_missing_file_is_told(open_store: Opener, path: Path) -> None:
    """The kind is the contract's."""
    with pytest.raises(WhisperdError) as caught:
        connect_readonly(path)
    assert caught.value.kind == "store_unavailable"
    open_store()
    with closing(connect_readonly(path)) as reader, pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM requests")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"STATE_DIRECTORY": "/var/lib/whisperd:/x", "XDG_STATE_HOME": "/y"}, "/var/lib/whisperd/whisperd.db"),
        ({"XDG_STATE_HOME": "/y", "HOME": "/h"}, "/y/whisperd/whisperd.db"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/whisperd/whisperd.db"),
        ({"HOME": "/h"}, "/h/.local/state/whisperd/whisperd.db"),
        ({}, "/.local/state/whisperd/whisperd.db"),
    ],
)
def test_the_usual_place_follows_systemd_and_xdg(environ: dict[str, str], expected: str) -> None:
    """In the contract's order."""
    assert default_store_path(environ) == Path(expected)


def test_opening_the_store_brings_in_no_numpy(path: Path) -> None:
    """Nor does importing its module bring in sqlite_utils; and numpy can be imported afterwards."""
    code = (
        "import sys; from pathlib import Path; from whisperd.store.writer import Store\n"
        "early = 'sqlite_utils' in sys.modules; store = Store.open(Path(sys.argv[1]))\n"
        "print(early, store.state.ok, 'numpy' in sys.modules); store.close(60)\n"
        "import numpy; print(numpy.zeros(1).tolist())\n"
    )
    said = subprocess.check_output([sys.executable, "-c", code, str(path)], text=True)
    assert said.splitlines() == ["False True False", "[0.0]"]

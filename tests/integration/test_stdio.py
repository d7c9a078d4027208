"""Stdin and stdout, whatever they are: pipes, files, terminals, sockets, closed, full, non-blocking."""

from __future__ import annotations

import os
import pty
import socket
import termios
from pathlib import Path

import pytest
from daemon import Daemon, Start, StdioClient, audio, digest_of, request, transcription

pytestmark = pytest.mark.integration


def test_the_end_of_the_input_finishes_accepted_work(start: Start) -> None:
    """What was accepted before is answered, and the exit code is 0."""
    daemon = start("--stdio", "--control-socket", "control.sock")
    daemon.stdio.send(transcription(1, b"HOLD 1") + transcription(2, b"HOLD 2"))
    daemon.wait_until_held(2)
    daemon.stdio.end_input()
    daemon.connect(daemon.home / "control.sock").until("status", lambda status: status["draining"])
    daemon.release()
    assert {reply["id"]: reply["result"]["text"] for reply in daemon.stdio.rest()} == {
        1: digest_of(b"HOLD 1"),
        2: digest_of(b"HOLD 2"),
    }
    assert daemon.wait() == 0


def test_the_end_of_the_input_ends_a_daemon_with_open_sockets(start: Start) -> None:
    """Its clients' accepted work is finished first, new work is refused, and the socket files go."""
    daemon = start("--stdio", "--socket", "main.sock")
    client = daemon.connect(daemon.home / "main.sock")
    held = client.submit(b"HOLD")
    daemon.wait_until_held()
    daemon.stdio.end_input()
    client.until("status", lambda status: status["draining"])
    assert client.refusal("transcribe", audio=audio(b"late"))["kind"] == "draining"
    assert client.refusal("resume")["kind"] == "draining"
    daemon.release()
    assert client.result(held)["text"] == digest_of(b"HOLD")
    assert client.rest() == []
    assert daemon.wait() == 0
    assert {path.name for path in daemon.home.iterdir() if path.is_socket()} == set()


def test_stdin_may_be_a_file_and_stdout_too(start: Start, home: Path) -> None:
    """`whisperd serve --stdio < requests > replies`."""
    lines = b"".join(transcription(number, b"%d" % number) for number in range(300))
    (home / "requests").write_bytes(lines)
    with open(home / "requests", "rb") as requests, open(home / "replies", "wb") as replies:
        daemon = start("--stdio", stdin=requests.fileno(), stdout=replies.fileno())
        assert daemon.wait() == 0
    with open(home / "replies", "rb") as replies:
        client = StdioClient(-1, os.dup(replies.fileno()))
        for line in lines.splitlines():
            client.note(line)
        texts = {reply["id"]: reply["result"]["text"] for reply in client.rest()}
        client.close()
    assert texts == {number: digest_of(b"%d" % number) for number in range(300)}


def test_nothing_on_stdin_is_no_work(start: Start) -> None:
    """/dev/null: nothing to do, done."""
    with open(os.devnull, "rb") as null:
        daemon = start("--stdio", stdin=null.fileno())
        assert daemon.stdio.rest() == []
        assert daemon.wait() == 0


def test_a_terminal_works_as_stdin(start: Start) -> None:
    """Typed lines are answered, and Ctrl-D ends."""
    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    daemon = start("--stdio", stdin=theirs)
    os.close(theirs)
    os.write(ours, request("ping", 1))
    daemon.stdio.expect(1, "ping")
    assert daemon.stdio.result(1)["pong"] is True
    os.write(ours, b"\x04")
    assert daemon.stdio.rest() == []
    assert daemon.wait() == 0
    os.close(ours)


def test_a_terminal_that_hangs_up_is_the_end_of_the_input(start: Start) -> None:
    """Its read error is not an accident."""
    ours, theirs = pty.openpty()
    daemon = start("--stdio", stdin=theirs)
    os.close(theirs)
    os.write(ours, request("ping", 1))
    daemon.stdio.expect(1, "ping")
    assert daemon.stdio.result(1)["pong"] is True
    os.close(ours)
    assert daemon.stdio.rest() == []
    assert daemon.wait() == 0


def test_one_socket_may_be_stdin_and_stdout(start: Start) -> None:
    """As parents in some languages make them; closing one direction is the end of the input."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        daemon = start("--stdio", stdin=theirs.fileno(), stdout=theirs.fileno())
        theirs.close()
        client = StdioClient(os.dup(ours.fileno()), os.dup(ours.fileno()))
        assert client.result(client.submit(b"both ways"))["text"] == digest_of(b"both ways")
        ours.shutdown(socket.SHUT_WR)
        assert client.rest() == []
        assert daemon.wait() == 0
        client.close()


def test_non_blocking_pipes_lose_nothing(start: Start) -> None:
    """A parent may have made the daemon's own ends non-blocking; they are left so."""
    theirs_in, ours_in = os.pipe()
    ours_out, theirs_out = os.pipe()
    os.set_blocking(theirs_in, False)
    os.set_blocking(theirs_out, False)
    daemon = start("--stdio", stdin=theirs_in, stdout=theirs_out)
    os.close(theirs_out)
    client = StdioClient(ours_in, ours_out)
    ids = [client.ask("rpc.discover") for _ in range(40)]
    daemon.log.wait_for("serving")
    client.end_input()
    assert {reply["id"] for reply in client.rest()} == set(ids)
    assert daemon.wait() == 0
    assert not os.get_blocking(theirs_in)
    os.close(theirs_in)
    client.close()


def test_the_parents_end_of_a_blocking_pipe_stays_blocking(start: Start) -> None:
    """Descriptors are shared with the parent, so their flags are not the daemon's to change."""
    theirs_in, ours_in = os.pipe()
    ours_out, theirs_out = os.pipe()
    start("--stdio", stdin=theirs_in, stdout=theirs_out)
    client = StdioClient(ours_in, ours_out)
    assert client.call("ping")["pong"] is True
    assert os.get_blocking(theirs_in)
    assert os.get_blocking(theirs_out)
    os.close(theirs_in)
    os.close(theirs_out)
    client.close()


def test_a_parent_that_closes_stdout_ends_the_daemon(start: Start) -> None:
    """EPIPE: nobody can be answered any more. Exit code 74, no traceback, and the work is cancelled."""
    daemon = start("--stdio")
    daemon.stdio.send(transcription(1, b"HOLD"))
    daemon.wait_until_held()
    daemon.stdio.end_output()
    daemon.stdio.send(request("ping", 2))
    assert daemon.wait() == 74
    assert daemon.log.count("outcome=cancelled") == 1


def test_a_parent_that_vanishes_ends_the_daemon(start: Start) -> None:
    """Both pipes closed at once: the accepted request has nobody to be answered to."""
    daemon = start("--stdio")
    daemon.stdio.send(transcription(1, b"HOLD"))
    daemon.wait_until_held()
    daemon.stdio.close()
    daemon.release()
    assert daemon.wait() == 74


def test_a_full_disk_behind_stdout_is_told_by_the_exit_code(start: Start) -> None:
    """ENOSPC on the first reply: exit code 74, no traceback."""
    with open("/dev/full", "wb") as full:
        daemon = start("--stdio", stdout=full.fileno())
        daemon.stdio.send(request("ping", 1))
        assert daemon.wait() == 74


@pytest.mark.parametrize("missing", [0, 1])
def test_a_closed_stdin_or_stdout_is_told_as_a_mistake(start: Start, missing: int) -> None:
    """Exit code 78 and one line, not a traceback; no other file is taken for it."""
    daemon = start("--stdio", preexec=lambda: os.close(missing))
    assert daemon.wait() == 78
    assert ("stdin", "stdout")[missing] in daemon.log.close()


def test_a_closed_stderr_costs_the_log_only(start: Start) -> None:
    """Nothing that is meant for stderr lands in the protocol stream."""
    daemon = start("--stdio", preexec=lambda: os.close(2))
    assert daemon.stdio.result(daemon.stdio.submit(b"PRINT"))["text"] == digest_of(b"PRINT")
    daemon.stdio.end_input()
    assert daemon.stdio.rest() == []
    assert daemon.wait() == 0


def test_relative_paths_count_from_the_daemons_directory(start: Start, home: Path) -> None:
    """On stdio; the parent chose that directory."""
    (home / "clip").write_bytes(b"a clip")
    daemon = start("--stdio")
    assert daemon.stdio.call("transcribe", audio={"path": "clip"})["text"] == digest_of(b"a clip")
    assert daemon.stdio.refusal("transcribe", audio={"path": "clop"})["kind"] == "audio_not_found"
    assert daemon.stdio.refusal("transcribe", audio={"path": "."})["kind"] == "audio_unreadable"


def test_a_descriptor_number_means_nothing_on_stdio(everyday: Daemon) -> None:
    """Pipes carry no descriptors; the daemon's own must be out of reach."""
    error = everyday.stdio.refusal("transcribe", audio={"fd": 0})
    assert (error["kind"], error["pointer"]) == ("invalid_params", "/audio/fd")


def test_progress_comes_before_the_reply_and_is_whole_for_who_reads(start: Start, home: Path) -> None:
    """One final segment for each window, in order, and figures that end at the whole."""
    (home / "long").write_bytes(bytes(32_000 * 70))
    client = start("--stdio").stdio
    client.call("transcribe", audio={"path": "long"}, progress=True)
    segments = [n["params"] for n in client.notifications if n["method"] == "transcribe.segment"]
    progress = [n["params"] for n in client.notifications if n["method"] == "transcribe.progress"]
    assert [(segment["index"], segment["final"]) for segment in segments] == [(n, True) for n in range(4)]
    assert progress[-1]["done_s"] == progress[-1]["total_s"] == 70.0

"""The two listening sockets: where they are, who reaches them, what a second daemon does, what is left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import stat
from pathlib import Path

import pytest
from daemon import Daemon, SocketClient, Start, acting_as, audio, digest_of, request, transcription

pytestmark = pytest.mark.integration
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
NOBODY = 65534


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def ended(daemon: Daemon) -> str:
    """The log of a daemon that refuses to start."""
    assert daemon.wait() == 78
    return daemon.log.close()


def test_without_flags_both_sockets_are_in_the_sessions_runtime_directory(start: Start) -> None:
    """$XDG_RUNTIME_DIR/whisperd, for this user alone."""
    daemon = start()
    assert daemon.connect().call("ping")["pong"] is True
    assert daemon.control().call("ping")["pong"] is True
    assert mode_of(daemon.main_path.parent) == 0o700
    assert mode_of(daemon.main_path) == mode_of(daemon.control_path) == 0o600


def test_a_service_managers_runtime_directory_comes_first(start: Start, home: Path) -> None:
    """RUNTIME_DIRECTORY, the first of them if there are several."""
    (home / "service").mkdir()
    daemon = start(environ={"RUNTIME_DIRECTORY": f"{home}/service:{home}/other"})
    assert daemon.connect(home / "service" / "whisperd.sock").call("ping")["pong"] is True
    assert daemon.connect(home / "service" / "control.sock").call("ping")["pong"] is True


def test_without_a_session_the_temporary_directory_is_used(start: Start, home: Path) -> None:
    """A folder of this user's own in it, mode 0700."""
    daemon = start(environ={"XDG_RUNTIME_DIR": None, "TMPDIR": str(home)})
    folder = home / f"whisperd-{os.getuid()}"
    assert daemon.connect(folder / "whisperd.sock").call("ping")["pong"] is True
    assert mode_of(folder) == 0o700


@pytest.mark.parametrize("trap", ["link", "dangling link", "open to all", "file", "another's"])
def test_a_folder_in_the_temporary_directory_that_others_control_is_refused(
    start: Start, home: Path, trap: str
) -> None:
    """Whoever owns the folder owns every socket in it."""
    folder = home / f"whisperd-{os.getuid()}"
    (home / "elsewhere").mkdir(mode=0o700)
    if trap == "link":
        folder.symlink_to(home / "elsewhere")
    elif trap == "dangling link":
        folder.symlink_to(home / "nowhere")
    elif trap == "file":
        folder.touch()
    else:
        folder.mkdir(mode=0o700)
        if trap == "open to all":
            folder.chmod(0o777)
        elif os.getuid() != 0:
            pytest.skip("only root can give a folder away")
        else:
            os.chown(folder, NOBODY, NOBODY)
    daemon = start(environ={"XDG_RUNTIME_DIR": None, "TMPDIR": str(home)})
    assert folder.name in ended(daemon)
    assert list((home / "elsewhere").iterdir()) == []
    assert not (home / "nowhere").exists()


@pytest.mark.parametrize("path", ["no/such/folder/w.sock", "x" * 120 + ".sock", "a folder"])
def test_a_path_where_no_socket_can_be_is_told_plainly(start: Start, home: Path, path: str) -> None:
    """A missing folder, a name beyond the kernel's limit, a folder where the socket should be."""
    (home / "a folder").mkdir()
    daemon = start("--socket", str(home / path))
    assert path in ended(daemon)
    assert (home / "a folder").is_dir()


def test_a_file_that_is_no_socket_is_not_replaced(start: Start, home: Path) -> None:
    """Somebody's notes may be called whisperd.sock."""
    (home / "notes").write_text("dear diary")
    daemon = start("--socket", str(home / "notes"))
    assert "no socket" in ended(daemon)
    assert (home / "notes").read_text() == "dear diary"


def test_a_leftover_socket_file_is_replaced(start: Start) -> None:
    """As a daemon that was killed leaves it, with its lock file."""
    first = start()
    assert first.connect().call("ping")["pong"] is True
    first.signal(signal.SIGKILL)
    first.wait()
    assert first.main_path.is_socket()
    second = start()
    assert second.connect().call("ping")["pong"] is True


def test_a_live_socket_refuses_the_second_daemon_and_the_first_goes_on(start: Start) -> None:
    """Exit code 78 and a message that says what to do; nothing of the first is touched."""
    first = start()
    client = first.connect()
    held = client.submit(b"HOLD")
    first.wait_until_held()
    identity = first.main_path.stat().st_ino
    assert "another daemon serves" in ended(start())
    second = start("--socket", "other.sock", "--control-socket", str(first.control_path))
    assert "another daemon serves" in ended(second)
    assert not (first.home / "other.sock").exists()
    first.release()
    assert client.result(held)["text"] == digest_of(b"HOLD")
    assert first.main_path.stat().st_ino == identity
    assert first.connect().call("ping")["pong"] is True


def test_a_live_socket_without_lock_is_recognised_by_connecting(start: Start, home: Path) -> None:
    """It may be another program's, or the lock file may have been deleted; a full queue means alive too."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(home / "w.sock"))
        other.listen(0)
        assert "another daemon serves" in ended(start("--socket", "w.sock"))
        with contextlib.ExitStack() as stack:
            code = 0
            while code == 0:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                code = waiting.connect_ex(str(home / "w.sock"))
            assert code == errno.EAGAIN
            assert "another daemon serves" in ended(start("--socket", "w.sock"))


def test_the_socket_files_go_with_the_daemon(start: Start) -> None:
    """After SIGTERM nothing is left that a client would try."""
    daemon = start()
    daemon.log.wait_for("serving")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert [path.name for path in daemon.main_path.parent.iterdir() if path.is_socket()] == []


def test_a_socket_file_that_somebody_else_put_there_stays(start: Start) -> None:
    """The daemon removes its own file only."""
    daemon = start()
    daemon.log.wait_for("serving")
    daemon.main_path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(daemon.main_path))
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert daemon.main_path.is_socket()
    assert not daemon.control_path.exists()


@needs_root
@pytest.mark.parametrize("group", [False, True])
def test_nobody_gets_in_before_the_permissions_are_right(start: Start, home: Path, group: bool) -> None:
    """Another user who tries from the first moment on never succeeds."""
    home.chmod(0o755)
    daemon = start("--socket", str(home / "w.sock"), *(["--socket-group", "daemon"] if group else []))
    tries = refused = 0
    while daemon.log.count("serving") == 0:
        with acting_as(NOBODY, NOBODY), socket.socket(socket.AF_UNIX) as intruder:
            tries += 1
            refused += intruder.connect_ex(str(home / "w.sock")) != 0
    assert tries > 100
    assert refused == tries
    assert mode_of(home / "w.sock") == (0o660 if group else 0o600)
    assert mode_of(home / "control.sock") == (0o660 if group else 0o600)


def test_an_unknown_group_is_a_mistake_in_the_configuration(start: Start) -> None:
    """Better no socket than one that the wrong people reach."""
    daemon = start("--socket-group", "no-such-group")
    assert "no-such-group" in ended(daemon)
    assert not daemon.main_path.exists()


def test_the_control_socket_serves_control_methods_only(everyday: Daemon) -> None:
    """Audio has no business there, and is told where to go."""
    control = everyday.control()
    assert control.call("health")["ready"] is True
    for method in ("transcribe", "detect_language"):
        error = control.refusal(method, audio=audio(b"x"))
        assert error["kind"] in ("forbidden", "method_not_found")
        assert "main socket" in error["message"]


def test_the_control_sockets_lines_are_at_most_a_mebibyte(everyday: Daemon) -> None:
    """It carries no audio."""
    control = everyday.control()
    padded = request("ping", "big")[:-1]
    control.expect("big", "ping")
    control.send_bytes(padded.ljust(1 << 20) + b"\n")
    assert control.result("big")["pong"] is True
    control.send_bytes(padded.ljust((1 << 20) + 1) + b"\n")
    assert control.error(None)["kind"] == "line_too_long"
    assert control.call("ping")["pong"] is True


def test_paths_on_a_socket_are_absolute(main_client: SocketClient, everyday: Daemon) -> None:
    """The daemon's working directory is none of a client's business."""
    (everyday.home / "clip").write_bytes(b"a clip")
    error = main_client.refusal("transcribe", audio={"path": "clip"})
    assert (error["kind"], error["pointer"]) == ("invalid_params", "/audio/path")
    found = main_client.call("transcribe", audio={"path": str(everyday.home / "clip")})
    assert found["text"] == digest_of(b"a clip")


def test_results_still_come_after_a_half_close(start: Start) -> None:
    """All of them, then the daemon closes; an unfinished client is not taken for a vanished one."""
    daemon = start()
    client = daemon.connect()
    ids = [client.submit(b"HOLD %d" % number) for number in range(5)]
    daemon.wait_until_held(5)
    client.end_input()
    assert daemon.control().call("status")["connections"] == 2
    daemon.release()
    assert {reply["id"] for reply in client.rest()} == set(ids)
    daemon.control().until("status", lambda status: status["queue"]["depth"] == 0)


@pytest.mark.parametrize("way", ["closes", "half-closes first", "never reads what is there"])
def test_the_work_of_a_client_that_vanishes_is_cancelled(start: Start, way: str) -> None:
    """In the middle of a request; the work of others goes on."""
    daemon = start()
    control, other, client = daemon.control(), daemon.connect(), daemon.connect()
    held = other.submit(b"HOLD by another")
    for number in range(3):
        client.submit(b"HOLD %d" % number)
    daemon.wait_until_held(4)
    if way == "half-closes first":
        client.end_input()
        control.call("ping")
    elif way == "never reads what is there":
        client.ask("ping")
        other.call("ping")
    client.close()
    control.until("metrics.current", lambda metrics: metrics["requests"]["cancelled"] == 3)
    assert control.call("status")["queue"]["depth"] == 1
    daemon.release()
    assert other.result(held)["text"] == digest_of(b"HOLD by another")


def test_a_vanished_clients_descriptors_are_closed(start: Start) -> None:
    """Its input, its audio in memory, its connection, also when it had half-closed."""
    daemon = start()
    control = daemon.control()
    control.call("ping")
    before = daemon.fds()
    for half_close in (False, True):
        client = daemon.connect()
        for number in range(3):
            client.submit(b"HOLD %d" % number)
        daemon.wait_until_held(3 + 3 * half_close)
        if half_close:
            client.end_input()
        client.close()
        control.until("metrics.current", lambda m, n=3 + 3 * half_close: m["requests"]["cancelled"] == n)
        control.until("status", lambda status: status["connections"] == 1)
    assert daemon.fds() == before


def test_connections_beyond_the_limit_are_closed_but_control_gets_through(start: Start) -> None:
    """And a place that becomes free is given to the next."""
    daemon = start(connections_max=3)
    clients = [daemon.connect() for _ in range(3)]
    assert [client.call("ping")["pong"] for client in clients] == [True] * 3
    assert daemon.connect().rest() == []
    control = daemon.control()
    assert control.call("status")["connections"] == 4
    clients[0].close()
    clients[1].close()
    control.until("status", lambda status: status["connections"] == 2)
    assert daemon.connect().call("ping")["pong"] is True


def test_control_connections_have_a_limit_too(start: Start) -> None:
    """Whoever opens them without end must not take all descriptors from the daemon."""
    daemon = start(connections_max=4)
    opened = [daemon.control() for _ in range(100)]
    working = [client for client in opened if answers(client)]
    assert 4 <= len(working) < 100


def answers(client: SocketClient) -> bool:
    """Whether the daemon kept this connection."""
    try:
        client.send_bytes(request("ping", "kept"))
    except BrokenPipeError:
        return False
    client.expect("kept", "ping")
    return client.receive() is not None


def test_lack_of_descriptors_costs_no_processor_time_and_passes(start: Start) -> None:
    """Those who are connected are served; those who are not, once there is room again."""
    daemon = start(preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
    first = daemon.connect()
    assert first.call("ping")["pong"] is True
    crowd = [daemon.connect() for _ in range(60)]
    daemon.log.wait_for("cannot accept")
    before_s = daemon.cpu_s()
    daemon.log.wait_for("cannot accept", 3)  # it looks again, about once a second
    assert daemon.cpu_s() - before_s < 0.5
    assert first.call("ping")["pong"] is True
    for client in crowd[:50]:
        client.close()
    assert crowd[-1].call("ping")["pong"] is True


def test_lack_of_descriptors_fails_requests_in_a_way_that_invites_another_try(start: Start) -> None:
    """Each request needs some; one that gets none is answered, and later ones work."""
    daemon = start(preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60)))
    client = daemon.connect()
    ids = [client.submit(b"HOLD %d" % number) for number in range(150)]  # 60 of them at most can be held
    errors = [client.receive() for _ in range(60)]
    assert {error["error"]["data"]["kind"] for error in errors if error} == {"overloaded"}
    daemon.release()
    answered = {error["id"] for error in errors if error}
    for number, id in enumerate(ids):
        if id not in answered:
            reply = client.reply(id)
            if "result" in reply:
                assert reply["result"]["text"] == digest_of(b"HOLD %d" % number)
    assert client.call("transcribe", audio=audio(b"after"))["text"] == digest_of(b"after")


def test_many_clients_at_once_get_their_own_replies(everyday: Daemon) -> None:
    """Fifty clients with four requests each, all with the same ids."""
    clients = [everyday.connect() for _ in range(50)]
    for number, client in enumerate(clients):
        for id in range(4):
            client.send(transcription(id, b"%d of %d" % (id, number)))
    for number, client in enumerate(clients):
        for id in range(4):
            assert client.result(id)["text"] == digest_of(b"%d of %d" % (id, number))
    for client in clients:
        client.close()

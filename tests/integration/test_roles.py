"""Who may do what: by what the kernel says of the process at the other end, and by nothing that it says itself.

These tests act as other users, which only root can.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from daemon import Daemon, SocketClient, Start, acting_as, audio, digest_of, request

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user"),
]
STRANGER, OTHER_STRANGER = 65533, 65532  # uids that no user has
GROUP, GROUP_ID = "daemon", 1  # a group that every Linux has


@pytest.fixture
def daemon(start: Start, home: Path) -> Daemon:
    """A daemon that the group may use."""
    home.chmod(0o755)
    return start("--socket", str(home / "w.sock"), "--socket-group", GROUP)


def connect_as(
    daemon: Daemon, uid: int, gid: int = GROUP_ID, groups: Sequence[int] = (), path: str = "w.sock"
) -> SocketClient:
    """A connection of this user's."""
    daemon.log.wait_for("serving")
    with acting_as(uid, gid, groups):
        return daemon.connect(daemon.home / path)


def test_the_daemons_own_user_may_do_everything(daemon: Daemon) -> None:
    """The same uid as the daemon's."""
    client = daemon.connect(daemon.home / "w.sock")
    assert client.call("config.get")["config"]["socket_group"]["value"] == GROUP
    assert client.call("drain") == {"draining": True}
    assert client.call("resume") == {"draining": False}


@pytest.mark.parametrize(("gid", "groups"), [(GROUP_ID, ()), (STRANGER, (7, GROUP_ID, 8))])
def test_a_group_member_may_submit_and_observe(daemon: Daemon, gid: int, groups: tuple[int, ...]) -> None:
    """With the group as its main one, or as one of the others that its process has."""
    client = connect_as(daemon, STRANGER, gid, groups)
    assert client.call("transcribe", audio=audio(b"x"))["text"] == digest_of(b"x")
    assert client.call("detect_language", audio=audio(b"x"))["language"] == "en"
    for method in ("ping", "health", "status", "models.list", "metrics.current", "rpc.discover"):
        assert client.call(method)


@pytest.mark.parametrize("path", ["w.sock", "control.sock"])
def test_a_group_member_may_not_operate(daemon: Daemon, path: str) -> None:
    """On either socket; the refusal names the role, and nothing happens."""
    client = connect_as(daemon, STRANGER, path=path)
    for method, params, role in (
        ("models.load", {"model": "fake"}, "operate"),
        ("models.unload", {"model": "fake"}, "operate"),
        ("drain", {}, "operate"),
        ("resume", {}, "operate"),
        ("config.get", {}, "admin"),
        ("shutdown", {}, "admin"),
    ):
        error = client.refusal(method, **params)
        assert (error["kind"], f"'{role}'" in error["message"]) == ("forbidden", True)
    client.send(request("shutdown"))
    assert client.call("health")["ready"] is True


def test_another_user_does_not_get_in(daemon: Daemon) -> None:
    """The kernel keeps it out by the file's mode..."""
    daemon.log.wait_for("serving")
    for name in ("w.sock", "control.sock"):
        with acting_as(STRANGER, STRANGER), socket.socket(socket.AF_UNIX) as intruder, pytest.raises(PermissionError):
            intruder.connect(str(daemon.home / name))


def test_a_mode_that_was_opened_by_hand_lets_nobody_in(daemon: Daemon) -> None:
    """... and the daemon, by its credentials, whatever somebody did to the mode."""
    daemon.log.wait_for("serving")
    for name in ("w.sock", "control.sock"):
        (daemon.home / name).chmod(0o666)
        client = connect_as(daemon, STRANGER, STRANGER, path=name)
        assert client.rest() == []
    daemon.log.wait_for("no role", count=2)


def test_another_user_passes_descriptors_instead_of_paths(daemon: Daemon, tmp_path: Path) -> None:
    """The daemon would open a path with rights that the client may lack; the refusal says what to do."""
    (tmp_path / "clip").write_bytes(b"a clip")
    client = connect_as(daemon, STRANGER)
    for path in (tmp_path / "clip", tmp_path / "no such file"):
        error = client.refusal("transcribe", audio={"path": str(path)})
        assert error["kind"] == "forbidden"
        assert "descriptor" in error["message"]
    with open(tmp_path / "clip", "rb") as file:
        client.send_fds(request("transcribe", "fd", audio={"fd": 0}), [file.fileno()])
        assert client.result("fd")["text"] == digest_of(b"a clip")


@pytest.mark.parametrize("model", ["/etc", "/no/such/folder", "./models", "../models", "~root/models"])
def test_another_user_may_not_name_a_model_by_its_path(daemon: Daemon, model: str) -> None:
    """It would learn which folders there are, and have the daemon load what it likes."""
    client = connect_as(daemon, STRANGER)
    assert client.refusal("transcribe", audio=audio(b"x"), model=model)["kind"] == "forbidden"
    assert client.refusal("detect_language", audio=audio(b"x"), model=model)["kind"] == "forbidden"
    assert client.call("transcribe", audio=audio(b"x"), model="fake")["text"] == digest_of(b"x")


def test_cancelling_another_users_job_needs_a_role(daemon: Daemon) -> None:
    """One's own can be cancelled from any of one's connections."""
    owner = connect_as(daemon, STRANGER)
    held = owner.submit(b"HOLD")
    daemon.wait_until_held()
    (job,) = owner.call("status")["jobs"]
    other = connect_as(daemon, OTHER_STRANGER)
    assert other.refusal("cancel", job=job["job"])["kind"] == "forbidden"
    other.send(request("cancel", job=job["job"]))
    assert other.call("cancel", id=held) == {"cancelled": False}
    assert other.call("cancel", job="no such job") == {"cancelled": False}
    assert owner.call("status")["jobs"] == [job]
    again = connect_as(daemon, STRANGER)
    assert again.call("cancel", job=job["job"]) == {"cancelled": True}
    assert owner.error(held)["kind"] == "cancelled"
    owner.submit(b"HOLD again")
    daemon.wait_until_held(2)
    root = daemon.connect(daemon.home / "control.sock")
    (job,) = root.call("status")["jobs"]
    assert root.call("cancel", job=job["job"]) == {"cancelled": True}


def test_an_observer_sees_its_own_jobs_only(daemon: Daemon) -> None:
    """Counts are for all; who works on what is not."""
    owner, other = connect_as(daemon, STRANGER), connect_as(daemon, OTHER_STRANGER)
    owner.submit(b"HOLD", initial_prompt="my secret project")
    daemon.wait_until_held()
    seen = other.call("status")
    assert (seen["queue"]["depth"], seen["jobs"]) == (1, [])
    assert len(daemon.connect(daemon.home / "w.sock").call("status")["jobs"]) == 1
    for method in ("status", "metrics.current", "health", "models.list", "rpc.discover"):
        assert "secret" not in str(other.call(method))
    assert "secret" not in daemon.log.text


def test_the_parent_on_stdio_may_do_everything(everyday: Daemon) -> None:
    """It started the daemon."""
    assert everyday.stdio.call("config.get")["config"]
    assert everyday.stdio.call("models.load", model="fake")["state"] == "loaded"

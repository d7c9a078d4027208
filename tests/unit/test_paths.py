"""Where the default sockets are, and whom they may belong to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from whisperd.errors import WhisperdError
from whisperd.paths import (
    control_path_beside,
    default_control_path,
    default_settings_path,
    default_socket_path,
    runtime_directory,
    state_directory,
)


def test_the_service_manager_s_directory_comes_first() -> None:
    """The first of a list, as systemd writes it."""
    environ = {"RUNTIME_DIRECTORY": "/run/whisperd:/run/other", "XDG_RUNTIME_DIR": "/run/user/1"}
    assert default_socket_path(environ) == Path("/run/whisperd/whisperd.sock")
    assert default_control_path(environ) == Path("/run/whisperd/control.sock")


def test_the_session_s_directory_comes_second(tmp_path: Path) -> None:
    """It is private already, so a directory of ours below it may have any mode."""
    environ = {"XDG_RUNTIME_DIR": str(tmp_path), "TMPDIR": "/elsewhere"}
    (tmp_path / "whisperd").mkdir(mode=0o755)
    assert default_socket_path(environ, create=True) == tmp_path / "whisperd" / "whisperd.sock"


def test_the_temporary_directory_comes_last_and_is_made_private(tmp_path: Path) -> None:
    """Asking does not create it; creating gives it mode 0700, twice without complaint."""
    environ = {"TMPDIR": str(tmp_path)}
    expected = tmp_path / f"whisperd-{os.getuid()}"
    assert runtime_directory(environ) == expected
    assert not expected.exists()
    for _ in range(2):
        assert runtime_directory(environ, create=True) == expected
    assert expected.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("trap", ["open to others", "a file", "a symbolic link"])
def test_a_directory_that_is_not_ours_alone_is_refused(tmp_path: Path, trap: str) -> None:
    """Whoever owns the directory owns the sockets in it."""
    directory = tmp_path / f"whisperd-{os.getuid()}"
    if trap == "a file":
        directory.touch()
    elif trap == "a symbolic link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        directory.symlink_to(tmp_path / "elsewhere")
    else:
        directory.mkdir()
        directory.chmod(0o750)
    with pytest.raises(WhisperdError) as caught:
        runtime_directory({"TMPDIR": str(tmp_path)})
    assert caught.value.kind == "forbidden"
    assert str(directory) in caught.value.message


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    """Anybody can make a directory in /tmp first."""
    directory = tmp_path / f"whisperd-{os.getuid()}"
    directory.mkdir(mode=0o700)
    os.chown(directory, 12345, 12345)
    with pytest.raises(WhisperdError, match="belongs to uid 12345"):
        runtime_directory({"TMPDIR": str(tmp_path)})


def test_the_control_socket_lies_beside_the_main_one() -> None:
    """A path given for the one tells where the other is."""
    assert control_path_beside(Path("/run/x/whisperd.sock")) == Path("/run/x/control.sock")


def test_state_directory_follows_the_same_order() -> None:
    """systemd's, the session's, the home directory's."""
    assert state_directory({"STATE_DIRECTORY": "/var/lib/w", "XDG_STATE_HOME": "/s"}) == Path("/var/lib/w")
    assert state_directory({"XDG_STATE_HOME": "/s"}) == Path("/s/whisperd")
    assert state_directory({"HOME": "/home/a"}) == Path("/home/a/.local/state/whisperd")


def test_settings_are_the_service_s_or_the_user_s() -> None:
    """As systemd says, else where XDG says."""
    environ = {"CONFIGURATION_DIRECTORY": "/etc/whisperd:/etc/other", "XDG_CONFIG_HOME": "/x", "HOME": "/home/a"}
    assert default_settings_path(environ) == Path("/etc/whisperd/whisperd.toml")
    assert default_settings_path({"XDG_CONFIG_HOME": "/x"}) == Path("/x/whisperd/whisperd.toml")
    assert default_settings_path({"HOME": "/home/a"}) == Path("/home/a/.config/whisperd/whisperd.toml")

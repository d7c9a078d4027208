"""Where the daemon's files are by default: the runtime directory with its sockets, the state directory, the settings.

Daemon and clients must come to the same answer from the same environment, so the rules live here and nowhere
else. The temporary directory belongs to everybody: what is found there is used only if this user owns it and
nobody else gets in, because whoever owns the directory owns every socket in it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from whisperd.errors import WhisperdError

SOCKET_NAME = "whisperd.sock"
CONTROL_NAME = "control.sock"


def runtime_directory(environ: Mapping[str, str] = os.environ, create: bool = False) -> Path:
    """$RUNTIME_DIRECTORY, else $XDG_RUNTIME_DIR/whisperd, else whisperd-UID in the temporary directory.

    With `create` it exists afterwards, with mode 0700 where it is made here. Raises WhisperdError forbidden
    where the directory is there, but not this user's alone; OSError where it cannot be made.
    """
    if service := environ.get("RUNTIME_DIRECTORY", "").split(":")[0]:
        directory = Path(service)  # made by the service manager, with the mode that the unit asks for
        if create:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory
    session = environ.get("XDG_RUNTIME_DIR")  # private to the user already
    shared = _temporary_directory(environ) / f"whisperd-{os.getuid()}"
    directory = Path(session) / "whisperd" if session else shared
    if create:
        directory.mkdir(mode=0o700, exist_ok=True)
    if not session:
        _check_private(directory)
    return directory


def default_socket_path(environ: Mapping[str, str] = os.environ, create: bool = False) -> Path:
    """The main socket's path; see runtime_directory for `create` and errors."""
    return runtime_directory(environ, create) / SOCKET_NAME


def default_control_path(environ: Mapping[str, str] = os.environ, create: bool = False) -> Path:
    """The control socket's path; see runtime_directory for `create` and errors."""
    return runtime_directory(environ, create) / CONTROL_NAME


def control_path_beside(socket: Path) -> Path:
    """The control socket that belongs to a main socket given by path."""
    return socket.with_name(CONTROL_NAME)


def state_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """$STATE_DIRECTORY, else $XDG_STATE_HOME/whisperd, else ~/.local/state/whisperd. Not created here."""
    if service := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(service)
    home = Path(environ.get("HOME") or "~").expanduser()
    return Path(environ.get("XDG_STATE_HOME") or home / ".local" / "state") / "whisperd"


def default_settings_path(environ: Mapping[str, str] = os.environ) -> Path:
    """$CONFIGURATION_DIRECTORY/whisperd.toml, else $XDG_CONFIG_HOME/whisperd/whisperd.toml, else below ~/.config."""
    if service := environ.get("CONFIGURATION_DIRECTORY", "").split(":")[0]:
        return Path(service) / "whisperd.toml"
    home = Path(environ.get("HOME") or "~").expanduser()
    return Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "whisperd" / "whisperd.toml"


def _temporary_directory(environ: Mapping[str, str]) -> Path:
    """$TMPDIR or /tmp. Not tempfile's search: it takes the first directory that it can write to, so that a
    full disk or another working directory would make daemon and client look in different places."""
    return Path(environ.get("TMPDIR") or "/tmp")


def _check_private(directory: Path) -> None:
    """Raises WhisperdError forbidden unless it is missing, or a real directory for this user alone."""
    try:
        status = directory.lstat()  # a symbolic link is somebody's choice of another directory
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        problem = "is not a directory"
    elif status.st_uid != os.getuid():
        problem = f"belongs to uid {status.st_uid}"
    elif status.st_mode & 0o077:
        problem = f"has mode {stat.S_IMODE(status.st_mode):04o}; it must be 0700"
    else:
        return
    raise WhisperdError("forbidden", f"the runtime directory {directory} {problem}")

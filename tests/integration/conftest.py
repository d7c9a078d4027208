"""Fixtures for tests with real daemons."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import Client, Daemon, SocketClient, Start


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short path: that of a socket may have 107 characters, which pytest's own would exceed."""
    path = Path(tempfile.mkdtemp(prefix="wd-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Starts daemons that all live in `home`, and ends them after the test."""
    daemons: list[Daemon] = []

    def start_one(*flags: str, **options: object) -> Daemon:
        daemon = Daemon(home, *flags, **options)  # type: ignore[arg-type]
        daemons.append(daemon)
        return daemon

    yield start_one
    for daemon in daemons:
        daemon.close()


@pytest.fixture(scope="session")
def shared() -> Iterator[Daemon]:
    """The daemon behind `everyday`."""
    path = Path(tempfile.mkdtemp(prefix="wd-", dir="/tmp"))
    sockets = path / "run" / "whisperd"
    sockets.mkdir(parents=True)
    daemon = Daemon(path, "--stdio", "--socket", str(sockets / "whisperd.sock"))
    yield daemon
    daemon.close()
    shutil.rmtree(path)


@pytest.fixture
def everyday(shared: Daemon) -> Iterator[Daemon]:
    """One daemon on stdio and both sockets, for all tests that leave it as they find it, and settled all replies."""
    yield shared
    shared.disconnect()
    shared.stdio.until("status", lambda status: status["connections"] == 1)
    shared.stdio.check_settled()


@pytest.fixture(params=["stdio", "socket"])
def client(request: pytest.FixtureRequest, everyday: Daemon) -> Iterator[Client]:
    """A connection to the everyday daemon: the grammar is the same on every transport."""
    client = everyday.stdio if request.param == "stdio" else everyday.connect()
    yield client
    client.call("ping")
    client.check_settled()


@pytest.fixture
def main_client(everyday: Daemon) -> SocketClient:
    """A connection to the everyday daemon's main socket."""
    return everyday.connect()

"""One daemon with tiny.en for each module of tests, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from running_daemon import Launch, RunningDaemon

from whisperd.client import Client


@pytest.fixture(scope="module")
def daemon(launch_shared: Launch) -> RunningDaemon:
    """A daemon as users start it, with the embedded English model."""
    return launch_shared("--model", "tiny.en")


@pytest.fixture(scope="module")
def client(daemon: RunningDaemon) -> Iterator[Client]:
    """A connection to it; files travel as descriptors."""
    with daemon.connect() as client:
        yield client

"""Fixtures for tests with the real model, in whatever folder they are; this folder is thereby on the import path."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_daemon import Launch, RunningDaemon, running_daemon


@pytest.fixture(scope="session")
def model_cache() -> Iterator[Path]:
    """Where the base model is joined from its packages: once for all tests."""
    path = Path(tempfile.mkdtemp(prefix="wd-models-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def launch_shared(model_cache: Path) -> Iterator[Launch]:
    """Starts daemons that end with the module."""
    with _launching(model_cache) as launch:
        yield launch


@pytest.fixture
def launch(model_cache: Path) -> Iterator[Launch]:
    """Starts daemons that end with the test."""
    with _launching(model_cache) as launch:
        yield launch


@contextlib.contextmanager
def _launching(model_cache: Path) -> Iterator[Launch]:
    with contextlib.ExitStack() as stack:

        def launch(*flags: str, **settings: object) -> RunningDaemon:
            # not pytest's own folder: the path of a socket may have 107 characters
            folder = Path(tempfile.mkdtemp(prefix="wd-"))
            stack.callback(shutil.rmtree, folder)
            return stack.enter_context(running_daemon(folder, *flags, cache=model_cache, **settings))

        yield launch

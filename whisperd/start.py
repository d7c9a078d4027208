"""The first moments of a daemon, before anything is loaded that takes time.

Order is all that is decided here. Missing standard descriptors are filled before the first file or socket is opened,
and limits raised before the first process inherits them. Then the inference worker starts loading its libraries, and
only then the supervisor its own: side by side they take half as long until the first reply.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys

from whisperd import models
from whisperd.child import INFERENCE, Child, start_child
from whisperd.config import Loaded

_M_MMAP_THRESHOLD = -3  # of mallopt(3)
_LARGE_BYTES = 1 << 20
_DESCRIPTORS_WANTED = 65_536  # a request holds two or three, and there may be queue_max of them


def run(settings: Loaded) -> int:
    """Serves until there is a reason to stop. Returns the exit code."""
    closed = _fill_standard_descriptors()
    _raise_descriptor_limit()
    _give_large_blocks_back()
    early: list[Child] = []
    if settings.config.model != models.FAKE:
        with contextlib.suppress(OSError):  # no memory, no descriptors: who needs the process tries again, and tells
            early.append(start_child(INFERENCE))
    from whisperd import daemon

    return daemon.run(settings, closed, early)


def _fill_standard_descriptors() -> list[str]:
    """Opens what is missing of the first three descriptors on /dev/null, or the next file or socket to be opened would
    pass for one of them. Returns which of stdin and stdout were missing."""
    closed = []
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number: this one
            closed.append(name)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    return [name for name in closed if name != "stderr"]


def _give_large_blocks_back() -> None:
    """Memory of a long line goes back to the system with it. Left to itself the C library (glibc) learns from the first
    such block to keep the next ones, up to 32 MiB each, in its heap, which then stays large."""
    with contextlib.suppress(AttributeError):  # another C library, which has no such habit
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def _raise_descriptor_limit() -> None:
    """The usual soft limit of 1,024 is for programs that use select(); the hard one is what the machine allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

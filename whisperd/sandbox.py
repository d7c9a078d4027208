"""What a worker process gives up before it works: its stdin and stdout, its life after its parent, and
for media workers memory, the network and every file.

Two kinds of measure. The ones that correctness rests on (stdio, death with the parent, limits) work or
raise. The ones that only make a break-in less useful (network, files) are tried, because kernels and
containers refuse them at will; each returns what came of it, so that the supervisor can tell.

Linux only. System calls without a Python function go through ctypes.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from dataclasses import dataclass

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000

# Numbers of system calls newer than 2019 are the same on every architecture.
_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
# By version of the kernel's interface: how many rights over files it knows (the lowest bits of a mask).
_LANDLOCK_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_LANDLOCK_TCP = 0b11  # bind, connect; since version 4
_LANDLOCK_SCOPES = 0b11  # abstract sockets and signals that leave the sandbox; since version 6


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What one media worker may take. `memory_bytes` comes on top of what is mapped when the limit is set."""

    # A decoder needs tens of megabytes and our own blocks a few; FFmpeg's largest single allocation is 2 GiB,
    # which therefore fails instead of pushing the machine into swap. The decoded audio is not part of this:
    # it is in a memory file that is never mapped.
    memory_bytes: int = 1 << 30
    # Applies to the memory file with decoded audio: at 64 kB/s 37 hours. A backstop behind max_audio_s.
    file_bytes: int = 8 << 30
    # Stdio, the channel, the input twice, two attempts at the output are under ten. But the kernel takes this limit
    # also for the descriptors that all processes of the user have in flight before it lets the worker send its own.
    open_files: int = 1024


def silence_stdio() -> None:
    """Points stdin at /dev/null and stdout at stderr, for C code too: stdout belongs to the protocol."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if null != 0:
        os.close(null)
    sys.stdout.flush()
    os.dup2(2, 1)


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent (strictly: the thread that started it) ends.

    A parent that ended even before this call is noticed by the closed channel.
    """
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # it ended in between, and the kernel had nobody to tell


def ignore_stop_signals() -> None:
    """Leaves Ctrl-C and SIGTERM to the whole group to the supervisor, which finishes accepted work first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def leave_network() -> str:
    """Moves the process into a network without devices. Call it before any thread exists.

    Returns "none", or "shared" where the kernel or the container does not allow it.
    """
    for flags in (_CLONE_NEWUSER | _CLONE_NEWNET, _CLONE_NEWNET):
        if _libc.unshare(flags) == 0:
            return "none"
    return "shared"


def limit_media_worker(limits: MediaLimits) -> None:
    """Sets the limits for good. Call it when all libraries are loaded: how much they map differs by host."""
    with open("/proc/self/statm", "rb") as statm:
        mapped_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    _limit(resource.RLIMIT_AS, mapped_bytes + limits.memory_bytes)
    _limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    _limit(resource.RLIMIT_NOFILE, limits.open_files)
    _limit(resource.RLIMIT_CORE, 0)  # a core file would hold a client's audio


def forbid_files() -> str:
    """Forbids for good to open files, to use TCP and to signal other processes.

    Open descriptors and memory files go on working. Uses Landlock without a single exception. Returns
    "none", or "open" where the kernel lacks Landlock.
    """
    version = _libc.syscall(
        _SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION
    )
    if version < 1:
        return "open"
    file_rights = _LANDLOCK_FILE_RIGHTS.get(version, max(_LANDLOCK_FILE_RIGHTS.values()))
    fields = [(1 << file_rights) - 1]
    if version >= 4:
        fields.append(_LANDLOCK_TCP)
    if version >= 6:
        fields.append(_LANDLOCK_SCOPES)
    attributes = (ctypes.c_uint64 * len(fields))(*fields)
    ruleset = _libc.syscall(
        _SYS_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(ctypes.sizeof(attributes)), 0
    )
    if ruleset < 0:
        return "open"
    try:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        refused = _libc.syscall(_SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return "open" if refused else "none"


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)  # prctl is variadic: its arguments have no declared width
    if _libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def _limit(which: int, value: int) -> None:
    """Lowers a limit to `value`; one that is lower already stays."""
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))

"""A media worker that does what its input says: JSON, a list of steps. For tests of who stands on the other side.

Steps: ["say", message, …] all in one write; ["samples", message, options] with a memory file; ["ask"] the hash, and on
with "go" or out with "drop"; ["beat"] signs of life until somebody ends it; ["die"]. Where $STANDIN_STARTS names a
file, each start adds a line to it, and a start whose number is in $STANDIN_FAILS fails.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import sys
from typing import Any

from whisperd.channel import Channel, ChannelClosed, encode_frame

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def sample_file(count: int, sealed: bool = True) -> int:
    """A memory file of so many silent samples."""
    fd = os.memfd_create("test-samples", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, count * 4)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd


def main() -> None:
    channel = Channel(int(sys.argv[1]))
    if _start_fails():
        channel.send({"event": "failed", "kind": "worker_lost", "message": "it was told not to start"})
        return
    channel.send({"event": "ready", "pid": os.getpid()})
    while True:
        message, fds = channel.receive()
        steps = json.loads(os.pread(fds[0], os.fstat(fds[0]).st_size, 0))
        os.close(fds[0])
        for step in steps:
            if not _do(channel, message["job"], *step):
                break


def _start_fails() -> bool:
    path = os.environ.get("STANDIN_STARTS")
    if not path:
        return False
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("start\n")
        file.flush()
        file.seek(0)
        number = len(file.readlines())
    return str(number) in os.environ.get("STANDIN_FAILS", "").split()


def _do(channel: Channel, job: str, kind: str, *rest: Any) -> bool:
    """False: the input is over."""
    if kind == "say":
        channel._socket.sendall(b"".join(encode_frame({"job": job, **message}) for message in rest))
    elif kind == "samples":
        fd = sample_file(**rest[1])
        channel.send({"job": job, **rest[0]}, [fd])
        os.close(fd)
    elif kind == "ask":
        channel.send({"event": "digest", "job": job, "digest": "0" * 32})
        if channel.receive()[0] == {"op": "drop", "job": job}:
            channel.send({"event": "dropped", "job": job})
            return False
    elif kind == "beat":
        while True:
            channel.send({"event": "beat", "job": job})
            select.select([], [], [], 0.01)
    elif kind == "die":
        os._exit(1)
    return True


if __name__ == "__main__":
    try:
        main()
    except ChannelClosed:
        sys.exit(0)

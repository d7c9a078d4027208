"""A worker's process before anything is known of it: started, with one end of its channel here.

Apart from `worker`, which keeps it alive, because this much can be had before the supervisor has loaded what a loop and
its watching take. What the first reply waits for longest, the engine's libraries, is therefore loaded meanwhile.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Program:
    """What runs in a worker: a module, and what its libraries find in the environment when they are loaded."""

    module: str
    environ: Mapping[str, str]


# Log-mel is little work; the lanes have the cores. And the C library would keep a heap for each of the engine's many
# threads: with one for all of them the peak of a burst and a long file fell from 557 to 390 MB and took no longer.
INFERENCE = Program("whisperd.inference.worker", {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"})


@dataclass(frozen=True, slots=True)
class Child:
    """A running process and our end of its channel."""

    process: subprocess.Popen[bytes]
    channel: socket.socket

    def end(self) -> None:
        """Ends a process that nobody took. Blocks for a moment."""
        self.channel.close()
        self.process.kill()
        self.process.wait()


def start_child(program: Program) -> Child:
    """Raises OSError where no process can be had."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            # -P: the directory whisperd is started in must not shadow a module. Stdout is our stderr: whatever a
            # native library prints stays out of the protocol.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", program.module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **program.environ},
            )
        except OSError:
            ours.close()
            raise
    return Child(process, ours)

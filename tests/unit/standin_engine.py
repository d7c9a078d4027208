"""An inference worker without a model: each batch does what its first row's samples say, a JSON list of steps.

Steps: ["row", number] a good result; ["done"]; ["say", message] with the batch's number put in unless it has one;
["beat"] signs of life for ever; ["hang"] nothing for ever; ["die"]. Batches run side by side.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
from typing import Any

from whisperd.channel import Channel, ChannelClosed
from whisperd.messages import WindowResult

READY = {"multilingual": False, "languages": ["en"], "device": "cpu", "compute_type": "int8", "lanes": 2, "threads": 1,
         "express": 1}  # fmt: skip


def main() -> None:
    channel = Channel(int(sys.argv[1]))
    channel.receive()
    channel.send({"event": "ready", "pid": os.getpid(), "scale": 1.0, **READY})
    lock = threading.Lock()
    while True:
        message, fds = channel.receive()
        steps = json.loads(os.pread(fds[0], os.fstat(fds[0]).st_size, 0))
        for fd in fds:
            os.close(fd)
        threading.Thread(target=_follow, args=(channel, lock, message["batch"], steps), daemon=True).start()


def _follow(channel: Channel, lock: threading.Lock, batch: int, steps: list[Any]) -> None:
    def say(message: dict[str, Any]) -> None:
        with lock:
            channel.send({"batch": batch, **message})

    for kind, *rest in steps:
        if kind == "row":
            say({"event": "row", "row": rest[0], "result": WindowResult((), "en", rest[0] / 10).to_wire()})
        elif kind == "done":
            say({"event": "done"})
        elif kind == "say":
            say(rest[0])
        elif kind == "die":
            os._exit(1)
        while kind in ("beat", "hang"):
            if kind == "beat":
                say({"event": "beat"})
            select.select([], [], [], 0.01)


if __name__ == "__main__":
    try:
        main()
    except ChannelClosed:
        sys.exit(0)

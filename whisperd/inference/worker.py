"""A process with one model on one device: batches in, results out, a sign of life between the steps.

It trusts the supervisor and nothing else needs to trust it: it may be killed at any moment, and what it was doing
is done again by its successor. Signs of life come from the lanes' own work, never from a timer, so that a hung
batch goes silent.

Started by the supervisor as `python -m whisperd.inference.worker FD`, FD being its end of the channel.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisperd.channel import Channel, ChannelClosed
from whisperd.errors import WhisperdError
from whisperd.inference.placement import Placement
from whisperd.messages import SAMPLE_RATE, DecodeOptions, RowOptions, WindowResult
from whisperd.sandbox import die_with_parent, ignore_stop_signals, silence_stdio

if TYPE_CHECKING:
    from whisperd.inference.engine import Recognizer
    from whisperd.inference.rows import Row

_Task = tuple[dict[str, Any], list[int]]
# Above this size a model is taken to need proportionally longer for a batch before it counts as hung.
_QUICK_MODEL_BYTES = 150_000_000


class _Outbox:
    """The channel's sending side, shared by the lanes."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        with self._lock:
            try:
                self._channel.send(message)
            except ChannelClosed:
                os._exit(0)  # the supervisor is gone: nobody waits for what the lanes still do


def main() -> int:
    """Serves until the supervisor closes the channel."""
    silence_stdio()
    die_with_parent()
    ignore_stop_signals()
    channel = Channel(int(sys.argv[1]))
    outbox = _Outbox(channel)
    # After stdio is out of the way: native libraries print. Before the first message: the process may have been started
    # early, to have this behind it when the supervisor knows what to load.
    from whisperd.inference.engine import load

    try:
        message, _ = channel.receive()
        try:
            recognizer = _load(load, message, outbox)
        except WhisperdError as error:
            outbox.send({"event": "failed", "kind": error.kind, "message": error.message})
            return 0
        tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        for _ in range(recognizer.placement.workers):
            threading.Thread(target=_lane, args=(tasks, recognizer, outbox), daemon=True).start()
        while True:
            tasks.put(channel.receive())
    except ChannelClosed:
        return 0


def _load(load: Callable[[Path, Placement], Recognizer], message: dict[str, Any], outbox: _Outbox) -> Recognizer:
    path = Path(message["path"])
    names = ("device", "compute_type", "lanes", "threads", "express")
    wanted = Placement(**{name: message[name] for name in names})
    recognizer = load(path, wanted)
    placement = recognizer.placement
    outbox.send(
        {
            "event": "ready",
            "pid": os.getpid(),
            "multilingual": recognizer.multilingual,
            "languages": recognizer.languages,
            "device": placement.device,
            "compute_type": placement.compute_type,
            "lanes": placement.lanes,
            "threads": placement.threads,
            "express": placement.express,
            "scale": max(1.0, (path / "model.bin").stat().st_size / _QUICK_MODEL_BYTES),
        }
    )
    return recognizer


def _lane(tasks: queue.SimpleQueue[_Task], recognizer: Recognizer, outbox: _Outbox) -> None:
    """One of the batches that are decoded side by side."""
    while True:
        message, fds = tasks.get()
        batch = message["batch"]
        try:
            results = _decode(message, fds, recognizer, partial(outbox.send, {"event": "beat", "batch": batch}))
        except Exception as error:  # whatever it is, it is this batch's alone: the supervisor decides, the lane lives
            outbox.send({"event": "error", "batch": batch, "message": f"{type(error).__name__}: {error}"})
        else:
            for row, result in enumerate(results):
                outbox.send({"event": "row", "batch": batch, "row": row, "result": result.to_wire()})
            outbox.send({"event": "done", "batch": batch})
        finally:
            for fd in fds:
                os.close(fd)


def _decode(
    message: dict[str, Any], fds: list[int], recognizer: Recognizer, beat: Callable[[], None]
) -> list[WindowResult]:
    beat()
    rows = [_row(row, fds) for row in message["rows"]]
    if message["rows"][0]["task"] == "detect":
        return recognizer.detect(rows, beat)
    return recognizer.transcribe(rows, DecodeOptions.from_wire(message["options"]), message["frames"], beat)


def _row(row: dict[str, Any], fds: list[int]) -> Row:
    import numpy as np

    from whisperd.inference.rows import Row

    start, stop = row["start"], row["stop"]
    data = os.pread(fds[row["fd"]], (stop - start) * 4, start * 4)
    options = RowOptions(row["language"], row["task"], row["words"])
    speech_s = (row["speech_stop"] - start) / SAMPLE_RATE
    return Row(np.frombuffer(data, dtype="<f4"), options, row["sure_speech_s"], speech_s)


if __name__ == "__main__":
    sys.exit(main())

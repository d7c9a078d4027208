"""The process that touches untrusted media: a descriptor in, samples in a memory file and windows out.

It is made to be lost. It holds nothing but the job in hand, opens no file by name, has no network and
little memory, and says after each piece of work that it is alive, from the work itself, so that a hang
is silence. Before it decodes it names the content by its hash and waits to be told to go on: if it dies, the
supervisor knows of what, and content that is known as deadly is not decoded again.

Started by the supervisor as `python -m whisperd.media.worker FD`, FD being its end of the channel. What
libraries print goes to stderr, and none is imported before that is arranged.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from whisperd import sandbox
from whisperd.channel import Channel, ChannelClosed
from whisperd.errors import WhisperdError
from whisperd.media.answers import TEXT_MAX, WARNINGS_MAX

if TYPE_CHECKING:
    from whisperd.media.preparation import Preparer
    from whisperd.media.windows import WindowPlan

_BEAT_EVERY_S = 0.2  # pieces of work are far shorter, so a sign of life comes at least every half second
# Libraries read these when they are loaded. Workers side by side use the cores, so one thread each. And official
# builds of onnxruntime (1.32) tell their maker over the network how they are used, unless this forbids it.
_ENVIRON = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}


class _Dropped(Exception):
    """The supervisor does not want this input any more."""


def main() -> int:
    """Serves until the supervisor closes the channel."""
    sandbox.silence_stdio()
    network = sandbox.leave_network()  # before the next line: new credentials could undo it
    sandbox.die_with_parent()
    sandbox.ignore_stop_signals()
    channel_fd = int(sys.argv[1])
    os.set_inheritable(channel_fd, False)
    channel = Channel(channel_fd)
    preparer = _load()
    sandbox.limit_media_worker(sandbox.MediaLimits())
    files = sandbox.forbid_files()
    try:
        channel.send({"event": "ready", "pid": os.getpid(), "network": network, "files": files})
        while True:
            message, fds = channel.receive()
            _serve(channel, preparer, message, fds)
    except ChannelClosed:
        return 0


def _load() -> Preparer:
    os.environ.update(_ENVIRON)
    from whisperd.media.preparation import Preparer

    preparer = Preparer()
    preparer.warm_up()
    return preparer


def _serve(channel: Channel, preparer: Preparer, message: dict[str, Any], fds: list[int]) -> None:
    """One message: exactly one `prepared`, `failed` or `dropped` ends the answer; `windows` may come before. Raises
    ChannelClosed only."""
    job = str(message.get("job"))
    try:
        _prepare(channel, preparer, message, job, fds)
    except ChannelClosed:
        raise
    except _Dropped:
        channel.send({"event": "dropped", "job": job})
    except WhisperdError as error:
        channel.send({"event": "failed", "job": job, "kind": error.kind, "message": error.message[:TEXT_MAX]})
    except MemoryError:
        text = "decoding this input takes more memory than a media worker may have; convert it to wav or flac"
        channel.send({"event": "failed", "job": job, "kind": "audio_unreadable", "message": text})
    except Exception as error:  # our bug, not the input's fault; this job's alone, so the worker goes on
        traceback.print_exc(file=sys.stderr)
        text = f"preparing the audio failed: {type(error).__name__}"
        channel.send({"event": "failed", "job": job, "kind": "internal", "message": text})
    finally:
        for fd in fds:
            os.close(fd)


def _prepare(channel: Channel, preparer: Preparer, message: dict[str, Any], job: str, fds: list[int]) -> None:
    if message.get("op") != "prepare" or len(fds) != 1:
        raise ValueError(f"op {message.get('op')!r} with {len(fds)} descriptors")
    preparation = preparer.prepare(
        fds[0],
        message,
        on_digest=lambda digest: _ask(channel, job, digest),
        on_block=_Beats(channel, job),
        on_part=lambda samples_fd, part: _tell_part(channel, job, samples_fd, part),
    )
    try:
        answer = {"event": "prepared", "job": job, **preparation.to_wire()}
        answer["warnings"] = [warning[:TEXT_MAX] for warning in answer["warnings"][:WARNINGS_MAX]]
        channel.send(answer, [] if preparation.parted else [preparation.samples_fd])
    finally:
        os.close(preparation.samples_fd)


def _tell_part(channel: Channel, job: str, samples_fd: int | None, part: WindowPlan) -> None:
    """The samples go with the first part."""
    fds = [] if samples_fd is None else [samples_fd]
    channel.send({"event": "windows", "job": job, **part.to_wire()}, fds)


def _ask(channel: Channel, job: str, digest: str) -> None:
    """Names the content and waits for the word. Raises _Dropped, or ValueError for what is no such word."""
    channel.send({"event": "digest", "job": job, "digest": digest})
    message, fds = channel.receive()
    for fd in fds:
        os.close(fd)
    if message.get("op") == "drop":
        raise _Dropped
    if message.get("op") != "go":
        raise ValueError(f"op {message.get('op')!r} after a digest")


class _Beats:
    """Signs of life for one job, no more often than anybody needs."""

    def __init__(self, channel: Channel, job: str) -> None:
        self._channel = channel
        self._job = job
        self._last_s = time.monotonic()

    def __call__(self) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s >= _BEAT_EVERY_S:
            self._last_s = now_s
            self._channel.send({"event": "beat", "job": self._job})


if __name__ == "__main__":
    sys.exit(main())

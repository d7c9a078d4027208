"""A lean source of requests for `overhead.py`, in a process of its own: its cost must not be taken for the daemon's.

Lines are built beforehand, replies are kept as bytes and looked at only when the last one is in: every id must have
come once, with the text that the fake engine gives to that input.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import selectors
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Load:
    """`count` requests in all, over `connections`, each with up to `depth` unanswered."""

    source: str  # path | fd | data | ping
    audio: Path
    count: int
    connections: int = 8
    depth: int = 32

    def line(self, number: int) -> bytes:
        message: dict[str, object] = {"jsonrpc": "2.0", "id": number, "method": "transcribe"}
        if self.source == "ping":
            message["method"] = "ping"
        elif self.source == "path":
            message["params"] = {"audio": {"path": str(self.audio)}}
        elif self.source == "fd":
            message["params"] = {"audio": {"fd": 0}}
        else:
            message["params"] = {"audio": {"data": base64.b64encode(self.audio.read_bytes()).decode()}}
        return json.dumps(message).encode() + b"\n"

    def check(self, replies: bytes) -> None:
        """Raises AssertionError unless there is one reply, the right one, to each of `count` requests."""
        text = f"{hashlib.sha256(self.audio.read_bytes()).hexdigest()[:8]} 0"
        got = [json.loads(line) for line in replies.splitlines()]
        assert Counter(reply["id"] for reply in got) == Counter(range(self.count)), "a reply is missing, or came twice"
        for reply in got:
            assert "result" in reply, reply
            assert self.source == "ping" or reply["result"]["text"].startswith(text), reply


@dataclass(frozen=True)
class Run:
    """What a load took: seconds from the first request to the last reply, and the generator's own processor time."""

    seconds: float
    own_cpu_s: float


class _Client:
    """One connection and its share of the requests."""

    def __init__(self, load: Load, socket_path: str, numbers: Sequence[int]) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(socket_path)
        self.received: list[bytes] = []
        self.answered = 0
        self.count = len(numbers)
        self._lines = [load.line(number) for number in numbers]
        self._asked = 0
        self._file = load.audio.open("rb") if load.source == "fd" else None

    def ask(self, most: int) -> None:
        """Sends the next requests; a descriptor goes with each where it is the audio."""
        until = min(self.count, self._asked + most)
        lines = self._lines[self._asked : until]
        self._asked = until
        if self._file:
            for line in lines:
                socket.send_fds(self.sock, [line], [self._file.fileno()])
        elif lines:
            self.sock.sendall(b"".join(lines))

    def take(self) -> int:
        """The number of replies that came now."""
        chunk = self.sock.recv(_CHUNK_BYTES)
        assert chunk, "the daemon has closed the connection"
        self.received.append(chunk)
        came = chunk.count(b"\n")
        self.answered += came
        return came

    def close(self) -> None:
        self.sock.close()
        if self._file:
            self._file.close()


def over_sockets(load: Load, socket_path: str) -> Run:
    """Pipelined requests over several connections."""
    clients = [
        _Client(load, socket_path, range(first, load.count, load.connections)) for first in range(load.connections)
    ]
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.sock, selectors.EVENT_READ, client)
        began, began_cpu = time.perf_counter(), time.process_time()
        for client in clients:
            client.ask(load.depth)
        left = load.count
        while left:
            for key, _ in selector.select():
                came = key.data.take()
                left -= came
                key.data.ask(came)
        run = Run(time.perf_counter() - began, time.process_time() - began_cpu)
    load.check(b"".join(chunk for client in clients for chunk in client.received))
    for client in clients:
        client.close()
    return run


def one_at_a_time(load: Load, socket_path: str) -> list[float]:
    """Milliseconds of each of `count` requests on an otherwise idle daemon, from sendmsg to the reply's newline."""
    client = _Client(load, socket_path, range(load.count))
    latencies_ms = []
    for _ in range(load.count):
        began = time.perf_counter()
        client.ask(1)
        while not client.take():
            pass
        latencies_ms.append((time.perf_counter() - began) * 1000)
    load.check(b"".join(client.received))
    client.close()
    return latencies_ms


def over_stdio(load: Load, process: subprocess.Popen[bytes]) -> Run:
    """All requests at once into the daemon's stdin; replies as they come. Both pipes stay open."""
    assert process.stdin
    assert process.stdout
    fd_in, fd_out = process.stdin.fileno(), process.stdout.fileno()
    everything = memoryview(b"".join(load.line(number) for number in range(load.count)))

    def write() -> None:
        at = 0
        while at < len(everything):
            at += os.write(fd_in, everything[at : at + _CHUNK_BYTES])

    writer = threading.Thread(target=write)
    began, began_cpu = time.perf_counter(), time.process_time()
    writer.start()
    received, answered = [], 0
    while answered < load.count:
        chunk = os.read(fd_out, _CHUNK_BYTES)
        assert chunk, "the daemon has closed stdout"
        received.append(chunk)
        answered += chunk.count(b"\n")
    run = Run(time.perf_counter() - began, time.process_time() - began_cpu)
    writer.join()
    load.check(b"".join(received))
    return run

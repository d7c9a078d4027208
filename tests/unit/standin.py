"""A small daemon for client tests: real sockets, real descriptors, and a script instead of a model.

Run as a program it speaks on stdin and stdout, as a spawned daemon does.
"""

from __future__ import annotations

import array
import base64
import json
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def transcript(text: str, **more: Any) -> Json:
    """A result of `transcribe` with every field of the contract; one segment for each sentence."""
    sentences = [part.strip() + "." for part in text.split(".") if part.strip()]
    return {
        "text": text,
        "language": "en",
        "language_probability": None,
        "duration_s": 2.0,
        "speech_s": 1.5,
        "model": "stand-in",
        "task": "transcribe",
        "job": "j1",
        "segments": [segment(i, sentence) for i, sentence in enumerate(sentences)],
        "timing": {"queue_ms": 0.0, "media_ms": 1.0, "vad_ms": 1.0, "infer_ms": 1.0, "total_ms": 3.0},
        "rtf": 0.1,
        "windows": 1,
        "warnings": [],
        **more,
    }


def segment(id: int, text: str) -> Json:
    """A segment of one second, with one word."""
    return {
        "id": id,
        "start": float(id),
        "end": id + 1.0,
        "text": text,
        "avg_logprob": -0.1,
        "no_speech_prob": 0.0,
        "compression_ratio": 1.0,
        "temperature": 0.0,
        "words": [{"word": text, "start": float(id), "end": id + 1.0, "probability": 0.9}],
    }


def error(kind: str, message: str = "no", **data: Any) -> Json:
    """An error object."""
    return {"code": -32000, "message": message, "data": {"kind": kind, "retryable": False, **data}}


class Connection:
    """The daemon's end of one client. Keeps every request line that came."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.requests: list[Json] = []
        self.cancelled = threading.Event()
        self._sending = threading.Lock()

    def send(self, **message: Any) -> None:
        with self._sending, suppress(BrokenPipeError):
            self.socket.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def reply(self, request: Json, text: str, **more: Any) -> None:
        self.send(id=request["id"], result=transcript(text, **more))

    def fail(self, request: Json, kind: str, **data: Any) -> None:
        self.send(id=request["id"], error=error(kind, **data))

    def tell_segment(self, request: Json, index: int, text: str, final: bool = True) -> None:
        params = {"id": request["id"], "job": "j1", "index": index, "segment": segment(index, text)}
        self.send(method="transcribe.segment", params={**params, "final": final})

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)

    def lines(self) -> Iterator[tuple[Json, list[int]]]:
        """Requests, each with the descriptors of its line."""
        buffer, fds = b"", []
        while True:
            chunk, ancillary, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(64))
            for _level, _kind, data in ancillary:
                received = array.array("i")
                received.frombytes(data)
                fds += received
            if not chunk:
                return
            buffer += chunk
            *whole, buffer = buffer.split(b"\n")
            for line in whole:
                request = json.loads(line)
                # a line that names a descriptor is the one whose bytes carried it; the client sends one at most
                taken = [fds.pop(0)] if "fd" in request.get("params", {}).get("audio", {}) else []
                yield request, taken


def audio_bytes(request: Json, fds: list[int]) -> bytes:
    """What the request's audio holds, whichever way it came."""
    audio = request["params"]["audio"]
    if "fd" in audio:
        with open(fds[audio["fd"]], "rb") as file:
            file.seek(0)
            return file.read()
    return base64.b64decode(audio["data"]) if "data" in audio else Path(audio["path"]).read_bytes()


Behaviour = Callable[[Connection, Json, bytes], None]


def echo(connection: Connection, request: Json, audio: bytes) -> None:
    """The default: the "speech" is the audio's bytes as text."""
    connection.reply(request, audio.decode("latin-1"))


class StandIn:
    """Listens on a socket; `behave` answers transcribe and detect_language, one at a time per client."""

    def __init__(self, path: Path, behave: Behaviour = echo) -> None:
        self.path = path
        self.behave = behave
        self.connections: list[Connection] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def requests(self) -> list[Json]:
        return [request for connection in self.connections for request in connection.requests]

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            with suppress(OSError):
                connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                connection = Connection(sock)
                self.connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        with connection.socket, suppress(ConnectionResetError):
            for request, fds in connection.lines():
                connection.requests.append(request)
                if request["method"] == "cancel":
                    connection.cancelled.set()
                    if "id" in request:
                        connection.send(id=request["id"], result={"cancelled": True})
                        connection.send(id=request["params"]["id"], error=error("cancelled"))
                elif request["method"] == "ping":
                    connection.send(id=request["id"], result={"pong": True, "time": 1.0})
                else:
                    self.behave(connection, request, audio_bytes(request, fds))


@contextmanager
def standing_in(path: Path, behave: Behaviour = echo) -> Iterator[StandIn]:
    """A stand-in that listens on `path` as long as the context lasts."""
    standin = StandIn(path, behave)
    try:
        yield standin
    finally:
        standin.close()


def main() -> None:
    """On stdio. The argument says how it ends: `eof` (properly), `crash` (at the first request), `stay`."""
    for line in sys.stdin:
        if sys.argv[1] == "crash":
            sys.stderr.write("cannot go on: out of luck\n")
            sys.exit(7)
        request = json.loads(line)
        if "id" in request:
            text = audio_bytes(request, []).decode("latin-1")
            result = transcript(text, raw_params=request["params"])
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}) + "\n")
            sys.stdout.flush()
    while sys.argv[1] == "stay":
        signal.pause()


if __name__ == "__main__":
    main()

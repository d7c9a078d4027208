"""A real daemon in a process of its own, and clients that judge every line it says.

The rule that keeps the tests honest: a client reads nothing without checking it against `schemas/`, and takes no
reply that it did not ask for or has had before. Nothing here sleeps; whoever waits, waits for an event, and gives up
after DEADLINE_S, which only a hanging daemon ever reaches.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

DEADLINE_S = 15.0
GATED = Path(__file__).with_name("gated_daemon.py")
SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
# Ours must not leak into the daemon: it would find the tester's own sockets, store and settings.
_JUDGED_IN_FULL = 300  # messages of one connection
_NOT_INHERITED = ("XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY", "STATE_DIRECTORY", "NOTIFY_SOCKET", "JOURNAL_STREAM")

# Each is the trace of a mistake that no reply need show.
_ACCIDENTS = ("Traceback", "never retrieved", "never awaited", "unexpectedly", "Exception in", "ResourceWarning")

Message = dict[str, Any]
Id = str | int


def _validators() -> tuple[dict[str, Draft202012Validator], Draft202012Validator, Draft202012Validator]:
    """Of each method's result by name, of a reply, and of a notification."""
    files = {f.relative_to(SCHEMAS).as_posix(): json.loads(f.read_text("utf-8")) for f in SCHEMAS.rglob("*.json")}
    resources: Iterable[tuple[str, Any]] = ((s["$id"], Resource.from_contents(s)) for s in files.values())
    registry: Registry[Any] = Registry().with_resources(resources)

    def compiled(urn: str) -> Draft202012Validator:
        return Draft202012Validator({"$ref": urn}, registry=registry)

    results = {
        name.removeprefix("methods/").removesuffix(".json"): compiled(schema["$id"] + "#/$defs/result")
        for name, schema in files.items()
        if name.startswith("methods/")
    }
    return results, compiled(files["reply.json"]["$id"]), compiled(files["notification.json"]["$id"])


RESULTS, REPLY, NOTIFICATION = _validators()


def digest_of(data: bytes) -> str:
    """The text that the fake engine finds in the first window of an input."""
    return f"{hashlib.sha256(data).hexdigest()[:8]} 0"


def audio(data: bytes) -> Message:
    """The `audio` parameter for an input of these bytes."""
    return {"data": base64.b64encode(data).decode()}


def request(method: str, id: Id | None = None, /, **params: Any) -> bytes:
    """A request line; without an id, a notification."""
    message: Message = {"jsonrpc": "2.0", "method": method, "params": params}
    if id is not None:
        message["id"] = id
    return json.dumps(message).encode() + b"\n"


def transcription(id: Id, data: bytes, /, **params: Any) -> bytes:
    """A `transcribe` line for an input of these bytes."""
    return request("transcribe", id, audio=audio(data), **params)


class Log:
    """What the daemon says on stderr, collected by a thread so that it never waits for us."""

    def __init__(self, fd: int) -> None:
        self._lines: list[str] = []
        self._ended = False
        self._grown = threading.Condition()
        self._thread = threading.Thread(target=self._collect, args=(fd,), daemon=True)
        self._thread.start()

    def _collect(self, fd: int) -> None:
        with open(fd, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                with self._grown:
                    self._lines.append(line)
                    self._grown.notify_all()
        with self._grown:
            self._ended = True
            self._grown.notify_all()

    @property
    def text(self) -> str:
        with self._grown:
            return "".join(self._lines)

    def count(self, words: str) -> int:
        with self._grown:
            return sum(words in line for line in self._lines)

    def wait_for(self, words: str, count: int = 1) -> None:
        """Until so many lines with these words have come."""

        def enough() -> bool:
            return sum(words in line for line in self._lines) >= count

        with self._grown:
            self._grown.wait_for(lambda: enough() or self._ended, DEADLINE_S)
            assert enough(), f"{words!r} x {count} did not come; the log is:\n{''.join(self._lines)}"

    def close(self) -> str:
        """The whole text, once the daemon has ended."""
        self._thread.join(DEADLINE_S)
        return self.text


class Client:
    """One connection: sends lines, and reads replies that it checks. Subclasses know how bytes travel."""

    def __init__(self) -> None:
        self.notifications: list[Message] = []
        self._unread = bytearray()
        self._ready: dict[Id, Message] = {}
        self._asked: dict[Id, str] = {}  # unanswered requests: their methods
        self._next_id = 0
        self._judged = 0

    # -- to be provided -----------------------------------------------------------------------------------------

    def send_bytes(self, data: bytes) -> None:
        raise NotImplementedError

    def _fd(self) -> int:
        raise NotImplementedError

    # -- asking -------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Sends bytes, taking note of what they ask."""
        for line in data.splitlines():
            self.note(line)
        self.send_bytes(data)

    def note(self, line: bytes) -> None:
        """Takes note of a request that is sent by other means."""
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(line)
            if isinstance(message, dict) and isinstance(message.get("id"), str | int):
                self.expect(message["id"], str(message.get("method")))

    def expect(self, id: Id, method: str) -> None:
        """A reply may come to this id, and its result is one of this method."""
        self._asked.setdefault(id, method)

    def forget(self, id: Id) -> None:
        """The request turned out to be none."""
        self._asked.pop(id, None)

    def ask(self, method: str, **params: Any) -> Id:
        """Sends a request; returns its id."""
        self._next_id += 1
        id = f"ask {self._next_id}"
        self.send(request(method, id, **params))
        return id

    def submit(self, data: bytes, **params: Any) -> Id:
        """Sends a `transcribe` for an input of these bytes; returns its id."""
        return self.ask("transcribe", audio=audio(data), **params)

    def send_in_background(self, chunks: Iterable[bytes]) -> threading.Thread:
        """Sends without reading in between; what is asked has to be told to `note`."""

        def send() -> None:
            for chunk in chunks:
                self.send_bytes(chunk)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        return thread

    # -- being answered -----------------------------------------------------------------------------------------

    def read_line(self) -> bytes:
        """The next line, judged by nobody; empty at the end."""
        deadline = time.monotonic() + DEADLINE_S
        while (end := self._unread.find(b"\n")) < 0:
            chunk = self._read(deadline)
            if not chunk:
                assert not self._unread, f"the output ends in the middle of a line: {bytes(self._unread[-200:])!r}"
                return b""
            self._unread += chunk
        line = bytes(self._unread[: end + 1])
        del self._unread[: end + 1]
        return line

    def _read(self, deadline: float) -> bytes:
        poll = select.poll()
        poll.register(self._fd(), select.POLLIN)
        left_ms = max(0.0, deadline - time.monotonic()) * 1000
        assert poll.poll(left_ms), f"nothing came within {DEADLINE_S} s; unanswered: {list(self._asked.items())[:9]}"
        try:
            return os.read(self._fd(), 1 << 20)
        except ConnectionResetError:
            return b""

    def receive(self) -> Message | None:
        """The next reply, of whatever request; None at the end. Notifications are put aside."""
        while line := self.read_line():
            message = self._judge(line)
            if "method" not in message:
                return message
            self.notifications.append(message)
        return None

    def _judge(self, line: bytes) -> Message:
        """A message that is as it should be. Of many, some are checked in full: a thousand would take a second."""
        message: Message = json.loads(line)
        self._judged += 1
        in_full = self._judged <= _JUDGED_IN_FULL or self._judged % 50 == 0
        if "method" in message:
            if in_full:
                NOTIFICATION.validate(message)
            assert message["params"]["id"] in self._asked, "news of a request that is answered, or was never sent"
            return message
        if in_full:
            REPLY.validate(message)
        assert ("result" in message) != ("error" in message)
        id = message["id"]
        if id is not None:
            assert id in self._asked, f"{id!r} was answered before, or never asked: {line[:300]!r}"
            method = self._asked.pop(id)
            if "result" in message and in_full:
                RESULTS[method].validate(message["result"])
        return message

    def reply(self, id: Id | None) -> Message:
        """The reply with this id; those of others that come before it are kept for later."""
        while id not in self._ready:
            message = self.receive()
            assert message is not None, f"the output ended before the reply to {id!r}"
            if message["id"] == id:
                return message
            self._ready[message["id"]] = message
        return self._ready.pop(id)

    def result(self, id: Id) -> Message:
        """The result of the request with this id, which succeeds."""
        reply = self.reply(id)
        assert "result" in reply, reply
        return dict(reply["result"])

    def error(self, id: Id | None) -> Message:
        """`data` of the error with this id, with its message added."""
        reply = self.reply(id)
        assert "error" in reply, reply
        return {**reply["error"]["data"], "message": reply["error"]["message"]}

    def call(self, method: str, **params: Any) -> Message:
        """A request and its result."""
        return self.result(self.ask(method, **params))

    def refusal(self, method: str, **params: Any) -> Message:
        """A request and its error."""
        return self.error(self.ask(method, **params))

    def until(self, method: str, holds: Callable[[Message], bool]) -> Message:
        """Asks again and again until the result satisfies `holds`."""
        deadline = time.monotonic() + DEADLINE_S
        while not holds(result := self.call(method)):
            assert time.monotonic() < deadline, f"it never came about; last seen: {result}"
        return result

    def check_settled(self) -> None:
        """Every reply that came was one that the test looked for, and none is owed."""
        assert not self._ready, f"replies that nobody wanted: {self._ready}"
        assert not self._asked, f"unanswered: {self._asked}"

    def forget_unread(self) -> None:
        """What was kept for later is of no interest."""
        self._ready.clear()

    def rest(self) -> list[Message]:
        """All replies to the end of the output."""
        return list(iter(self.receive, None))


class StdioClient(Client):
    """The parent's side of a daemon with --stdio."""

    def __init__(self, stdin: int, stdout: int) -> None:
        super().__init__()
        self.stdin, self.stdout = stdin, stdout

    def send_bytes(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.stdin, view) :]

    def _fd(self) -> int:
        return self.stdout

    def end_input(self) -> None:
        """EOF for the daemon."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def end_output(self) -> None:
        """Nobody reads any more: EPIPE for the daemon."""
        if self.stdout >= 0:
            os.close(self.stdout)
            self.stdout = -1

    def close(self) -> None:
        self.end_input()
        self.end_output()


class SocketClient(Client):
    """A client of one of the sockets."""

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise

    def wait_until_read(self) -> None:
        """Until the daemon has taken all that was sent, or has closed the connection."""
        deadline = time.monotonic() + DEADLINE_S
        unread = bytearray(4)
        while fcntl.ioctl(self.socket, termios.TIOCOUTQ, unread) == 0 and any(unread):
            assert time.monotonic() < deadline, f"{int.from_bytes(unread, sys.byteorder)} bytes are not read"

    def send_bytes(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_fds(self, data: bytes, fds: Sequence[int]) -> None:
        """One sendmsg with descriptors."""
        for line in data.splitlines():
            self.note(line)
        sent = socket.send_fds(self.socket, [data], fds)
        self.socket.sendall(data[sent:])

    def _fd(self) -> int:
        return self.socket.fileno()

    def end_input(self) -> None:
        """Half-close: no more requests, replies are still wanted."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()


class Daemon:
    """A daemon process with its own home, so that it meets nobody else's files."""

    def __init__(
        self,
        home: Path,
        *flags: str,
        stdin: int | None = None,
        stdout: int | None = None,
        gated: bool = True,
        environ: Mapping[str, str | None] | None = None,
        preexec: Callable[[], None] | None = None,
        **settings: Any,
    ) -> None:
        """Starts `whisperd serve` with these flags and settings (which travel in the environment).

        stdin, stdout: descriptors to be used instead of pipes to us. gated: with an engine that a test can hold
        (see gated_daemon.py); else the program as users start it.
        """
        self.home = home
        self._clients: list[SocketClient] = []
        program = [str(GATED)] if gated else ["-m", "whisperd"]
        theirs_in, ours_in = (stdin, -1) if stdin is not None else os.pipe()
        ours_out, theirs_out = (-1, stdout) if stdout is not None else os.pipe()
        ours_err, theirs_err = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, *program, "serve", *_default_model(flags), *flags],
            stdin=theirs_in,
            stdout=theirs_out,
            stderr=theirs_err,
            env=_environment(home, environ or {}, settings),
            cwd=home,
            preexec_fn=preexec,
        )
        for fd in {theirs_in, theirs_out, theirs_err} - {stdin, stdout}:
            os.close(fd)
        self.stdio = StdioClient(ours_in, ours_out)
        self.log = Log(ours_err)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def main_path(self) -> Path:
        return self.home / "run" / "whisperd" / "whisperd.sock"

    @property
    def control_path(self) -> Path:
        return self.home / "run" / "whisperd" / "control.sock"

    def connect(self, path: Path | None = None) -> SocketClient:
        """A client on the main socket, or on this one."""
        self.log.wait_for("serving")
        client = SocketClient(path or self.main_path)
        self._clients.append(client)
        return client

    def control(self) -> SocketClient:
        """A client on the control socket."""
        return self.connect(self.control_path)

    def disconnect(self) -> None:
        """Closes all clients of the sockets."""
        for client in self._clients:
            client.close()
        self._clients.clear()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def release(self) -> None:
        """Lets go what the gated engine holds, now and from here on."""
        self.signal(signal.SIGUSR1)

    def wait_until_held(self, count: int = 1) -> None:
        """Until the gated engine has held so many inputs since the start."""
        self.log.wait_for("gate: held", count)

    def wait(self) -> int:
        """The exit code, when it has ended."""
        return self.process.wait(DEADLINE_S)

    def status_bytes(self, name: str) -> int:
        """A figure of /proc/PID/status in bytes, such as VmRSS, or VmHWM, its highest value."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {name} in the status of {self.pid}")

    def forget_peak(self) -> None:
        """From now on VmHWM is the peak from now on."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def fds(self) -> list[str]:
        """What its descriptors are open on."""
        links = []
        for fd in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                links.append(str(fd.readlink()))
        return sorted(links)

    def cpu_s(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """Ends it, by force if need be, and looks for accidents in its log."""
        self.stdio.close()
        unwanted = [client._ready for client in (self.stdio, *self._clients) if client._ready]
        self.disconnect()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        lines = self.log.close().splitlines()
        accidents = [at for at, line in enumerate(lines) if any(sign in line for sign in _ACCIDENTS)]
        assert not accidents, "\n".join(lines[accidents[0] : accidents[0] + 30])
        assert not unwanted, f"replies that the test did not look at: {unwanted}"


Start = Callable[..., Daemon]


def _default_model(flags: Sequence[str]) -> list[str]:
    return [] if "--model" in flags else ["--model", "fake"]


def _environment(home: Path, environ: Mapping[str, str | None], settings: Mapping[str, Any]) -> dict[str, str]:
    (home / "run").mkdir(mode=0o700, exist_ok=True)
    own: dict[str, str | None] = {
        **{name: text for name, text in os.environ.items() if not name.startswith("WHISPERD_")},
        **dict.fromkeys(_NOT_INHERITED),
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
        **{f"WHISPERD_{name.upper()}": str(value) for name, value in settings.items()},
        **environ,
    }
    return {name: text for name, text in own.items() if text is not None}


@contextlib.contextmanager
def acting_as(uid: int, gid: int, groups: Sequence[int] = ()) -> Iterator[None]:
    """Connections made inside are this user's: the kernel reports the effective ids of the moment. Needs root."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)

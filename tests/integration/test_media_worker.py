"""The media worker as a process: what it answers, what it survives, what it may not do."""

from __future__ import annotations

import hashlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from whisperd.channel import Channel, ChannelClosed
from whisperd.media.answers import Hearing, Slice, digest_of, failure_of

SPEECH = Path(__file__).resolve().parents[2].parent / "shared" / "speech"
pytestmark = pytest.mark.integration
needs_speech = pytest.mark.skipif(not SPEECH.is_dir(), reason="the folder with test speech is not on this machine")

REQUEST = {
    "op": "prepare",
    "format": None,
    "sample_rate": None,
    "channels": None,
    "suffix": "",
    "vad": "auto",
    "window_s": 30.0,
    "first_only": False,
    "max_audio_s": 3600.0,
    "max_bytes": 1 << 31,
}


class MediaWorker:
    """A running worker and our end of its channel."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "whisperd.media.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        self.channel = Channel(ours.detach())
        self.ready, _ = self.channel.receive()
        self.sent = 0

    def prepare(
        self, fd: int, word: str = "go", **changes: Any
    ) -> tuple[dict[str, Any], list[int], list[dict[str, Any]]]:
        """Sends a job, gives the word at its digest, and waits. Returns the answer, all descriptors, and all that came
        before it."""
        self.sent += 1
        self.channel.send({**REQUEST, "job": str(self.sent), **changes}, [fd])
        before, fds = [], []
        while True:
            message, own = self.channel.receive()
            fds += own
            assert message["job"] == str(self.sent)
            if message["event"] in ("prepared", "failed", "dropped"):
                return message, fds, before
            if message["event"] == "digest":
                self.channel.send({"op": word, "job": str(self.sent)})
            before.append(message)

    def prepare_file(self, path: Path, **changes: Any) -> tuple[dict[str, Any], list[int], list[dict[str, Any]]]:
        fd = os.open(path, os.O_RDONLY)
        try:
            return self.prepare(fd, **{"suffix": path.suffix, **changes})
        finally:
            os.close(fd)

    def peak_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def end(self) -> tuple[int, bytes, bytes]:
        """Closes the channel. Returns the exit code, and what went to stdout and to stderr."""
        self.channel._socket.close()
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@pytest.fixture
def worker() -> Iterator[MediaWorker]:
    """A worker that is ended, whatever the test did to it."""
    running = MediaWorker()
    yield running
    running.process.kill()
    running.channel._socket.close()
    running.process.communicate()


def wav_header(data_bytes: int, rate_hz: int = 16_000) -> bytes:
    shape = struct.pack("<IHHIIHH", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16)
    sizes = struct.pack("<I", min(36 + data_bytes, 0xFFFFFFFF)), struct.pack("<I", min(data_bytes, 0xFFFFFFFF))
    return b"RIFF" + sizes[0] + b"WAVEfmt " + shape + b"data" + sizes[1]


def memory_file(content: bytes) -> int:
    fd = os.memfd_create("test")
    os.write(fd, content)
    return fd


def ends(pid: int, within_s: float) -> bool:
    """Whether a process, ours or not, ends in time."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], within_s)[0])
    finally:
        os.close(pidfd)


@needs_speech
def test_speech_comes_back_as_samples_and_windows(worker: MediaWorker) -> None:
    """The hash of the content first, then everything the scheduler needs, with the samples beside it."""
    path = SPEECH / "whisper_family" / "jfk_441khz.m4a"
    answer, fds, before = worker.prepare_file(path)
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    assert before[0] == {"event": "digest", "job": "1", "digest": digest}
    size = os.fstat(fds[0]).st_size
    os.close(fds[0])
    assert answer["event"] == "prepared"
    assert size / 4 / 16_000 == pytest.approx(11.0, abs=0.1)
    assert answer["windows"] == [[0, size // 4]]
    assert 5 < answer["sure_speech_s"][0] <= answer["speech_s"] <= size / 4 / 16_000
    assert answer["media_ms"] > 0
    assert answer["vad_ms"] > 0
    assert answer["warnings"] == []


def test_nothing_is_decoded_before_the_supervisor_says_so(worker: MediaWorker) -> None:
    """Content that is known as deadly is let go, without a death; the worker takes the next."""
    fd = memory_file(b"no audio at all" * 100)
    answer, fds, before = worker.prepare(fd, word="drop")
    assert (answer, fds) == ({"event": "dropped", "job": "1"}, [])
    assert [message["event"] for message in before] == ["digest"]
    assert worker.prepare(fd)[0]["kind"] == "audio_unreadable"
    assert worker.prepare(fd, word="perhaps")[0]["kind"] == "internal"
    os.close(fd)


def test_what_the_worker_says_is_what_the_supervisor_takes(worker: MediaWorker) -> None:
    """The check of untrusted answers fits the real ones, and the client's word for speech is never faint."""
    fd = memory_file(wav_header(3200) + bytes(3200))
    answer, fds, before = worker.prepare(fd, vad=False)
    assert len(digest_of(before[0])) == 32
    prepared = Hearing(REQUEST).prepared(answer, fds)
    assert prepared.samples is not None
    assert (prepared.samples.count, prepared.windows) == (1600, [Slice(0, 1600, 30.0, 1600)])
    prepared.close()
    os.ftruncate(fd, 0)
    assert failure_of(worker.prepare(fd)[0]).kind == "audio_unreadable"
    os.close(fd)


@needs_speech
def test_every_malformed_file_is_answered_by_one_worker_in_little_memory(worker: MediaWorker) -> None:
    """No broken file kills, hangs or bloats the worker, and the next one is answered."""
    for path in sorted((SPEECH / "malformed").iterdir()):
        answer, fds, _ = worker.prepare_file(path)
        for fd in fds:
            os.close(fd)
        assert answer["event"] == "prepared" or answer["kind"] == "audio_unreadable", path.name
    assert worker.peak_bytes() < 250 << 20
    answer, fds, _ = worker.prepare_file(SPEECH / "formats" / "a.mp3")
    os.close(fds[0])
    assert len(answer["windows"]) == 1


@needs_speech
def test_every_path_works_in_the_sandbox(worker: MediaWorker) -> None:
    """All formats, from files that cannot be opened again, and nothing is loaded lazily in vain."""
    for path in sorted((SPEECH / "formats").iterdir()):
        answer, fds, _ = worker.prepare_file(path)
        assert answer["event"] == "prepared", (path.name, answer)
        os.close(fds[0])


@needs_speech
def test_windows_of_long_audio_come_while_the_rest_is_searched(worker: MediaWorker) -> None:
    """In parts that the supervisor takes, with the samples beside the first. Where one window is wanted, the search
    ends with it."""
    path, wanted = SPEECH / "longform" / "libri_4088-158079_4m.mp3", {"window_s": 15.0}
    answer, fds, before = worker.prepare_file(path, **wanted)
    parts = [message for message in before if message["event"] == "windows"]
    assert len(parts) > 5
    hearing = Hearing(REQUEST | wanted)
    taken = [hearing.part(part, fds if part is parts[0] else []) for part in parts] + [hearing.prepared(answer, [])]
    taken[0].close()
    windows = [(one.start, one.stop, one.speech_stop) for part in taken for one in part.windows]
    assert len(windows) >= 18
    assert taken[0].windows[-1].stop < 90 * 16_000
    again, fds, before = worker.prepare_file(path, **wanted, first_only=True)
    os.close(fds[0])
    assert [message["event"] for message in before if message["event"] != "beat"] == ["digest"]
    assert (*again["windows"][0], again["speech_stop"][0]) == windows[0]


def test_a_long_file_is_refused_in_little_memory_with_signs_of_life(worker: MediaWorker, tmp_path: Path) -> None:
    """Half a gigabyte of silence: the limit is noticed on the way, and the work shows that it goes on."""
    path = tmp_path / "long.wav"
    with path.open("wb") as file:
        file.write(wav_header(512 << 20))
        file.truncate(512 << 20)
    answer, _, before = worker.prepare_file(path, max_audio_s=7200.0)
    assert answer["kind"] == "audio_too_long"
    assert "7200 s" in answer["message"]
    assert sum(message["event"] == "beat" for message in before) >= 2
    assert worker.peak_bytes() < 250 << 20


def test_a_header_that_claims_gigabytes_costs_nothing(worker: MediaWorker) -> None:
    """Nothing is allocated by a claim."""
    fd = memory_file(wav_header(0xFFFFFFF0) + bytes(3200))
    peak_bytes = worker.peak_bytes()
    answer, fds, _ = worker.prepare(fd)
    os.close(fd)
    assert os.fstat(fds[0]).st_size == 1600 * 4
    os.close(fds[0])
    assert answer["windows"] == []
    assert worker.peak_bytes() < peak_bytes + (16 << 20)


def test_the_limit_on_bytes_holds(worker: MediaWorker) -> None:
    """A big file is refused before it is read."""
    fd = memory_file(wav_header(32_000) + bytes(32_000))
    answer, _, before = worker.prepare(fd, max_bytes=1000)
    os.close(fd)
    assert answer["kind"] == "audio_too_long"
    assert before == []


def test_what_is_no_file_is_refused(worker: MediaWorker) -> None:
    """A pipe could block for ever."""
    reading, writing = os.pipe()
    answer, _, _ = worker.prepare(reading)
    os.close(reading)
    os.close(writing)
    assert answer["kind"] == "audio_unreadable"
    assert "regular file" in answer["message"]


def test_our_own_mistakes_are_internal_and_the_worker_lives_on(worker: MediaWorker) -> None:
    """A wrong message is not the audio's fault; it is logged with its traceback."""
    fd = memory_file(wav_header(32_000) + bytes(32_000))
    for wrong in ({"window_s": 99.0}, {"op": "unknown"}, {"max_audio_s": None}):
        answer, _, _ = worker.prepare(fd, **wrong)
        assert answer["kind"] == "internal"
        assert "window_s" not in answer["message"]
    answer, fds, _ = worker.prepare(fd)
    os.close(fds[0])
    os.close(fd)
    assert answer["event"] == "prepared"
    code, _, err = worker.end()
    assert code == 0
    assert err.count(b"Traceback") == 3


@needs_speech
def test_no_descriptor_and_little_memory_is_kept(worker: MediaWorker) -> None:
    """After many files of every kind the worker holds what it held before."""
    table = Path(f"/proc/{worker.process.pid}/fd")
    paths = sorted((SPEECH / "formats").iterdir()) + sorted((SPEECH / "malformed").iterdir())
    held, peaks = [], []
    for _ in range(4):
        for path in paths:
            _, fds, _ = worker.prepare_file(path)
            for fd in fds:
                os.close(fd)
        worker.prepare_file(paths[0], op="unknown")  # answered after everything before it was closed
        held.append(len(list(table.iterdir())))
        peaks.append(worker.peak_bytes())
    assert max(held) - min(held) <= 1
    assert peaks[3] - peaks[1] < 8 << 20


def test_nothing_is_written_to_stdout(worker: MediaWorker) -> None:
    """Stdout belongs to the protocol."""
    fd = memory_file(wav_header(3200) + bytes(3200))
    _, fds, _ = worker.prepare(fd)
    os.close(fds[0])
    os.close(fd)
    assert worker.end() == (0, b"", b"")


def test_c_code_that_prints_reaches_stderr() -> None:
    """Also what native libraries print stays out of the protocol, and stdin is empty."""
    code = (
        "import ctypes, os; from whisperd import sandbox; sandbox.silence_stdio(); "
        "libc = ctypes.CDLL(None); libc.puts(b'from C'); libc.fflush(None); print('from Python', flush=True); "
        "assert os.read(0, 10) == b''"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"secret", capture_output=True, check=True)
    assert done.stdout == b""
    assert done.stderr == b"from C\nfrom Python\n"


def test_stop_signals_are_left_to_the_supervisor(worker: MediaWorker) -> None:
    """Ctrl-C reaches the whole process group, but accepted work is finished first."""
    worker.process.send_signal(signal.SIGINT)
    worker.process.send_signal(signal.SIGTERM)
    fd = memory_file(wav_header(3200) + bytes(3200))
    answer, fds, _ = worker.prepare(fd)
    os.close(fds[0])
    os.close(fd)
    assert answer["event"] == "prepared"


def test_the_worker_ends_when_the_channel_closes(worker: MediaWorker) -> None:
    """Also in the middle of a job."""
    fd = memory_file(wav_header(200 << 20))
    os.ftruncate(fd, 200 << 20)
    worker.channel.send({**REQUEST, "job": "1", "max_audio_s": 36_000.0}, [fd])
    worker.channel.send({"op": "go", "job": "1"})
    os.close(fd)
    assert worker.end()[0] == 0


@pytest.mark.parametrize("stopped", [False, True])
def test_no_worker_outlives_its_parent(stopped: bool) -> None:
    """The parent is killed and cannot close anything; even a stopped worker goes with it."""
    code = (
        "import socket, subprocess, sys, signal\n"
        "from whisperd.channel import Channel\n"
        "ours, theirs = socket.socketpair()\n"
        "command = [sys.executable, '-m', 'whisperd.media.worker', str(theirs.fileno())]\n"
        "subprocess.Popen(command, pass_fds=[theirs.fileno(), ours.fileno()])\n"  # so that the channel stays open
        "print(Channel(ours.detach()).receive()[0]['pid'], flush=True)\n"
        "signal.pause()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.communicate()
    assert ends(pid, within_s=20)


def test_a_garbled_channel_ends_the_worker(worker: MediaWorker) -> None:
    """A supervisor that sends no frames is no supervisor."""
    worker.channel._socket.sendall(b"\xff" * 64)
    with pytest.raises(ChannelClosed):
        worker.channel.receive()
    assert worker.process.wait(timeout=20) == 0


def sandboxed(code: str) -> str:
    """Runs code in a fresh process and returns what it printed."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.strip()


def test_no_file_can_be_opened_where_the_kernel_helps(worker: MediaWorker) -> None:
    """What takes over the worker reads nothing, writes nothing and signals nobody."""
    if worker.ready["files"] != "none":
        pytest.skip("this kernel has no Landlock")
    code = (
        "import os, signal; from whisperd import sandbox; state = sandbox.forbid_files(); refused = [state]\n"
        "attempts = [lambda: os.open('/etc/passwd', 0), lambda: os.open('/tmp/x', os.O_CREAT | os.O_WRONLY),\n"
        "            lambda: os.listdir('/'), lambda: os.mkdir('/tmp/whisperd-test-dir'),\n"
        "            lambda: os.execv('/bin/true', ['true']), lambda: os.open('/proc/self/exe', 0)]\n"
        "for attempt in attempts:\n"
        "    try: attempt(); refused.append('allowed')\n"
        "    except PermissionError: refused.append('refused')\n"
        "fd = os.memfd_create('m'); os.ftruncate(fd, 10); os.close(os.open(f'/proc/self/fd/{fd}', 0))\n"
        "print(*refused)"
    )
    assert sandboxed(code) == "none" + " refused" * 6


def test_no_address_can_be_reached_where_the_kernel_helps(worker: MediaWorker) -> None:
    """Not even the machine itself."""
    if worker.ready["network"] != "none":
        pytest.skip("this kernel or container does not allow a network of one's own")
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = (
            "import socket; from whisperd import sandbox; print(sandbox.leave_network())\n"
            f"try: socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)\n"
            "except OSError as error: print(error.strerror)"
        )
        assert sandboxed(code) == "none\nNetwork is unreachable"


def test_memory_files_and_descriptors_are_limited() -> None:
    """More than the limit is an error in the process, not a problem of the machine."""
    code = (
        "import os, resource; from whisperd import sandbox\n"
        "sandbox.limit_media_worker(sandbox.MediaLimits(64 << 20, 1 << 20, 20))\n"
        "try: bytearray(100 << 20)\n"
        "except MemoryError: print('memory')\n"
        "fd = os.memfd_create('m')\n"
        "try: os.ftruncate(fd, 2 << 20)\n"
        "except OSError as error: print(error.strerror)\n"
        "try: [os.dup(0) for _ in range(20)]\n"
        "except OSError as error: print(error.strerror)\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    assert sandboxed(code) == "memory\nFile too large\nToo many open files\n(0, 0)"

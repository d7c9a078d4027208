"""The client against a stand-in daemon over real sockets and pipes."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
from standin import Behaviour, Connection, Json, echo, error, standing_in

from whisperd import client as package
from whisperd.client import (
    AudioNotFound,
    AudioUnreadable,
    Cancelled,
    Client,
    ConnectionLost,
    LineTooLong,
    Overloaded,
    Pcm,
    RequestFailed,
    Segment,
    Timeout,
    Word,
)
from whisperd.client.connection import Connection as ClientConnection
from whisperd.client.link import SpawnedLink
from whisperd.client.results import Transcript
from whisperd.client.submission import Submission
from whisperd.errors import KINDS

STANDIN = str(Path(__file__).with_name("standin.py"))


@pytest.fixture
def path() -> Iterator[Path]:
    """A socket's path; short, because the kernel allows 107 characters."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "d.sock"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """An "audio" file whose bytes the stand-in takes for speech."""
    file = tmp_path / "clip.flac"
    file.write_bytes(b"Hello there. How are you.")
    return file


# --- audio and results


def test_transcribe_returns_a_typed_transcript(path: Path, clip: Path) -> None:
    """Text, segments with words, and the daemon's own object are there."""
    with standing_in(path), Client(path) as client:
        result = client.transcribe(clip, language="en")
    assert result.text == "Hello there. How are you."
    assert result.segments[1] == Segment(
        1, 1.0, 2.0, "How are you.", -0.1, 0.0, 1.0, 0.0, (Word("How are you.", 1.0, 2.0, 0.9),)
    )
    assert (result.language, result.timing["total_ms"], result.rendered) == ("en", 3.0, {})
    assert result.raw["model"] == result.model == "stand-in"


def test_a_path_travels_as_a_descriptor_over_a_socket(path: Path, clip: Path) -> None:
    """The daemon needs no right to open the file."""
    with standing_in(path) as daemon, Client(path) as client:
        client.transcribe(str(clip), language="en")
    assert daemon.requests[0]["params"] == {"audio": {"fd": 0}, "language": "en"}


def test_bytes_travel_as_a_descriptor_over_a_socket(path: Path) -> None:
    """No base64: the line stays short."""
    with standing_in(path) as daemon, Client(path) as client:
        assert client.transcribe(b"bytes").text == "bytes"
        assert client.transcribe(bytearray(b"more")).text == "more"
        assert client.transcribe(memoryview(b"most")).text == "most"
    assert [request["params"] for request in daemon.requests] == [{"audio": {"fd": 0}}] * 3


def test_a_headerless_suffix_travels_as_a_format(path: Path, tmp_path: Path) -> None:
    """A descriptor has no name, and g722 is known by nothing else."""
    file = tmp_path / "call.G722"
    file.write_bytes(b"x")
    with standing_in(path) as daemon, Client(path) as client:
        client.transcribe(file)
    assert daemon.requests[0]["params"]["audio"] == {"fd": 0, "format": "g722"}


def test_pcm_travels_with_its_description(path: Path) -> None:
    """Samples have no header, so their format goes beside them."""
    with standing_in(path) as daemon, Client(path) as client:
        client.transcribe(Pcm(b"\1\2\3\4", "pcm_s16le", 8000, 2))
    expected = {"data": "AQIDBA==", "format": "pcm_s16le", "sample_rate": 8000, "channels": 2}
    assert daemon.requests[0]["params"]["audio"] == expected


def test_open_files_are_read_from_where_they_stand(path: Path, clip: Path) -> None:
    """At its start a file goes by descriptor, later the rest of it does; streams are read."""
    with standing_in(path), Client(path) as client, open(clip, "rb") as file:
        assert client.transcribe(file).text == "Hello there. How are you."
        file.seek(6)
        assert client.transcribe(file).text == "there. How are you."
        assert client.transcribe(BytesIO(b"stream")).text == "stream"


def test_a_pipe_is_read_to_its_end(path: Path, tmp_path: Path) -> None:
    """What cannot be sought in is sent as a whole."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_bytes(b"through a pipe"), daemon=True).start()
    with standing_in(path), Client(path) as client:
        assert client.transcribe(pipe).text == "through a pipe"


@pytest.mark.parametrize("name", ["missing.wav", ".", "nul\0byte", "clip.flac/below"])
def test_a_file_that_cannot_be_opened_is_audio_not_found(path: Path, clip: Path, name: str) -> None:
    """The same error as the daemon's, without a request."""
    with standing_in(path) as daemon, Client(path) as client:
        with pytest.raises(AudioNotFound) as caught:
            client.transcribe(str(clip.parent / name))
        assert client.ping()["pong"] is True
    assert (caught.value.kind, caught.value.retryable, caught.value.code) == ("audio_not_found", False, -32010)
    assert [request["method"] for request in daemon.requests] == ["ping"]


def test_model_of_the_client_goes_with_each_request(path: Path, clip: Path) -> None:
    """A request's own model wins."""
    with standing_in(path) as daemon, Client(path, model="base") as client:
        client.transcribe(clip)
        client.transcribe(clip, model="tiny.en")
    assert [request["params"]["model"] for request in daemon.requests] == ["base", "tiny.en"]


def test_detect_language_returns_a_typed_result(path: Path, clip: Path) -> None:
    """Languages come as pairs, the likeliest first."""

    def detect(connection: Connection, request: Json, audio: bytes) -> None:
        languages = [{"language": "de", "probability": 0.75}, {"language": "nl", "probability": 0.2}]
        result = {"language": "de", "probability": 0.75, "languages": languages}
        connection.send(id=request["id"], result=result)

    with standing_in(path, detect), Client(path) as client:
        found = client.detect_language(clip)
    assert (found.language, found.probability) == ("de", 0.75)
    assert found.languages == (("de", 0.75), ("nl", 0.2))


def test_long_lines_arrive_whole_with_their_own_descriptor(path: Path) -> None:
    """Many threads send lines longer than a socket's buffer; each daemon's answer fits its question."""

    def answer(connection: Connection, request: Json, audio: bytes) -> None:
        connection.reply(request, f"{audio.decode()} {len(request['params']['initial_prompt'])}")

    with standing_in(path, answer), Client(path) as client, ThreadPoolExecutor(8) as pool:
        sizes = [300_000 + i for i in range(40)]
        futures = [pool.submit(client.transcribe, b"%d" % n, initial_prompt="x" * n) for n in sizes]
        assert [future.result().text for future in futures] == [f"{n} {n}" for n in sizes]


def test_descriptors_are_open_only_while_they_are_sent(path: Path, clip: Path) -> None:
    """Hundreds of requests under way do not use up the process's descriptors."""
    held: list[Json] = []

    def hold(connection: Connection, request: Json, audio: bytes) -> None:
        held.append(request)
        if len(held) == 400:
            for waiting in held:
                connection.reply(waiting, str(len(list(Path("/proc/self/fd").iterdir()))))

    with standing_in(path, hold), Client(path) as client:
        pendings = [client.submit(clip) for _ in range(400)]
        assert max(int(pending.result().text) for pending in pendings) < 100


# --- errors


def test_every_kind_of_the_contract_has_an_exception(path: Path, clip: Path) -> None:
    """The class is exported under the kind's name in camel case, and raised for it."""
    with standing_in(path, lambda c, r, a: c.fail(r, r["params"]["hotwords"])), Client(path) as client:
        for kind in KINDS:
            name = "".join(part.title() for part in kind.split("_"))
            with pytest.raises(RequestFailed) as caught:
                client.transcribe(clip, hotwords=kind)
            assert type(caught.value) is getattr(package, name)
            assert caught.value.kind == kind
            assert name in package.__all__


def test_unknown_kinds_of_a_newer_daemon_are_request_failed(path: Path, clip: Path) -> None:
    """Nothing is lost of them."""
    with (
        standing_in(path, lambda c, r, a: c.fail(r, "out_of_moon", phase=3)),
        Client(path) as client,
        pytest.raises(RequestFailed, match="out_of_moon: no") as caught,
    ):
        client.transcribe(clip)
    assert type(caught.value) is RequestFailed
    assert caught.value.data["phase"] == 3


def test_a_lost_connection_fails_everything_that_waits_once(path: Path, clip: Path) -> None:
    """Each pending request gets ConnectionLost, and so does everything that comes later."""
    seen = []

    def vanish(connection: Connection, request: Json, audio: bytes) -> None:
        seen.append(request)
        if len(seen) == 3:
            connection.close()

    with standing_in(path, vanish), Client(path) as client:
        pendings = [client.submit(clip) for _ in range(3)]
        for pending in pendings * 2:
            with pytest.raises(ConnectionLost, match="closed the connection"):
                pending.result()
        with pytest.raises(ConnectionLost):
            client.ping()


def test_a_reply_that_is_no_json_ends_the_connection(path: Path, clip: Path) -> None:
    """Nobody is left waiting for an answer that nobody can read."""

    def garble(connection: Connection, request: Json, audio: bytes) -> None:
        connection.socket.sendall(b"{not json\n")

    with standing_in(path, garble), Client(path) as client, pytest.raises(ConnectionLost, match="cannot be read"):
        client.transcribe(clip)


def test_line_too_long_finds_the_request_it_was_about(path: Path) -> None:
    """The daemon answers such a line with a null id; it was the longest that waits."""

    def refuse(connection: Connection, request: Json, audio: bytes) -> None:
        if len(connection.requests) == 3:
            connection.send(id=None, error=error("line_too_long"))
            for other in (connection.requests[0], connection.requests[2]):
                connection.reply(other, "fine")

    with standing_in(path, refuse), Client(path) as client:
        pendings = [client.submit(Pcm(b"\0" * size)) for size in (10, 9000, 20)]
        assert pendings[0].result().text == pendings[2].result().text == "fine"
        with pytest.raises(LineTooLong):
            pendings[1].result()


def test_other_errors_without_id_end_the_connection(path: Path, clip: Path) -> None:
    """Such as the refusal of one connection too many: no reply will ever come."""

    def refuse(connection: Connection, request: Json, audio: bytes) -> None:
        connection.send(id=None, error=error("overloaded", "too many connections"))

    with (
        standing_in(path, refuse),
        Client(path) as client,
        pytest.raises(ConnectionLost, match="too many connections"),
    ):
        client.transcribe(clip)


def test_no_daemon_is_connection_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both for a path that is given and for the default one when nothing may be spawned."""
    with pytest.raises(ConnectionLost, match="no daemon answers"):
        Client(path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path.parent))
    with pytest.raises(ConnectionLost, match="no daemon answers"):
        Client(spawn=False)


def test_the_runtime_directory_s_daemon_is_found(path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without arguments a running daemon is used rather than a new one started."""
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path.parent))
    (path.parent / "whisperd").mkdir()
    with standing_in(path.parent / "whisperd" / "whisperd.sock") as daemon, Client() as client:
        client.transcribe(clip)
    assert len(daemon.requests) == 1


# --- waiting


def test_many_threads_share_one_client(path: Path) -> None:
    """Answers in any order reach the thread that asked."""
    held: list[tuple[Json, bytes]] = []

    def shuffle(connection: Connection, request: Json, audio: bytes) -> None:
        held.append((request, audio))
        if len(held) == 8:
            while held:
                waiting, text = held.pop()
                connection.reply(waiting, text.decode())

    with standing_in(path, shuffle), Client(path) as client, ThreadPoolExecutor(8) as pool:
        texts = [f"clip {i}" for i in range(160)]
        results = pool.map(lambda text: client.transcribe(text.encode()).text, texts)
        assert list(results) == texts


def test_a_timeout_cancels_the_request_at_the_daemon(path: Path, clip: Path) -> None:
    """No work is done for nobody, and the client stays usable."""
    with standing_in(path, lambda c, r, a: None) as daemon, Client(path) as client:
        pending = client.submit(clip, timeout=0.05)
        for _ in range(2):
            with pytest.raises(Timeout):
                pending.result()
        assert daemon.connections[0].cancelled.wait(30)
        assert daemon.requests[-1]["params"] == {"id": pending.id}
        assert "id" not in daemon.requests[-1]
        assert client.ping()["pong"] is True


def test_the_client_s_timeout_holds_for_each_request(path: Path, clip: Path) -> None:
    """Unless the request has its own."""
    with standing_in(path, lambda c, r, a: None), Client(path, timeout=0.05) as client:
        with pytest.raises(Timeout):
            client.transcribe(clip)
        with pytest.raises(Timeout):
            client.submit(clip, timeout=None).result(0.01)


def test_a_daemon_that_reads_nothing_cannot_hold_up_a_timeout(path: Path) -> None:
    """A line that went out in part ends the connection; one of which nothing went out does not."""
    gate = threading.Event()

    def stop_reading(connection: Connection, request: Json, audio: bytes) -> None:
        gate.wait(60)

    with standing_in(path, stop_reading), Client(path) as client:
        client.submit(b"first")
        with pytest.raises(ConnectionLost, match="in the middle of a request"):
            client.transcribe(Pcm(b"\0" * 4_000_000), timeout=0.1)
        gate.set()


def test_cancel_ends_a_request_with_cancelled(path: Path, clip: Path) -> None:
    """The daemon says whether there was anything to cancel."""
    with standing_in(path, lambda c, r, a: None), Client(path) as client:
        pending = client.submit(clip)
        assert not pending.done()
        assert pending.cancel() is True
        with pytest.raises(Cancelled):
            pending.result()
        assert pending.done()


def test_closing_the_client_cancels_what_is_open(path: Path, clip: Path) -> None:
    """A waiting thread is released, and a closed client refuses work."""
    with standing_in(path, lambda c, r, a: None) as daemon:
        with Client(path) as client:
            pending = client.submit(clip)
            client.ping()
        with pytest.raises((ConnectionLost, Cancelled)):
            pending.result()
        assert daemon.connections[0].cancelled.wait(30)
        with pytest.raises(ConnectionLost):
            client.ping()
        client.close()


def test_live_segments_come_before_the_result_and_each_once(path: Path, clip: Path) -> None:
    """Drafts are left out, and what the daemon dropped is filled in from the result."""
    seen = threading.Event()

    def tell(connection: Connection, request: Json, audio: bytes) -> None:
        connection.tell_segment(request, 0, "Draft.", final=False)
        connection.tell_segment(request, 0, "One.")
        connection.tell_segment(request, 0, "One.")
        assert seen.wait(30)
        connection.reply(request, "One. Two. Three.")

    with standing_in(path, tell), Client(path) as client:
        segments = client.submit(clip, progress=True).segments()
        texts = [next(segments).text]
        seen.set()
        texts += [segment.text for segment in segments]
    assert texts == ["One.", "Two.", "Three."]


def test_segments_can_be_had_without_progress_and_twice(path: Path, clip: Path) -> None:
    """They then all come at the end."""
    with standing_in(path), Client(path) as client:
        pending = client.submit(clip)
        for _ in range(2):
            assert [segment.text for segment in pending.segments()] == ["Hello there.", "How are you."]


def test_segments_raise_what_the_request_failed_with(path: Path, clip: Path) -> None:
    """An iteration does not end quietly when the audio turns out to be broken."""

    def fail(connection: Connection, request: Json, audio: bytes) -> None:
        connection.tell_segment(request, 0, "One.")
        connection.fail(request, "audio_unreadable")

    with standing_in(path, fail), Client(path) as client:
        segments = client.submit(clip, progress=True).segments()
        assert next(segments).text == "One."
        with pytest.raises(AudioUnreadable):
            next(segments)


def overloaded_for(times: int) -> Behaviour:
    """A daemon that refuses the first requests and then works."""

    def behave(connection: Connection, request: Json, audio: bytes) -> None:
        if len(connection.requests) <= times:
            connection.fail(request, "overloaded", retry_after_ms=1)
        else:
            connection.tell_segment(request, 0, "Hello there.")
            echo(connection, request, audio)

    return behave


@pytest.mark.parametrize("audio", ["path", "bytes", "file", "segments"])
def test_an_overloaded_daemon_is_asked_again(path: Path, clip: Path, audio: str) -> None:
    """With the same audio, whatever it was, and also when somebody iterates over segments."""
    with standing_in(path, overloaded_for(3)) as daemon, Client(path) as client, open(clip, "rb") as file:
        source = {"path": clip, "bytes": clip.read_bytes(), "file": file, "segments": clip}[audio]
        pending = client.submit(source)
        if audio == "segments":
            assert [segment.text for segment in pending.segments()] == ["Hello there.", "How are you."]
        assert pending.result().text == "Hello there. How are you."
    assert len(daemon.requests) == 4


def test_an_overloaded_daemon_is_not_asked_for_ever(path: Path, clip: Path) -> None:
    """After the retries, or where the wait would outlast the timeout, the error is the caller's."""
    with standing_in(path, overloaded_for(1000)) as daemon:
        with Client(path, overload_retries=2) as client, pytest.raises(Overloaded) as caught:
            client.transcribe(clip)
        assert caught.value.retry_after_ms == 1
        assert len(daemon.requests) == 3
    path.unlink()
    with (
        standing_in(path, lambda c, r, a: c.fail(r, "overloaded", retry_after_ms=60_000)),
        Client(path, timeout=5) as client,
        pytest.raises(Overloaded),
    ):
        client.transcribe(clip)


# --- over stdio


def spawned(how: str) -> ClientConnection:
    """A connection to the stand-in as a child process, which is given a short grace."""
    return ClientConnection(SpawnedLink([sys.executable, STANDIN, how], grace_s=0.5 if how == "stay" else 30))


def over_stdio(connection: ClientConnection, audio: object) -> Transcript:
    """One transcription."""
    submission = Submission(connection, "transcribe", {}, Transcript.from_wire, audio=audio)  # type: ignore[arg-type]
    return Transcript.from_wire(submission.send().future.result(60))


def test_over_stdio_paths_are_absolute_and_bytes_are_base64(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipes carry no descriptors."""
    monkeypatch.chdir(clip.parent)
    connection = spawned("eof")
    by_path, by_bytes = over_stdio(connection, "clip.flac"), over_stdio(connection, b"bytes")
    connection.close()
    assert by_path.text == "Hello there. How are you."
    assert by_path.raw["raw_params"] == {"audio": {"path": str(clip)}}
    assert by_bytes.raw["raw_params"] == {"audio": {"data": base64.b64encode(b"bytes").decode()}}


def test_a_name_that_json_cannot_carry_goes_as_bytes(tmp_path: Path) -> None:
    """File names are bytes; those that are not UTF-8 are read here."""
    name = os.fsencode(tmp_path) + b"/\xff.wav"
    with open(name, "wb") as file:
        file.write(b"odd name")
    connection = spawned("eof")
    assert over_stdio(connection, Path(os.fsdecode(name))).text == "odd name"
    connection.close()


def test_a_daemon_that_dies_says_why(clip: Path) -> None:
    """The exit code and the last words on stderr are in the error."""
    connection = spawned("crash")
    with pytest.raises(ConnectionLost, match=r"(?s)exit code 7.*out of luck"):
        over_stdio(connection, clip)
    connection.close()


def test_a_spawned_daemon_that_stays_is_killed(clip: Path) -> None:
    """Closing its input is a request; after the grace it is an order."""
    link = SpawnedLink([sys.executable, STANDIN, "stay"], grace_s=0.5)
    connection = ClientConnection(link)
    over_stdio(connection, clip)
    connection.close()
    assert not Path(f"/proc/{link.pid}").exists()


def test_importing_the_client_loads_nothing_heavy() -> None:
    """A program that only asks a daemon pays for neither numpy nor asyncio."""
    script = (
        "import sys, whisperd.client;"
        "print([m for m in ('numpy', 'asyncio', 'av', 'soundfile', 'jsonschema') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"

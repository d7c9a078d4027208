"""The client with real daemons: spawned and connected to, on the fake engine and once on real speech."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from whisperd.client import (
    AsyncClient,
    AudioNotFound,
    AudioUnreadable,
    Client,
    ConnectionLost,
    InvalidParams,
    LineTooLong,
    Pcm,
)
from whisperd.client.link import SpawnedLink
from whisperd.testing import digest_of

pytestmark = pytest.mark.integration
SPEECH = Path(__file__).resolve().parents[2].parent / "shared" / "speech"
FAKE = ("--model", "fake")
LONG = bytes(32_000 * 70)  # 70 s for the fake engine: four windows


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory and a state directory of the test's own."""
    for name in [name for name in os.environ if name.startswith("WHISPERD_")] + ["RUNTIME_DIRECTORY"]:
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        monkeypatch.setenv("XDG_STATE_HOME", directory)
        monkeypatch.setenv("XDG_CONFIG_HOME", directory)
        yield Path(directory)


def expected(content: bytes, windows: int = 1) -> str:
    """What the fake engine hears in an input."""
    return " ".join(f"{digest_of(content)} {index}" for index in range(windows))


def test_a_client_spawns_a_daemon_and_ends_it(place: Path) -> None:
    """Without a socket given or found; by path, bytes and samples."""
    file = place / "a.wav"
    file.write_bytes(b"from a file")
    with Client(args=FAKE) as client:
        pid = client.status()["pid"]
        assert client.transcribe(file).text == expected(b"from a file")
        assert client.transcribe(b"from bytes").text == expected(b"from bytes")
        assert client.transcribe(Pcm(b"\0\1" * 100)).language == "en"
        assert client.detect_language(file).language == "en"
        assert client.health()["status"] == "healthy"
        assert any(model["name"] == "tiny.en" for model in client.models())
    assert not Path(f"/proc/{pid}").exists()


def test_model_is_given_to_a_spawned_daemon_and_sent_along() -> None:
    """One argument for both."""
    with Client(model="fake") as client:
        assert client.transcribe(b"x").model == "fake"


def test_clients_find_a_running_daemon_and_share_it(place: Path) -> None:
    """By the runtime directory and by path; by descriptor, from many threads."""
    socket = place / "whisperd" / "whisperd.sock"
    socket.parent.mkdir()
    with Client(spawn=True, args=[*FAKE, "--socket", str(socket)]) as owner:
        owner.ping()
        with Client(spawn=False) as found, Client(socket) as given, ThreadPoolExecutor(16) as pool:
            assert found.status()["pid"] == given.status()["pid"] == owner.status()["pid"]
            contents = [b"clip %d" % number for number in range(200)]
            clients = [found, given] * 100
            texts = pool.map(lambda pair: pair[0].transcribe(pair[1]).text, zip(clients, contents, strict=True))
            assert list(texts) == [expected(content) for content in contents]


def test_errors_of_the_daemon_are_typed(place: Path) -> None:
    """With what the kind adds, such as the pointer."""
    (place / "bad").write_bytes(b"BAD")
    with Client(args=[*FAKE, "--max-line-bytes", "100000"]) as client:
        with pytest.raises(AudioUnreadable):
            client.transcribe(place / "bad")
        with pytest.raises(AudioNotFound):
            client.transcribe(place / "missing")
        with pytest.raises(InvalidParams) as caught:
            client.transcribe(b"x", beam_size=0)
        assert caught.value.pointer == "/beam_size"
        with pytest.raises(LineTooLong):
            client.transcribe(bytes(200_000))
        assert client.transcribe(b"still there").text == expected(b"still there")


def test_a_daemon_that_cannot_start_says_why() -> None:
    """Its last words on stderr are in the error."""
    with Client(args=["--device", "abacus"]) as client, pytest.raises(ConnectionLost, match="abacus"):
        client.ping()


def test_live_segments_are_those_of_the_result() -> None:
    """Each once, in order."""
    with Client(args=FAKE) as client:
        pending = client.submit(LONG, progress=True)
        segments = list(pending.segments())
        assert tuple(segments) == pending.result().segments
        assert [segment.text.split()[1] for segment in segments] == ["0", "1", "2", "3"]
        assert pending.progress is not None


def test_an_overloaded_daemon_is_waited_for(place: Path) -> None:
    """A quota of one, and twenty requests at once: all are done in the end."""
    socket = place / "w.sock"
    args = [*FAKE, "--socket", str(socket), "--client-quota", "1"]
    with Client(spawn=True, args=args) as owner:
        owner.ping()
        with Client(socket, overload_retries=1000) as client:
            pendings = [client.submit(b"%d" % number) for number in range(20)]
            assert [p.result().text for p in pendings] == [expected(b"%d" % number) for number in range(20)]


def test_the_async_client_does_the_same(place: Path) -> None:
    """Spawned and connected."""
    socket = place / "w.sock"

    async def main() -> None:
        async with AsyncClient(spawn=True, args=[*FAKE, "--socket", str(socket)]) as owner:
            contents = [b"clip %d" % number for number in range(50)]
            results = await asyncio.gather(*(owner.transcribe(content) for content in contents))
            assert [result.text for result in results] == [expected(content) for content in contents]
            async with AsyncClient(socket) as client:
                assert (await client.detect_language(b"x")).language == "en"
                pending = await client.submit(LONG, progress=True)
                texts = [segment.text.strip() async for segment in pending.segments()]
                assert " ".join(texts) == (await pending.result()).text
                with pytest.raises(AudioUnreadable):
                    await client.transcribe(b"BAD")
            pid = (await owner.status())["pid"]
        assert not Path(f"/proc/{pid}").exists()

    asyncio.run(main())


def test_a_killed_daemon_fails_everything_that_waits() -> None:
    """Nobody waits for ever."""
    with Client(args=FAKE) as client:
        pid = client.status()["pid"]
        os.kill(pid, 19)  # SIGSTOP: nothing is answered from here on
        pendings = [client.submit(b"%d" % number) for number in range(5)]
        os.kill(pid, 9)
        for pending in pendings:
            with pytest.raises(ConnectionLost, match="killed by signal 9"):
                pending.result()


def test_a_link_ends_with_its_daemon_s_exit_code() -> None:
    """A drained daemon has nothing to complain about."""
    with Client(args=FAKE) as client:
        client.ping()
        link = client._connection._link
    assert isinstance(link, SpawnedLink)
    assert "exit code 0" in link.epitaph()


@pytest.mark.speech
def test_real_speech_is_heard() -> None:
    """The README's example, with its words."""
    clip = SPEECH / "librispeech" / "4088-158077-0004.flac"
    if not clip.exists():
        pytest.skip("the shared speech clips are not on this machine")
    with Client(spawn=True) as client:
        result = client.transcribe(clip, language="en", timestamps="word", render=["srt"])
    assert "crusade for democracy" in result.text
    words = [word for segment in result.segments for word in segment.words or ()]
    assert "".join(word.word for word in words).strip() == result.text
    assert all(earlier.end <= later.start + 1e-9 for earlier, later in pairwise(words))
    assert "-->" in result.rendered["srt"]

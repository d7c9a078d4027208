"""Real speech through a real daemon with the real model: the right text, to the right client, however it is sent."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import soundfile
from running_daemon import RunningDaemon
from speech_clips import Clip, belongs, clip, clips, needs_speech, word_count, words_wrong

from whisperd.client import AudioNotFound, Cancelled, Client, Pcm

pytestmark = [pytest.mark.speech, needs_speech]

JFK = clip("whisper_family/jfk.wav")
SHORT = [each for each in clips("asterisk_en_8k", "ljspeech", "librispeech") if 1.5 < each.seconds < 6]
# Every fifth of them: fifty seconds with 150 words. tiny.en gets 4 of 100 words wrong in all of them, 5 in these, and
# in none of a thousand draws of twenty clips more than 8.
SAMPLE = SHORT[::5]
SAMPLE_ERRORS_MAX = 0.10


@pytest.fixture(scope="module")
def spawned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A daemon of the client's own, over stdin and stdout."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, str(home))
        client = Client(spawn=True, timeout=60.0)
    with client:
        yield client


@pytest.mark.parametrize("transport", ["socket", "stdio"])
def test_a_clip_comes_out_right_in_every_way_of_sending_it(
    transport: str, client: Client, spawned: Client, tmp_path: Path
) -> None:
    """A path, the bytes of a file, an open file, bare samples of both kinds, an old-fashioned name."""
    own = client if transport == "socket" else spawned
    odd_name = tmp_path / "Jörg’s “memo”\n.flac"
    odd_name.write_bytes(JFK.path.read_bytes())
    values, rate = soundfile.read(JFK.path, dtype="float32")
    with JFK.path.open("rb") as file:
        texts = {
            "path": own.transcribe(JFK.path).text,
            "string": own.transcribe(str(JFK.path)).text,
            "bytes": own.transcribe(JFK.path.read_bytes()).text,
            "file": own.transcribe(file).text,
            "pcm_f32le": own.transcribe(Pcm(values.tobytes(), "pcm_f32le", rate)).text,
            "pcm_s16le": own.transcribe(Pcm((values * 32767).astype("<i2").tobytes(), "pcm_s16le", rate)).text,
            "odd name": own.transcribe(odd_name).text,
        }
    assert {way: words_wrong(JFK.text or "", text) for way, text in texts.items()} == dict.fromkeys(texts, 0)
    with pytest.raises(AudioNotFound):
        own.transcribe(tmp_path / "missing.wav")


def test_base64_and_path_work_on_a_socket_too(client: Client) -> None:
    """For programs that speak the protocol themselves."""
    data = base64.b64encode(JFK.path.read_bytes()).decode()
    by_data = client.call("transcribe", audio={"data": data})
    by_path = client.call("transcribe", audio={"path": str(JFK.path)})
    assert words_wrong(JFK.text or "", by_data["text"]) == 0
    assert by_data["text"] == by_path["text"]


def test_a_result_is_consistent(client: Client) -> None:
    """What it says of itself fits together."""
    result = client.transcribe(JFK.path)
    assert result.duration_s == 11.0
    assert 6.0 < result.speech_s <= 11.0
    assert (result.model, result.task, result.language, result.windows) == ("tiny.en", "transcribe", "en", 1)
    parts_ms = sum(result.timing[name] for name in ("queue_ms", "media_ms", "vad_ms", "infer_ms"))
    assert parts_ms == pytest.approx(result.timing["total_ms"], abs=1.0)
    assert result.rtf == pytest.approx(result.timing["total_ms"] / 1000 / 11.0, rel=0.01)
    assert result.warnings == ()
    assert result.job


def test_few_words_are_wrong(client: Client) -> None:
    """Clips of three sets, sent at once."""
    pending = [(each, client.submit(each.path)) for each in SAMPLE]
    wrong = sum(words_wrong(each.text or "", reply.result().text) for each, reply in pending)
    assert wrong <= SAMPLE_ERRORS_MAX * sum(word_count(each.text or "") for each in SAMPLE)


def test_every_client_gets_the_text_of_its_own_clip(daemon: RunningDaemon) -> None:
    """Twenty connections with two requests each, half of them by path: no reply is lost, doubled or swapped."""

    def ask(number: int) -> list[tuple[Clip, str, str]]:
        own = [SHORT[number * 2 % len(SHORT)], SHORT[(number * 2 + 1) % len(SHORT)]]
        with daemon.connect() as client:
            by_descriptor = client.submit(own[0].path)
            by_path = client.call("transcribe", audio={"path": str(own[1].path)})
            first = by_descriptor.result()
            return [(own[0], first.text, first.job), (own[1], by_path["text"], by_path["job"])]

    with ThreadPoolExecutor(20) as threads:
        replies = [reply for replies in threads.map(ask, range(20)) for reply in replies]
    assert len({job for _, _, job in replies}) == len(replies) == 40
    assert [(each.file, text) for each, text, _ in replies if not belongs(text, each)] == []


def test_a_cancelled_request_takes_no_other_with_it(client: Client) -> None:
    """Every second one is called off; each of those says so, and the others come out right."""
    pending = [(each, client.submit(each.path)) for each in SHORT[:12]]
    cancelled = [reply.cancel() for _, reply in pending[1::2]]
    outcomes = Counter[str]()
    for (each, reply), was_cancelled in zip(pending[1::2], cancelled, strict=True):
        try:
            assert belongs(reply.result().text, each)
            outcomes["answered"] += 1
        except Cancelled:
            outcomes["cancelled"] += 1
            assert was_cancelled
    assert outcomes["cancelled"] > 0
    for each, reply in pending[::2]:
        assert belongs(reply.result().text, each)


def test_a_short_clip_overtakes_a_long_file(client: Client) -> None:
    """Four and a half minutes come out right, cut where nobody speaks, and a clip sent meanwhile does not wait."""
    book = clip("longform/libri_4088-158079_4m.mp3")
    long = client.submit(book.path, progress=True)
    next(long.segments())  # the engine is at it
    for each in SHORT[:3]:
        assert belongs(client.transcribe(each.path).text, each)
    assert not long.done()
    result = long.result()
    assert words_wrong(book.text or "", result.text) <= 0.06 * word_count(book.text or "")
    assert result.windows >= 9
    assert result.segments[-1].end == pytest.approx(book.seconds, abs=2.0)
    starts = [segment.start for segment in result.segments]
    assert starts == sorted(starts)


def test_a_stereo_file_is_heard_on_both_sides(client: Client) -> None:
    """Two speakers, one on each side, in turn."""
    turns = clip("two_speakers/stereo_turns.wav")
    assert words_wrong(turns.text or "", client.transcribe(turns.path).text) <= 8


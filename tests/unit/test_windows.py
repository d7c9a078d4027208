"""Where audio is cut, on made-up probabilities. One frame is 512 samples, 32 ms."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from itertools import cycle, groupby, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperd.media.windows import (
    FRAME_SAMPLES,
    Planner,
    Window,
    WindowPlan,
    needs_probabilities,
    plan_windows,
)
from whisperd.messages import SAMPLE_RATE

SPEECH, MURMUR, SILENCE = 0.95, 0.42, 0.02
FRAMES_PER_S = SAMPLE_RATE / FRAME_SAMPLES


def audio(*stretches: tuple[float, float]) -> list[float]:
    """Probabilities for stretches of (seconds, probability)."""
    return [probability for seconds, probability in stretches for _ in range(round(seconds * FRAMES_PER_S))]


def plan(probabilities: Sequence[float], vad: bool | str = "auto", window_s: float = 30.0) -> WindowPlan:
    return plan_windows(probabilities, len(probabilities) * FRAME_SAMPLES, vad=vad, window_s=window_s)


def seconds(window: Window) -> tuple[float, float]:
    return round(window.start / SAMPLE_RATE, 1), round(window.stop / SAMPLE_RATE, 1)


@pytest.mark.parametrize("length_s", [0.1, 10, 95])
@pytest.mark.parametrize("vad", ["auto", True])
def test_audio_without_speech_becomes_no_window(length_s: float, vad: bool | str) -> None:
    """Nothing is sent to the engine where nobody speaks."""
    assert plan(audio((length_s, SILENCE)), vad) == WindowPlan((), 0, (), ())


def test_vad_false_keeps_silence() -> None:
    """Without detection all audio is kept and counts as speech."""
    made = plan(audio((10, SILENCE)), vad=False)
    assert made == WindowPlan((Window(0, 312 * FRAME_SAMPLES),), 312 * FRAME_SAMPLES, (30.0,), (312 * FRAME_SAMPLES,))


def test_vad_false_needs_probabilities_only_to_cut() -> None:
    """Short audio without detection is planned without looking at it."""
    assert not needs_probabilities(30 * SAMPLE_RATE, vad=False, window_s=30.0)
    assert needs_probabilities(30 * SAMPLE_RATE + 1, vad=False, window_s=30.0)
    assert needs_probabilities(1, vad="auto", window_s=30.0)
    assert plan_windows([], 5_000, vad=False, window_s=30.0).windows == ((0, 5_000),)


def test_auto_leaves_audio_of_one_window_whole() -> None:
    """Silence around and inside short speech stays."""
    probabilities = audio((5, SILENCE), (3, SPEECH), (5, SILENCE), (3, SPEECH), (5, SILENCE))
    made = plan(probabilities)
    assert made.windows == ((0, len(probabilities) * FRAME_SAMPLES),)
    assert 7.4 < made.speech_samples / SAMPLE_RATE < 7.8


def test_vad_true_cuts_silence_from_short_audio() -> None:
    """Only the speech is left, with four tenths of a second around it."""
    made = plan(audio((5, SILENCE), (3, SPEECH), (5, SILENCE), (3, SPEECH), (5, SILENCE)), vad=True)
    assert [seconds(window) for window in made.windows] == [(4.6, 8.4), (12.6, 16.4)]
    assert made.sure_speech_s == pytest.approx((3.0, 3.0), abs=0.04)


def test_the_end_of_sure_speech_is_told_for_each_window() -> None:
    """Whoever decodes a window can tell whether speech was left out at its end."""
    made = plan(audio((2, SPEECH), (4, SILENCE)))
    assert made.speech_stop[0] / SAMPLE_RATE == pytest.approx(2.0, abs=0.04)
    made = plan(audio((5, SILENCE), (3, SPEECH), (5, SILENCE), (3, SPEECH), (5, SILENCE)), vad=True)
    assert [stop / SAMPLE_RATE for stop in made.speech_stop] == pytest.approx([8.0, 16.0], abs=0.04)


def test_short_silence_at_the_ends_is_kept() -> None:
    """A soft first or last word may hide in it."""
    made = plan(audio((1.5, SILENCE), (3, SPEECH), (1.5, SILENCE)), vad=True)
    assert [seconds(window) for window in made.windows] == [(0.0, 6.0)]


def test_long_audio_loses_its_long_silences() -> None:
    """Silence of two seconds and more between speech is not encoded."""
    made = plan(audio((12, SPEECH), (6, SILENCE), (20, SPEECH), (1, SILENCE), (5, SPEECH)))
    assert [seconds(window) for window in made.windows] == [(0.0, 12.4), (17.6, 44.0)]


def test_a_little_too_much_speech_is_cut_in_its_middle_pause() -> None:
    """31 s are not cut into 30 and 1."""
    made = plan(audio((14, SPEECH), (0.3, SILENCE), (15.2, SPEECH), (0.2, SILENCE), (1.3, SPEECH)))
    assert [seconds(window) for window in made.windows] == [(0.0, 14.2), (14.2, 31.0)]


def test_the_longer_pause_is_cut() -> None:
    """A breath between sentences is better than one between words."""
    made = plan(audio((12, SPEECH), (0.1, SILENCE), (3, SPEECH), (0.8, SILENCE), (20, SPEECH)))
    assert [seconds(window) for window in made.windows] == [(0.0, 15.5), (15.5, 35.9)]


def test_an_extra_window_is_better_than_a_cut_in_a_word() -> None:
    """59 s with pauses at 20 and 40 s become three windows, although two would hold them."""
    made = plan(audio((20, SPEECH), (0.4, SILENCE), (19.6, SPEECH), (0.4, SILENCE), (19, SPEECH)))
    assert [seconds(window) for window in made.windows] == [(0.0, 20.2), (20.2, 40.1), (40.1, 59.4)]


def test_speech_without_a_pause_is_cut_where_it_is_softest() -> None:
    """There must be a cut, and a murmur is the best that is left."""
    made = plan(audio((18, SPEECH), (0.2, MURMUR), (18, SPEECH)))
    assert [seconds(window) for window in made.windows] == [(0.0, 18.0), (18.0, 36.2)]


def test_uncut_noise_of_an_hour_is_planned() -> None:
    """The search stays small however long a stretch is."""
    made = plan([SPEECH] * round(3600 * FRAMES_PER_S))
    assert 120 <= len(made.windows) <= 124


def test_a_blip_is_not_speech() -> None:
    """A click that looks like speech for a fifth of a second holds no word."""
    assert plan(audio((4, SILENCE), (0.2, SPEECH), (4, SILENCE))).windows == ()
    assert len(plan(audio((4, SILENCE), (0.3, SPEECH), (4, SILENCE))).windows) == 1


def test_doubtful_speech_is_told_by_its_sure_seconds() -> None:
    """A window may be speech by a single frame; the plan says so."""
    made = plan(audio((1, SILENCE), (0.5, MURMUR), (0.1, SPEECH), (1, MURMUR), (3, SILENCE)))
    assert made.sure_speech_s == pytest.approx((0.1,), abs=0.02)


def test_what_the_client_vouches_for_is_never_faint() -> None:
    """Half a second without the detector counts as sure speech in full."""
    assert plan_windows([], 8000, vad=False, window_s=30.0).sure_speech_s == (30.0,)


@pytest.mark.parametrize("vad", ["auto", True, False])
@pytest.mark.parametrize("sample_count", [1, 511, 512, 513, 1600])
def test_tiny_audio_is_planned(sample_count: int, vad: bool | str) -> None:
    """Even one sample is audio."""
    probabilities = [SPEECH] * -(-sample_count // FRAME_SAMPLES)
    made = plan_windows(probabilities, sample_count, vad=vad, window_s=30.0)
    assert made.windows == (() if vad else (Window(0, sample_count),))


@pytest.mark.parametrize(("frames", "window_s"), [(9, 30.0), (11, 30.0), (10, 0.5), (10, 30.1)])
def test_what_does_not_fit_is_refused(frames: int, window_s: float) -> None:
    """Probabilities of another audio and windows the encoder cannot take are bugs of the caller."""
    with pytest.raises(ValueError, match=r"probabilities|window_s"):
        plan_windows([SPEECH] * frames, 10 * FRAME_SAMPLES, vad=True, window_s=window_s)


LEVELS = st.sampled_from([0.0, 0.1, 0.34, 0.35, 0.42, 0.5, 0.51, 0.8, 1.0])
STRETCHES = st.lists(st.tuples(LEVELS, st.integers(1, 400)), min_size=1, max_size=40)


@settings(deadline=None, max_examples=300)
@given(
    stretches=STRETCHES,
    missing=st.integers(0, FRAME_SAMPLES - 1),
    vad=st.sampled_from(["auto", True, False]),
    window_s=st.floats(1.0, 30.0),
)
def test_windows_are_ordered_short_enough_and_lose_no_speech(
    stretches: list[tuple[float, int]], missing: int, vad: bool | str, window_s: float
) -> None:
    """For any audio: in order, disjoint, inside, at most window_s, and every sure word is in one."""
    probabilities = [level for level, frames in stretches for _ in range(frames)]
    sample_count = len(probabilities) * FRAME_SAMPLES - missing
    made = plan_windows(probabilities, sample_count, vad=vad, window_s=window_s)
    for window in made.windows:
        assert 0 <= window.start < window.stop <= sample_count
        assert window.stop - window.start <= window_s * SAMPLE_RATE
    for before, after in pairwise(made.windows):
        assert before.stop <= after.start
    assert len(made.sure_speech_s) == len(made.windows)
    assert 0 <= made.speech_samples <= sample_count
    covered = bytearray(sample_count)
    for window in made.windows:
        covered[window.start : window.stop] = b"\x01" * (window.stop - window.start)
    if vad is False:
        assert all(covered)
    frame = 0
    for sure, group in groupby(probabilities, key=lambda probability: probability >= 0.5):
        length = len(list(group))
        if sure and length * FRAME_SAMPLES >= 0.25 * SAMPLE_RATE:
            assert all(covered[frame * FRAME_SAMPLES : (frame + length) * FRAME_SAMPLES])
        frame += length


def parts(probabilities: Sequence[float], sample_count: int, cuts: Sequence[int], **settings: Any) -> list[WindowPlan]:
    """The plan as it is told when probabilities come in blocks of these lengths in turn; the last part is the rest."""
    planner = Planner(sample_count, **settings)
    told, at = [], 0
    for length in cycle(cuts):
        if at >= len(probabilities):
            break
        told.append(planner.feed(probabilities[at : at + length]))
        at += length
    return [*told, planner.finish()]


@settings(deadline=None, max_examples=300)
@given(
    stretches=STRETCHES,
    missing=st.integers(0, FRAME_SAMPLES - 1),
    vad=st.sampled_from(["auto", True, False]),
    window_s=st.floats(1.0, 30.0),
    cuts=st.lists(st.integers(1, 700), min_size=1, max_size=4),
)
def test_windows_told_early_are_those_of_the_whole_plan(
    stretches: list[tuple[float, int]], missing: int, vad: bool | str, window_s: float, cuts: list[int]
) -> None:
    """For any audio in blocks of any lengths: what is handed out is never taken back, and nothing is added to it."""
    probabilities = [level for level, frames in stretches for _ in range(frames)]
    sample_count = len(probabilities) * FRAME_SAMPLES - missing
    told = parts(probabilities, sample_count, cuts, vad=vad, window_s=window_s)
    whole = plan_windows(probabilities, sample_count, vad=vad, window_s=window_s)
    assert reduce(operator.add, told) == whole


@pytest.mark.parametrize("vad", ["auto", False])
def test_the_first_windows_of_long_speech_are_told_long_before_its_end(vad: bool | str) -> None:
    """Sentences without a long silence between them: no more than four windows and a block are known and not told."""
    sentences = [part for n in range(120) for part in ((3 + n % 4, SPEECH), (0.2 + 0.1 * (n % 3), SILENCE))]
    probabilities = audio(*sentences)
    told = parts(probabilities, len(probabilities) * FRAME_SAMPLES, [500], vad=vad, window_s=30.0)
    known_s, settled_s = 0.0, 0.0
    for part in told[:-1]:
        known_s += 16.0
        settled_s = part.windows[-1].stop / SAMPLE_RATE if part.windows else settled_s
        assert known_s - settled_s <= 4 * 30.0 + 16.0


def test_a_long_silence_settles_what_is_before_it() -> None:
    """Whatever follows; the padding is part of it."""
    planner = Planner(100 * SAMPLE_RATE, vad="auto", window_s=30.0)
    assert [seconds(window) for window in planner.feed(audio((12, SPEECH), (2.1, SILENCE))).windows] == [(0.0, 12.4)]


def test_audio_of_one_window_is_told_at_its_end() -> None:
    """Whether it is kept whole depends on all of it."""
    probabilities = audio((4, SPEECH), (6, SILENCE), (4, SPEECH))
    *early, last = parts(probabilities, len(probabilities) * FRAME_SAMPLES, [50], vad="auto", window_s=30.0)
    assert not any(part.windows for part in early)
    assert len(last.windows) == 1

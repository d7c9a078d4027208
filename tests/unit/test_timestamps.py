"""Timestamp tokens into stretches, aligned words into words with sane times."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisperd.inference.timestamps import (
    SECONDS_PER_TIMESTAMP,
    AlignedWord,
    Stretch,
    settle_words,
    share_words,
    split_at_timestamps,
)

BEGIN, EOT = 1000, 900  # the first timestamp token; the end of text, which special tokens follow
WINDOW_S = 10.0


def at(seconds: float) -> int:
    """The timestamp token for this time."""
    return BEGIN + round(seconds / SECONDS_PER_TIMESTAMP)


def cut(*tokens: int, window_s: float = WINDOW_S) -> list[Stretch]:
    """The stretches of these tokens."""
    return split_at_timestamps(tokens, BEGIN, EOT, window_s)


def word(text: str, start: float, end: float, tokens: int = 1) -> AlignedWord:
    """A word as the aligner gives it."""
    return AlignedWord(text, start, end, 0.9, tokens)


# -- stretches ---------------------------------------------------------------------------------------------------


def test_text_between_two_timestamps_is_a_stretch() -> None:
    """The ordinary case: each stretch is opened and closed."""
    assert cut(at(0), 1, 2, at(2.5), at(2.5), 3, at(4)) == [Stretch(0.0, 2.5, (1, 2)), Stretch(2.5, 4.0, (3,))]


def test_a_pause_between_stretches_is_kept() -> None:
    """The next stretch opens where its own timestamp says."""
    assert cut(at(0), 1, at(1), at(3), 2, at(4)) == [Stretch(0.0, 1.0, (1,)), Stretch(3.0, 4.0, (2,))]


def test_text_without_a_closing_timestamp_ends_with_the_window() -> None:
    """The token cap, or a model that forgot."""
    assert cut(at(1), 1, 2) == [Stretch(1.0, WINDOW_S, (1, 2))]


def test_text_without_an_opening_timestamp_starts_where_the_last_ended() -> None:
    """Or with the window, if it is the first."""
    assert cut(1, at(2), 2, at(3)) == [Stretch(0.0, 2.0, (1,)), Stretch(2.0, 3.0, (2,))]


def test_without_any_timestamp_the_window_is_one_stretch() -> None:
    """As with timestamps switched off."""
    assert cut(1, 2, 3) == [Stretch(0.0, WINDOW_S, (1, 2, 3))]


def test_a_time_in_the_silence_behind_the_speech_is_pulled_back() -> None:
    """With short context the model sees more than the window."""
    assert cut(at(9), 1, at(14), at(14), 2, at(15)) == [Stretch(9.0, 10.0, (1,)), Stretch(10.0, 10.0, (2,))]


def test_times_that_run_backwards_are_held() -> None:
    """A stretch never starts before the one in front of it ended."""
    assert cut(at(0), 1, at(5), at(3), 2, at(4)) == [Stretch(0.0, 5.0, (1,)), Stretch(5.0, 5.0, (2,))]


def test_special_tokens_are_no_text() -> None:
    """The end of text and what lies between it and the timestamps."""
    assert cut(at(0), EOT + 5, 1, at(1), EOT) == [Stretch(0.0, 1.0, (1,))]


def test_no_text_gives_no_stretch() -> None:
    """Timestamps alone say nothing."""
    assert cut() == cut(at(0), at(3)) == cut(EOT) == []


tokens = st.lists(st.integers(0, EOT + 10) | st.integers(BEGIN, BEGIN + 1500), max_size=60)


@given(tokens, st.floats(0.01, 30.0))
def test_stretches_are_in_order_inside_the_window_and_lose_no_text(sequence: list[int], window_s: float) -> None:
    """Whatever a model may say."""
    stretches = cut(*sequence, window_s=window_s)
    times = [time for stretch in stretches for time in (stretch.start, stretch.end)]
    assert times == sorted(times)
    assert all(0.0 <= time <= round(window_s, 3) for time in times)
    assert [token for stretch in stretches for token in stretch.tokens] == [t for t in sequence if t < EOT]
    assert all(stretch.tokens for stretch in stretches)


# -- sharing words -----------------------------------------------------------------------------------------------


def shared(lengths: list[int], words: list[AlignedWord]) -> list[list[str]]:
    """The words that stretches of so many tokens get."""
    stretches = [Stretch(0.0, 1.0, tuple(range(length))) for length in lengths]
    return [[w.word for w in own] for own in share_words(stretches, words)]


def test_words_go_to_the_stretch_that_holds_their_tokens() -> None:
    """Counted, since the aligner knows no stretches."""
    words = [word(" a", 0, 1, 2), word(" b", 1, 2), word(" c", 2, 3, 3), word(".", 3, 3)]
    assert shared([3, 4], words) == [[" a", " b"], [" c", "."]]


def test_a_word_that_straddles_a_border_belongs_to_where_it_begins_and_shifts_nothing() -> None:
    """The stretches behind it still get their own words."""
    words = [word(f" {number}", 0, 1, 2) for number in range(4)] + [word(" last", 0, 1, 1)]
    assert shared([3, 3, 3], words) == [[" 0", " 1"], [" 2"], [" 3", " last"]]


def test_words_of_nothing_but_space_are_dropped() -> None:
    """They cannot be shown."""
    assert shared([3], [word(" a", 0, 1), word(" ", 1, 2), word("", 2, 3)]) == [[" a"]]


def test_stretches_without_words_get_none() -> None:
    """The aligner may find fewer words than there is text."""
    assert shared([2, 2], [word(" a", 0, 1, 2)]) == [[" a"], []]
    assert shared([2], []) == [[]]
    assert shared([], [word(" a", 0, 1)]) == []


@given(st.lists(st.integers(1, 6), max_size=8), st.lists(st.integers(1, 4), max_size=20))
def test_words_are_shared_in_order_and_once(lengths: list[int], sizes: list[int]) -> None:
    """As many as the stretches have tokens for, each where its first token is."""
    words = [word(f" {number}", 0, 1, size) for number, size in enumerate(sizes)]
    given_out = shared(lengths, words)
    borders = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    expected: list[list[str]] = [[] for _ in lengths]
    position = 0
    for one in words:
        home = next((number for number, border in enumerate(borders) if position < border), None)
        if home is not None:
            expected[home].append(one.word)
        position += one.tokens
    assert given_out == expected


# -- settling words ----------------------------------------------------------------------------------------------


def times(words: list[AlignedWord]) -> list[tuple[float, float]]:
    """Starts and ends."""
    return [(w.start, w.end) for w in words]


def test_words_with_sane_times_stay_as_they_are() -> None:
    """Nothing is improved that is not broken."""
    words = [word(" a", 0.5, 0.8), word(" b", 0.8, 1.2), word(" c", 1.5, 1.9)]
    assert times(settle_words(words, WINDOW_S, 0.0)) == [(0.5, 0.8), (0.8, 1.2), (1.5, 1.9)]


def test_overlapping_words_are_parted() -> None:
    """Each begins where the one before it ended."""
    words = [word(" a", 0.0, 0.5), word(" b", 0.3, 0.4), word(" c", 0.2, 0.9)]
    assert times(settle_words(words, WINDOW_S, 0.0)) == [(0.0, 0.5), (0.5, 0.5), (0.5, 0.9)]


def test_words_are_kept_between_the_floor_and_the_window_s_end() -> None:
    """Not before what was said before, not after the audio."""
    words = [word(" a", 0.0, 1.3), word(" b", 9.9, 10.4)]
    assert times(settle_words(words, WINDOW_S, 1.0)) == [(1.0, 1.3), (9.9, 10.0)]


def test_a_first_word_stretched_over_a_pause_starts_later() -> None:
    """The pause is in front of it."""
    words = [word(" a", 0.0, 5.0), word(" b", 5.0, 5.3), word(" c", 5.3, 5.6)]
    assert times(settle_words(words, WINDOW_S, 0.0))[0] == (4.4, 5.0)


def test_a_later_word_stretched_over_a_pause_ends_earlier() -> None:
    """The pause is behind it."""
    words = [word(" a", 0.0, 0.3), word(" b", 0.3, 0.6), word(" c", 0.6, 8.0)]
    assert times(settle_words(words, WINDOW_S, 0.0))[2] == (0.6, 1.2)


def test_no_words_are_no_trouble() -> None:
    """Neither are words without length."""
    assert settle_words([], WINDOW_S, 0.0) == []
    assert times(settle_words([word(" a", 1.0, 1.0)], WINDOW_S, 0.0)) == [(1.0, 1.0)]


aligned = st.builds(
    AlignedWord,
    st.just(" x"),
    st.floats(-1.0, 40.0),
    st.floats(-1.0, 40.0),
    st.floats(0.0, 1.0),
    st.integers(1, 4),
)


@given(st.lists(aligned, max_size=15), st.floats(0.0, 30.0), st.floats(0.0, 30.0))
def test_settled_words_are_monotone_and_inside(words: list[AlignedWord], window_s: float, floor_s: float) -> None:
    """Whatever the aligner said; and no word is lost."""
    floor_s = min(floor_s, window_s)
    settled = settle_words(words, window_s, floor_s)
    assert len(settled) == len(words)
    for one in settled:
        assert round(floor_s, 3) <= one.start <= one.end <= round(window_s, 3)
    assert all(before.end <= after.start for before, after in pairwise(settled))


@given(st.lists(aligned, max_size=15))
def test_settling_twice_changes_nothing_more_than_rounding(words: list[AlignedWord]) -> None:
    """Sane times are sane."""
    once = settle_words(words, 30.0, 0.0)
    assert [w.word for w in settle_words(once, 30.0, 0.0)] == [w.word for w in once]


@pytest.mark.parametrize("window_s", [0.0, 0.004, 29.9996])
def test_odd_window_lengths_are_no_trouble(window_s: float) -> None:
    """A window may be a few samples, or no whole number of milliseconds."""
    (stretch,) = cut(1, window_s=window_s)
    assert stretch == Stretch(0.0, round(window_s, 3), (1,))

"""Aligned words into segments that a reader would cut there too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisperd.inference.sentences import split_at_sentences
from whisperd.inference.timestamps import AlignedWord

WINDOW_S = 30.0


def spoken(text: str, pauses: dict[str, float] | None = None, word_s: float = 0.3) -> list[AlignedWord]:
    """The words of a text, one after the other, with these pauses in seconds behind some of them."""
    words, now = [], 0.0
    for one in text.split():
        words.append(AlignedWord(f" {one}", now, now + word_s, 0.9, 1))
        now += word_s + (pauses or {}).get(one, 0.0)
    return words


def texts(words: list[AlignedWord], window_s: float = WINDOW_S) -> list[str]:
    """What the segments say."""
    found = split_at_sentences(range(sum(word.tokens for word in words)), words, window_s)
    return ["".join(word.word for word in own).strip() for _, own in found]


def test_a_sentence_ends_at_its_punctuation_where_the_speaker_pauses() -> None:
    """The ordinary case, with quotes behind the full stop too."""
    words = spoken('He left. "Why did he?" Nobody knew.', {"left.": 0.5, 'he?"': 0.3})
    assert texts(words) == ["He left.", '"Why did he?"', "Nobody knew."]


def test_an_abbreviation_ends_no_sentence() -> None:
    """Nobody pauses behind it."""
    assert texts(spoken("Mrs. Wilson met Mr. J. A. Hopkins.")) == ["Mrs. Wilson met Mr. J. A. Hopkins."]


def test_full_stops_of_other_scripts_end_sentences_as_well() -> None:
    """No spaces between words, no Latin punctuation."""
    words = [AlignedWord("你好。", 0.0, 0.8, 0.9, 3), AlignedWord("再见。", 1.4, 2.0, 0.9, 3)]
    assert texts(words) == ["你好。", "再见。"]


def test_a_long_sentence_is_cut_at_a_clause() -> None:
    """Even where the speaker pauses a little longer for breath elsewhere."""
    words = spoken("one two three four five six, " + "seven " * 8 + "eight", {"six,": 0.1, "three": 0.2}, word_s=0.8)
    assert texts(words)[0] == "one two three four five six,"


def test_a_long_text_without_punctuation_is_cut_at_a_pause() -> None:
    """Some models write none."""
    words = spoken("a b c d e f g h i j k l m n", {"h": 0.6}, word_s=0.8)
    assert texts(words) == ["a b c d e f g h", "i j k l m n"]


def test_one_word_that_fills_the_window_stays_whole() -> None:
    """There is nowhere to cut; its time is that of a word."""
    [(stretch, [own])] = split_at_sentences((7,), [AlignedWord(" hm", 0.0, 25.0, 0.9, 1)], WINDOW_S)
    assert (stretch.tokens, own.word) == ((7,), " hm")


def test_no_words_are_no_sentence() -> None:
    """The aligner found none."""
    assert split_at_sentences((), [], WINDOW_S) == []
    assert split_at_sentences((1, 2), [AlignedWord(" ", 0.0, 1.0, 0.9, 2)], WINDOW_S) == []


def test_words_that_are_not_of_all_the_tokens_are_not_used() -> None:
    """The aligner stops at broken characters, and the text behind them must not go with it."""
    assert split_at_sentences((1, 2, 3), [AlignedWord(" a", 0.0, 1.0, 0.9, 1)], WINDOW_S) == []


def test_a_sentence_reaches_to_where_the_aligner_says() -> None:
    """A word that holds a pause is shown short, but the text did not stop there."""
    words = [*spoken("this is the last"), AlignedWord(" word.", 1.2, 6.0, 0.9, 1)]
    [(stretch, own)] = split_at_sentences(range(5), words, WINDOW_S)
    assert (stretch.end, own[-1].end) == (6.0, pytest.approx(1.8))


pieces = st.tuples(
    st.sampled_from(["a", "b.", "c,", "d?\"", "", " "]), st.floats(0.0, 3.0), st.floats(0.0, 2.0), st.integers(1, 4)
)


@given(st.lists(pieces, max_size=60), st.floats(1.0, 30.0))
def test_sentences_keep_all_tokens_and_are_in_order_inside_the_window(
    parts: list[tuple[str, float, float, int]], window_s: float
) -> None:
    """Whatever the aligner may say."""
    words, now = [], 0.0
    for text, length_s, pause_s, tokens in parts:
        words.append(AlignedWord(text, now, now + length_s, 0.5, tokens))
        now += length_s + pause_s
    tokens = range(sum(word.tokens for word in words))
    found = split_at_sentences(tokens, words, window_s)
    times = [time for stretch, _ in found for time in (stretch.start, stretch.end)]
    assert times == sorted(times)
    assert all(0.0 <= time <= round(window_s, 3) for time in times)
    spoken_tokens = [token for stretch, _ in found for token in stretch.tokens]
    assert spoken_tokens == (list(tokens) if any(word.word.strip() for word in words) else [])
    assert all(own for _, own in found)

"""Texts that end by saying themselves again, and texts that only seem to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisperd.inference.repeats import tail_repeats

words = st.sampled_from(["so", "we", "went", "home", "again", "don't", "the", "river", "été", "7"])


@pytest.mark.parametrize(
    "text",
    [
        "He went home. He went home.",
        "thank you for watching thank you for watching",
        "Yes yes yes yes",
        "we will see you next time and we will see",
        "one two three four five six one two three four five six one two three",
        "ご視聴ありがとうございましたご視聴ありがとうございました",
        "ははははははははははははは",
        "谢谢大家观看。谢谢大家观看。",
        "Спасибо за внимание. Спасибо за внимание.",
    ],
)
def test_a_tail_that_says_again_what_came_before_is_found(text: str) -> None:
    """The same phrase to the end, or its first words before it breaks off, in any script."""
    assert tail_repeats(text)


@pytest.mark.parametrize(
    "text",
    ["I had had, had I not? I had had, had I not?", "no no no no", "bye bye, bye bye"],
)
def test_true_repetitions_are_found_too(text: str) -> None:
    """They look the same; the caller only spends a second look on them."""
    assert tail_repeats(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "...",
        "Yes.",
        "no no",
        "He did it, did it well and then left.",
        "The quick brown fox jumps over the lazy dog.",
        "Row, row, row your boat gently down the stream.",
        "It was the best of times, it was the worst of times, it was the age of wisdom.",
        "she sells sea shells by the sea shore",
        "吾輩は猫である",
        "Congratulations everybody",
        "I said no. You said no.",
        "And so, my fellow Americans, ask not. Ask not what",
    ],
)
def test_speech_without_a_repeating_tail_is_left_alone(text: str) -> None:
    """Repetition in the middle, of one word, or of the last two words only after others."""
    assert not tail_repeats(text)


@given(st.lists(words, max_size=12), st.lists(words, min_size=2, max_size=8))
def test_a_phrase_said_twice_at_the_end_is_always_found(before: list[str], phrase: list[str]) -> None:
    """Whatever came before it, and whatever the punctuation and the case."""
    text = " ".join([*before, *phrase, *phrase])
    assert tail_repeats(text)
    assert tail_repeats(text.upper().replace(" ", ", ") + "!")


@given(st.lists(words, max_size=12), st.lists(words, min_size=3, max_size=8), st.integers(3, 8))
def test_a_repetition_that_breaks_off_after_three_words_is_found(
    before: list[str], phrase: list[str], said: int
) -> None:
    """The token cap may cut a loop anywhere."""
    assert tail_repeats(" ".join([*before, *phrase, *phrase[:said]]))


@given(st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), unique=True, max_size=26))
def test_a_text_of_different_words_is_never_flagged(units: list[str]) -> None:
    """What is said once repeats nothing."""
    assert not tail_repeats(" ".join(units))


@given(st.text(max_size=200))
def test_any_text_gets_an_answer(text: str) -> None:
    """Also one of signs only."""
    assert tail_repeats(text) in (True, False)


def test_a_long_text_costs_one_pass() -> None:
    """Each distance is given up after three words at most, so that ten thousand words cost milliseconds."""
    text = " ".join(f"w{number}" for number in range(10_000))
    assert not tail_repeats(text)

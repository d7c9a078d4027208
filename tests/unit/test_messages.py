"""What travels between the supervisor and its workers comes out as it went in."""

from __future__ import annotations

import dataclasses
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisperd.messages import DecodeOptions, Segment, WindowResult, Word, segment_from_wire

numbers = st.floats(allow_nan=False, allow_infinity=False)
# JSON has no lone surrogates, and the tokenizer makes none
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
words = st.builds(Word, texts, numbers, numbers, numbers)
segments = st.builds(
    Segment,
    st.integers(0, 1000),
    numbers,
    numbers,
    texts,
    numbers,
    numbers,
    numbers,
    numbers,
    st.none() | st.lists(words, max_size=3).map(tuple),
)
results = st.builds(
    WindowResult,
    st.lists(segments, max_size=3).map(tuple),
    texts,
    numbers,
    st.none() | texts,
    st.lists(st.tuples(texts, numbers), max_size=3).map(tuple),
)
options = st.builds(
    DecodeOptions,
    st.booleans(),
    st.integers(1, 16),
    st.lists(numbers, min_size=1, max_size=4).map(tuple),
    st.none() | texts,
    st.none() | texts,
    st.lists(st.integers(-1, 50_000), max_size=4).map(tuple),
    *[st.none() | numbers] * 4,
)


def sent(message: Any) -> Any:
    """Through the wire's JSON."""
    return orjson.loads(orjson.dumps(message))


@given(results)
def test_results_arrive_as_they_were(result: WindowResult) -> None:
    """Tuples again where JSON has lists, words only where there were some."""
    assert WindowResult.from_wire(sent(result.to_wire())) == result


@given(options)
def test_options_arrive_as_they_were(option: DecodeOptions) -> None:
    """And can be part of a key on the other side."""
    arrived = DecodeOptions.from_wire(sent(dataclasses.asdict(option)))
    assert arrived == option
    assert hash(arrived) == hash(option)


@given(segments)
def test_segments_ignore_members_that_they_do_not_know(segment: Segment) -> None:
    """Additions may come."""
    assert segment_from_wire({**sent(segment.to_wire()), "speaker": "a"}) == segment


def test_words_are_written_only_where_they_were_asked_for() -> None:
    """An empty list says that there were none."""
    segment = Segment(0, 0.0, 1.0, "a", -0.1, 0.0, 1.0, 0.0)
    assert "words" not in segment.to_wire()
    assert dataclasses.replace(segment, words=()).to_wire()["words"] == []


def test_values_cannot_be_changed() -> None:
    """They are shared between jobs and batches."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        DecodeOptions().beam_size = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Word(" a", 0.0, 1.0, 0.9).word = "b"  # type: ignore[misc]

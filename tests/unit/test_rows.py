"""What is decoded again of a window, and how the parts come together."""

from __future__ import annotations

import numpy as np

from whisperd.inference.prompts import share_prompt
from whisperd.inference.rows import Rest, Row, by_context, in_one, joined, rest_of, rest_of_text
from whisperd.inference.timestamps import Stretch
from whisperd.messages import SAMPLE_RATE, DecodeOptions, RowOptions, Segment, WindowResult, Word

OPTIONS = DecodeOptions(tail_s=6.0)


def row(seconds: float = 20.0, speech_stop_s: float = 19.0) -> Row:
    """A window of silence that is said to hold speech."""
    return Row(np.zeros(int(seconds * SAMPLE_RATE), np.float32), RowOptions(), seconds, speech_stop_s)


def stretches(*ends: float) -> list[Stretch]:
    """Text in stretches that end at these times, one behind the other."""
    return [Stretch(start, end, (1,)) for start, end in zip((0.0, *ends), ends, strict=False)]


def heard(*ends: float, words: bool = False) -> WindowResult:
    """A text with segments that end at these times, each of one word if words were asked for."""
    segments, start = [], 0.0
    for number, end in enumerate(ends):
        own = (Word(f" w{number}", start, end, 0.9),) if words else None
        segments.append(Segment(number, start, end, f" w{number}", -0.1, 0.0, 1.0, 0.0, own))
        start = end
    return WindowResult(tuple(segments), "en", 1.0)


def test_a_long_rest_begins_where_the_text_stopped_and_a_short_one_a_little_before_its_last_stretch() -> None:
    """A few words by themselves are misheard, and so is a word whose beginning was cut off."""
    assert rest_of_text(row(), stretches(4.0, 12.0)) == Rest(12.0, 2)
    assert rest_of_text(row(), stretches(4.0, 16.0)) == Rest(4.0, 1)
    assert rest_of_text(row(), [Stretch(0.0, 4.0, (1,)), Stretch(5.0, 16.0, (1,))]) == Rest(4.7, 1)
    assert rest_of_text(row(), stretches(16.0)) == Rest(16.0, 1)


def test_nothing_is_left_of_silence_or_of_a_finished_text() -> None:
    """And a text that stopped at once is not looked at again for ever."""
    assert rest_of_text(row(), []) is None
    assert rest_of_text(row(), stretches(18.2)) is None
    assert rest_of_text(row(), stretches(0.5)) is None
    assert rest_of_text(row(speech_stop_s=12.5), stretches(12.0)) is None


def test_rests_share_a_pass_by_their_context() -> None:
    """Two short ones and a long one."""
    rows = [row(), row(), row(28.0, 27.0)]
    rests = {number: Rest(cut_s, 1) for number, cut_s in enumerate((15.0, 15.2, 5.0))}
    assert by_context(rows, rests, OPTIONS) == {1500: [0, 1], 3000: [2]}
    rest = rest_of(rows[0], 15.0, "de")
    assert (rest.duration_s, rest.options.language, rest.speech_s, rest.speech_stop_s) == (5.0, "de", 4.0, 4.0)


def test_a_rest_comes_behind_its_first_part_in_the_window_s_time() -> None:
    """Ids run on."""
    whole = joined(heard(4.0, 12.0), heard(3.0, 6.5), Rest(12.0, 2))
    assert [(s.id, s.start, s.end) for s in whole.segments] == [(0, 0.0, 4.0), (1, 4.0, 12.0), (2, 12.0, 15.0),
                                                                (3, 15.0, 18.5)]  # fmt: skip


def test_words_of_the_two_parts_do_not_overlap() -> None:
    """Those of the first part that were found behind the cut end at it."""
    whole = joined(heard(4.0, 12.4, words=True), heard(3.0, words=True), Rest(12.0, 2))
    words = [word for segment in whole.segments for word in segment.words or ()]
    assert [(word.start, word.end) for word in words] == [(0.0, 4.0), (4.0, 12.0), (12.0, 15.0)]
    assert [segment.end for segment in whole.segments] == [4.0, 12.0, 15.0]


def test_what_was_heard_first_stays_where_hearing_it_again_gives_no_more() -> None:
    """No text is lost to a second look: not to silence, nor to fewer words."""
    first = heard(4.0, 12.0)
    assert joined(first, heard(), Rest(4.0, 1)) is first
    assert joined(first, heard(3.0), Rest(4.0, 1)) is first
    assert [segment.text for segment in joined(first, heard(3.0, 6.0), Rest(4.0, 1)).segments] == [" w0", " w0", " w1"]


# -- the prompt's place ------------------------------------------------------------------------------------------


def test_a_prompt_within_the_budget_is_kept_whole_hotwords_first() -> None:
    """And nothing is warned of."""
    prompt = share_prompt([1, 2], [3, 4, 5], 5)
    assert (prompt.tokens, prompt.warnings) == ((1, 2, 3, 4, 5), ())
    assert share_prompt([], [], 5).tokens == ()


def test_what_one_part_of_the_prompt_leaves_the_other_may_use() -> None:
    """Each alone has all of it, the hotwords' beginning, the initial prompt's end, and what was cut is told."""
    prompt = share_prompt(range(300), [], 223)
    assert prompt.tokens == tuple(range(223))
    assert prompt.warnings == (
        "hotwords is too long: of its 300 tokens the model was given the first 223"
        " (initial_prompt and hotwords have 223 together)",
    )
    assert share_prompt([], range(300), 223).tokens == tuple(range(77, 300))
    prompt = share_prompt(range(200), range(1000, 1023), 223)
    assert (len(prompt.tokens), prompt.warnings) == (223, ())


def test_two_long_parts_of_a_prompt_share_it_and_both_cuts_are_told() -> None:
    """Each has half, so that neither pushes the other out, nor both the text."""
    prompt = share_prompt(range(223), range(1000, 1223), 223)
    assert prompt.tokens == (*range(111), *range(1111, 1223))
    assert [warning.split()[0] for warning in prompt.warnings] == ["hotwords", "initial_prompt"]


def test_who_wants_no_times_gets_one_segment() -> None:
    """Also where the text came in parts."""
    whole = in_one(joined(heard(4.0, 12.0), heard(3.0), Rest(12.0, 2)), row())
    assert [(s.id, s.start, s.end, s.text) for s in whole.segments] == [(0, 0.0, 20.0, " w0 w1 w0")]
    assert in_one(heard(), row()).segments == ()

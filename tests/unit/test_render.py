"""Documents made from segments, read back with parsers that are not ours."""

from __future__ import annotations

import html
import re
import unicodedata

import pysubs2
import pytest
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperd.messages import Segment, Word
from whisperd.render import (
    CUE_FLOOR_MS,
    CUE_LINES,
    CUE_MAX_MS,
    CUE_MIN_MS,
    FORMATS,
    LINE_COLUMNS,
    cues,
    render,
)

LONG = (
    "The president will turn this imperialistic war into a crusade for democracy. "
    "Lay aside your own fight and help us crush Germany, and you will find yourselves rewarded."
)
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗い所で泣いていた。"


def segment(start: float, end: float, text: str, words: tuple[Word, ...] | None = None) -> Segment:
    """A segment of which only times, text and words matter here."""
    return Segment(0, start, end, text, -0.2, 0.01, 1.2, 0.0, words)


def columns(line: str) -> int:
    """Width on a terminal, counted by the rule of the standard and not by our code."""
    widths = {"W": 2, "F": 2}
    marks = sum(1 for c in line if unicodedata.combining(c))
    return sum(widths.get(unicodedata.east_asian_width(c), 1) for c in line) - marks


def ink(text: str) -> str:
    """What must survive: everything but white space and control characters."""
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c) != "Cc")


spoken = st.sampled_from([*LONG.split(), "-->", "[x]", JAPANESE, "5"])
texts = st.text(max_size=300) | st.lists(spoken).map(" ".join)
times = st.floats(min_value=0, max_value=20_000)


@st.composite
def segments(draw: st.DrawFn) -> list[Segment]:
    """Segments with any text and any times, also backwards ones; some with words that spell the text."""
    made = []
    for text in draw(st.lists(texts, max_size=6)):
        start, end = draw(times), draw(times)
        words = None
        if draw(st.booleans()):
            at = [(w, draw(times), draw(st.floats(0, 9))) for w in text.split()]
            words = tuple(Word(" " + w, start, start + lasts, 1.0) for w, start, lasts in at)
        made.append(segment(start, end, text, words))
    return made


@settings(deadline=None)
@given(segments())
def test_cues_keep_every_limit_whatever_the_segments_hold(given_segments: list[Segment]) -> None:
    """Lines, columns, durations and order hold for backwards times, empty texts and endless words."""
    previous_end = 0
    for cue in cues(given_segments):
        assert 1 <= len(cue.lines) <= CUE_LINES
        assert all(columns(line) <= LINE_COLUMNS for line in cue.lines)
        assert all(line.strip() == line and line for line in cue.lines)
        assert cue.start_ms >= previous_end
        assert CUE_FLOOR_MS <= cue.end_ms - cue.start_ms <= CUE_MAX_MS
        previous_end = cue.end_ms


@settings(deadline=None)
@given(segments())
def test_cues_hold_every_character_once_and_in_order(given_segments: list[Segment]) -> None:
    """Nothing but white space is lost or doubled by cutting."""
    cut = cues(given_segments)
    assert "".join(ink("".join(cue.lines)) for cue in cut) == "".join(ink(s.text) for s in given_segments)
    assert "".join(ink(cue.text) for cue in cut) == "".join(ink(s.text) for s in given_segments)


@settings(deadline=None)
@given(segments())
def test_vtt_reads_back_with_a_foreign_parser(given_segments: list[Segment]) -> None:
    """webvtt-py finds the same cues, texts and times."""
    read = webvtt.from_string(render("vtt", given_segments, "en"))
    expected = cues(given_segments)
    assert [tuple(map(html.unescape, c.lines)) for c in read.captions] == [c.lines for c in expected]
    assert [int(c.start_in_seconds) for c in read.captions] == [c.start_ms // 1000 for c in expected]


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([*LONG.split(), JAPANESE]), min_size=1).map(" ".join)))
def test_srt_reads_back_with_a_foreign_parser(given_texts: list[str]) -> None:
    """pysubs2 finds the same cues, texts and times."""
    given_segments = [segment(9.0 * i, 9.0 * i + 8, text) for i, text in enumerate(given_texts)]
    read = pysubs2.SSAFile.from_string(render("srt", given_segments), format_="srt")
    expected = cues(given_segments)
    assert [(e.start, e.end) for e in read] == [(c.start_ms, c.end_ms) for c in expected]
    assert [tuple(e.text.split("\\N")) for e in read] == [c.lines for c in expected]


@settings(deadline=None)
@given(segments())
def test_srt_blocks_are_numbered_and_never_broken_by_their_text(given_segments: list[Segment]) -> None:
    """Each block is a number, one time line and one or two lines of text, whatever the text holds."""
    document = render("srt", given_segments)
    blocks = document.removesuffix("\n").split("\n\n") if document else []
    assert len(blocks) == len(cues(given_segments))
    for number, block in enumerate(blocks, 1):
        head, time_line, *lines = block.split("\n")
        assert head == str(number)
        assert re.fullmatch(r"\d{2,}:\d\d:\d\d,\d{3} --> \d{2,}:\d\d:\d\d,\d{3}", time_line)
        assert 1 <= len(lines) <= CUE_LINES
        assert all(line.strip() and "-->" not in line for line in lines)


@settings(deadline=None)
@given(segments())
def test_tsv_has_three_columns_whatever_the_text_holds(given_segments: list[Segment]) -> None:
    """Tabs and line ends in the text are replaced; times are whole milliseconds."""
    header, *rows = render("tsv", given_segments).removesuffix("\n").split("\n")
    assert header == "start\tend\ttext"
    kept = [s for s in given_segments if ink(s.text)]
    for row, kept_segment in zip(rows, kept, strict=True):
        start, end, text = row.split("\t")
        assert (int(start), int(end)) == (round(kept_segment.start * 1000), round(kept_segment.end * 1000))
        assert ink(text) == ink(kept_segment.text)


@settings(deadline=None)
@given(segments())
def test_lrc_lines_each_begin_with_one_time_in_order(given_segments: list[Segment]) -> None:
    """A text that looks like a time or a tag is not taken for one, and times do not run backwards."""
    seen = []
    for row in render("lrc", given_segments).splitlines():
        match = re.fullmatch(r"\[(\d{2,}):([0-5]\d\.\d\d)\](?!\[).+", row)
        assert match is not None
        seen.append(int(match[1]) * 60 + float(match[2]))
    assert seen == sorted(seen)


@pytest.mark.parametrize("name", FORMATS)
def test_no_segments_make_a_valid_empty_document(name: str) -> None:
    """Silence renders as a document without cues, not as an error or a broken file."""
    blank = [segment(0.0, 1.0, "  \n ")]
    assert render(name, []) == render(name, blank)
    assert render(name, []) == {"vtt": "WEBVTT\n", "tsv": "start\tend\ttext\n"}.get(name, "")
    if name == "vtt":
        assert webvtt.from_string(render(name, [])).captions == []


def test_txt_is_one_line_per_segment() -> None:
    """Line ends inside a segment do not make a second line; empty segments make none."""
    given_segments = [segment(0, 1, " One\ntwo."), segment(1, 2, ""), segment(2, 3, " Three.")]
    assert render("txt", given_segments) == "One two.\nThree.\n"


def test_short_segments_stay_whole_with_their_own_times() -> None:
    """A segment that fits is one cue, timed to the millisecond."""
    document = render("srt", [segment(3661.5, 3663.25, " Hello there.")])
    assert document == "1\n01:01:01,500 --> 01:01:03,250\nHello there.\n"


def test_long_segments_are_cut_where_sentences_end() -> None:
    """The first cue ends with the first sentence, and its two lines are even."""
    assert cues([segment(0, 9, LONG)])[0].lines == (
        "The president will turn this imperialistic",
        "war into a crusade for democracy.",
    )


def test_word_times_decide_where_a_cue_begins() -> None:
    """With words, the second cue starts when its first word is spoken; without, in proportion to the text."""
    words = tuple(Word(" " + w, 0.1 * i, 0.1 * i + 0.1, 1.0) for i, w in enumerate(LONG.split()))
    second = cues([segment(0, 9, LONG, words)])[1]
    assert second.start_ms == 100 * LONG.split().index("Lay")
    assert cues([segment(0, 9, LONG)])[1].start_ms > 3500


def test_words_that_do_not_spell_the_text_are_not_trusted() -> None:
    """The text decides: words of something else neither change it nor move it out of its segment."""
    words = (Word(" Something", 50.0, 60.0, 1.0),)
    cut = cues([segment(0, 4, "else entirely", words)])
    assert [(c.text, c.start_ms, c.end_ms) for c in cut] == [("else entirely", 0, 4000)]


def test_few_words_over_a_long_time_are_not_torn_apart() -> None:
    """Two words in a 20 s segment are one cue, shown for no more than 7 s."""
    assert [(c.text, c.end_ms) for c in cues([segment(0, 20, " Thank you.")])] == [("Thank you.", CUE_MAX_MS)]


def test_full_width_text_without_spaces_takes_21_characters_a_line() -> None:
    """Japanese is cut between characters, never before a closing mark or a small kana."""
    lines = [line for cue in cues([segment(0, 30, JAPANESE * 3)]) for line in cue.lines]
    assert max(len(line) for line in lines) <= 21
    assert all(line[0] not in "。、ー" for line in lines)


def test_korean_is_cut_at_its_spaces() -> None:
    """Hangul is full-width too, but a word of it stays whole."""
    korean = "한국어는 단어 사이에 공백을 넣는 언어입니다 그래서 줄을 공백에서 나눕니다"
    lines = [line for cue in cues([segment(0, 5, korean)]) for line in cue.lines]
    assert " ".join(lines) == korean
    assert len(lines) > 1


def test_cues_of_segments_without_length_follow_each_other() -> None:
    """Segments that all claim the same instant are shown one after the other."""
    cut = cues([segment(5, 5, f"word {i}") for i in range(4)])
    assert [c.start_ms for c in cut] == [5000, 5100, 5200, 5300]
    assert cut[-1].end_ms == 5300 + CUE_MIN_MS


def test_markup_is_escaped_in_vtt_and_arrows_are_harmless_in_srt() -> None:
    """WebVTT escapes; SubRip cannot, so that an arrow is written with another character."""
    tricky = [segment(0, 2, "a --> b & <i>c</i>")]
    assert "a --&gt; b &amp; &lt;i&gt;c&lt;/i&gt;" in render("vtt", tricky)
    assert "a → b & <i>c</i>" in render("srt", tricky)


def test_lrc_counts_minutes_beyond_99() -> None:
    """The format has no hours; the minutes grow a third digit."""
    assert render("lrc", [segment(6000, 6001, "Late.")]) == "[100:00.00]Late.\n"


def test_srt_counts_hours_beyond_99() -> None:
    """A recording of more than 99 hours keeps its times."""
    assert "100:00:00,000 --> 100:00:01,000" in render("srt", [segment(360_000, 360_001, "Late.")])


def test_unknown_formats_are_refused() -> None:
    """A name that is no format raises instead of yielding an empty document."""
    with pytest.raises(KeyError):
        render("ass", [])

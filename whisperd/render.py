"""Segments in, a document out: txt, srt, vtt, tsv, lrc.

Decides where subtitle cues are cut and how long each stays on the screen. The rule that keeps it honest:
every character that is not white space comes out once and in order, and the cues of a document never
overlap, whatever the segments' times look like. All arithmetic on cues is in whole milliseconds, so that
rounding cannot break that afterwards. Text decides, times follow: word times are used where the words spell
the segment's text, else time is spread evenly over its characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from whisperd.messages import Segment

LINE_COLUMNS = 42  # the usual limit of broadcast subtitles; a full-width character takes two columns
CUE_LINES = 2
CUE_MAX_MS = 7_000
CUE_MIN_MS = 800  # shorter cannot be read; taken from the silence behind the cue where there is some
CUE_FLOOR_MS = 100  # the least a cue gets when no silence is left; it then pushes the next one
SHORT_COLUMNS = 21  # less text than this is not cut for time; it disappears after CUE_MAX_MS instead
PAUSE_MS = 500  # a silence between words that is as good a place to cut as the end of a sentence

_CUE_COLUMNS = LINE_COLUMNS * CUE_LINES
_SENTENCE_ENDS = tuple(".?!…。？！")
_CLAUSE_ENDS = tuple(",;:、，；：")
_SMALL_KANA = "ぁぃぅぇぉっゃゅょァィゥェォッャュョ"
_NEVER_FIRST = frozenset("、。，．！？；：）」』】〉》〕］｝ー々ゝヽ…" + _SMALL_KANA)  # in a line
_NEVER_LAST = frozenset("（「『【〈《〔［｛")


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle: its lines without white space at the ends, and its times in milliseconds."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]
    text: str  # the lines as one; a space joins them only where one stood in the segment


@dataclass(frozen=True, slots=True)
class _Atom:
    """The smallest piece of text that is kept on one line."""

    text: str
    spaced: bool  # a space stood before it
    columns: int
    start_ms: int
    end_ms: int


def render(name: str, segments: Sequence[Segment], language: str | None = None) -> str:
    """The document of format `name`, one of FORMATS; without segments an empty one that is still valid.

    `language` is noted in formats that have a place for it (vtt). Raises KeyError for an unknown name.
    """
    return _WRITERS[name](segments, language)


def cues(segments: Sequence[Segment]) -> list[Cue]:
    """The subtitles of `segments`: at most 2 lines of 42 columns and 7 s, in order, never overlapping."""
    return _settle([cue for segment in segments for cue in _cut(_atoms(segment))])


# --- text and times of one segment


def _tidy(text: str) -> str:
    """Control characters become spaces (no format has a place for them), runs of white space one space."""
    return " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in text).split())


def _columns(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _pieces(word: str) -> list[str]:
    """Cuts a word where a line may end: beside ideographs and kana, and where it is longer than a line."""
    if word.isascii() and len(word) <= LINE_COLUMNS:
        return [word]
    pieces: list[str] = []
    columns, previous = 0, ""
    for char in word:
        width = _columns(char)
        may_cut = (_unspaced(char) or _unspaced(previous)) and width > 0
        may_cut = may_cut and char not in _NEVER_FIRST and previous not in _NEVER_LAST
        if not pieces or may_cut or columns + width > LINE_COLUMNS:
            pieces.append("")
            columns = 0
        pieces[-1] += char
        columns += width
        previous = char if width else previous
    return pieces


def _unspaced(char: str) -> bool:
    """True for the full-width scripts that put no spaces between words; Korean (Hangul) does."""
    return char != "" and _columns(char) == 2 and not "\uac00" <= char <= "\ud7a3"


def _character_times(segment: Segment, text: str) -> list[tuple[float, float]]:
    """(start, end) in seconds of each character of `text` that is not a space."""
    spans = [(text.replace(" ", ""), segment.start, segment.end)]
    if segment.words:
        words = [(_tidy(w.word).replace(" ", ""), w.start, w.end) for w in segment.words]
        if "".join(spelled for spelled, _, _ in words) == spans[0][0]:
            spans = words
    times = []
    for spelled, start, end in spans:
        step = (end - start) / max(len(spelled), 1)
        times += [(start + i * step, start + (i + 1) * step) for i in range(len(spelled))]
    return times


def _atoms(segment: Segment) -> list[_Atom]:
    text = _tidy(segment.text)
    times = _character_times(segment, text)
    atoms = []
    at = 0
    for word in text.split():
        for index, piece in enumerate(_pieces(word)):
            start, end = times[at][0], times[at + len(piece) - 1][1]
            columns = max(1, sum(map(_columns, piece)))
            atoms.append(_Atom(piece, index == 0 and at > 0, columns, _ms(start), _ms(end)))
            at += len(piece)
    return atoms


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


# --- cutting


def _cut(atoms: Sequence[_Atom]) -> list[Cue]:
    """The cheapest way to cut a segment into cues: few, evenly filled, ending where a sentence does.

    `best[e]` holds the cost of the first e atoms and where their last cue begins. No cue holds more atoms
    than columns, so this takes linear time.
    """
    reach = _line_reach(atoms)
    edges = _edges(atoms)
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(atoms) + 1):
        choices = []
        for begin in range(end - 1, -1, -1):
            columns = edges[end] - edges[begin] - atoms[begin].spaced
            lasts_ms = atoms[end - 1].end_ms - atoms[begin].start_ms
            too_long = lasts_ms > CUE_MAX_MS and columns >= SHORT_COLUMNS
            if end - begin > 1 and (reach[reach[begin]] < end or too_long):
                break
            slack = (_CUE_COLUMNS - columns) / _CUE_COLUMNS
            choices.append((best[begin][0] + 1 + slack**2 + _cut_penalty(atoms, end), begin))
        best.append(min(choices))
    cut: list[Cue] = []
    end = len(atoms)
    while end > 0:
        begin = best[end][1]
        part = atoms[begin:end]
        cut.append(Cue(part[0].start_ms, part[-1].end_ms, _lines(part), _join(part)))
        end = begin
    return cut[::-1]


def _edges(atoms: Sequence[_Atom]) -> list[int]:
    """Columns up to each atom, the spaces between them included."""
    edges = [0]
    for atom in atoms:
        edges.append(edges[-1] + atom.columns + atom.spaced)
    return edges


def _line_reach(atoms: Sequence[_Atom]) -> list[int]:
    """For each atom the end of the longest line that begins with it; one more entry for the end itself."""
    edges = _edges(atoms)
    reach = []
    end = 0
    for begin, atom in enumerate(atoms):
        end = max(end, begin + 1)
        while end < len(atoms) and edges[end + 1] - edges[begin] - atom.spaced <= LINE_COLUMNS:
            end += 1
        reach.append(end)
    return [*reach, len(atoms)]


def _cut_penalty(atoms: Sequence[_Atom], end: int) -> float:
    """How much a cue that ends before atom `end` hurts: a fraction of what one more cue would."""
    last = atoms[end - 1].text.rstrip("\"'”’»)」』")
    if end == len(atoms) or last.endswith(_SENTENCE_ENDS):
        return 0.0
    if atoms[end].start_ms - atoms[end - 1].end_ms >= PAUSE_MS:
        return 0.0
    return 0.3 if last.endswith(_CLAUSE_ENDS) else 0.6


def _lines(atoms: Sequence[_Atom]) -> tuple[str, ...]:
    """One line if it fits, else two that are as even as they can be."""
    edges = _edges(atoms)
    total = edges[-1] - atoms[0].spaced
    if total <= LINE_COLUMNS:
        return (_join(atoms),)
    cuts = []
    for cut in range(1, len(atoms)):
        first = edges[cut] - atoms[0].spaced
        second = total - first - atoms[cut].spaced
        cuts.append((max(first, second) > LINE_COLUMNS, abs(first - second), cut))
    cut = min(cuts)[2]
    return _join(atoms[:cut]), _join(atoms[cut:])


def _join(atoms: Sequence[_Atom]) -> str:
    return "".join(" " + atom.text if atom.spaced else atom.text for atom in atoms).lstrip(" ")


def _settle(raw: Sequence[Cue]) -> list[Cue]:
    """Gives every cue a start at or after the end of the one before it, and a length that can be read."""
    settled: list[Cue] = []
    free_ms = 0
    for index, cue in enumerate(raw):
        start = max(cue.start_ms, free_ms)
        end = max(cue.end_ms, start + CUE_MIN_MS)
        if index + 1 < len(raw):
            end = min(end, max(raw[index + 1].start_ms, start + CUE_FLOOR_MS))
        free_ms = min(end, start + CUE_MAX_MS)
        settled.append(replace(cue, start_ms=start, end_ms=free_ms))
    return settled


# --- formats


def _clock(ms: int, decimal_mark: str) -> str:
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{decimal_mark}{ms % 1000:03}"


def _txt(segments: Sequence[Segment], _language: str | None) -> str:
    return "".join(f"{text}\n" for segment in segments if (text := _tidy(segment.text)))


def _srt(segments: Sequence[Segment], _language: str | None) -> str:
    """SubRip has no escapes: an arrow in the text, which a reader could take for a time line, becomes `→`."""
    blocks = []
    for number, cue in enumerate(cues(segments), 1):
        times = f"{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}"
        text = "\n".join(cue.lines).replace("-->", "→")
        blocks.append(f"{number}\n{times}\n{text}\n")
    return "\n".join(blocks)


def _vtt(segments: Sequence[Segment], language: str | None) -> str:
    """WebVTT. The language stands in a comment: the header has no field for it that the standard knows."""
    blocks = ["WEBVTT\n"]
    if language:
        blocks.append(f"NOTE language: {_tidy(language).replace('-->', '→')}\n")
    for cue in cues(segments):
        times = f"{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}"
        text = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{times}\n{text}\n")
    return "\n".join(blocks)


def _tsv(segments: Sequence[Segment], _language: str | None) -> str:
    """openai/whisper's table: a header row, times in whole milliseconds, one row per segment."""
    rows = ["start\tend\ttext\n"]
    for segment in segments:
        if text := _tidy(segment.text):
            rows.append(f"{_ms(segment.start)}\t{_ms(segment.end)}\t{text}\n")
    return "".join(rows)


def _lrc(segments: Sequence[Segment], _language: str | None) -> str:
    """Lyrics: one line per cue. The format has no hours, so that minutes grow a third digit instead."""
    rows = []
    for cue in cues(segments):
        hundredths = cue.start_ms // 10
        time = f"{hundredths // 6000:02}:{hundredths // 100 % 60:02}.{hundredths % 100:02}"
        space = " " if cue.text.startswith("[") else ""  # else "[01:02]" in the text reads as one more time
        rows.append(f"[{time}]{space}{cue.text}\n")
    return "".join(rows)


_WRITERS: dict[str, Callable[[Sequence[Segment], str | None], str]] = {
    "txt": _txt,
    "srt": _srt,
    "vtt": _vtt,
    "tsv": _tsv,
    "lrc": _lrc,
}
FORMATS = tuple(_WRITERS)

"""The test speech on this machine, and what counts as the right text for a clip.

Texts are compared after Whisper's own English normalisation, so that case, punctuation and the way to write numbers
do not count.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import jiwer
import pytest
from whisper_normalizer.english import EnglishTextNormalizer

SPEECH = Path(__file__).resolve().parents[1].parent / "shared" / "speech"
needs_speech = pytest.mark.skipif(not SPEECH.is_dir(), reason="the folder with test speech is not on this machine")


@dataclass(frozen=True)
class Clip:
    """One line of the manifest."""

    file: str
    set: str
    text: str | None  # "": nobody speaks; None: nobody wrote down what is said
    language: str
    seconds: float  # 0 where it is not known
    expect: str  # of a malformed file: what should come of it

    @property
    def path(self) -> Path:
        return SPEECH / self.file


@functools.cache
def _manifest() -> tuple[Clip, ...]:
    if not SPEECH.is_dir():
        return ()
    lines = (SPEECH / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(
        Clip(row["file"], row["set"], row["text"], row["language"], row.get("seconds", 0.0), row.get("expect", ""))
        for row in map(json.loads, lines)
    )


def clips(*sets: str) -> list[Clip]:
    """The clips of some sets; none where the folder is missing."""
    return [clip for clip in _manifest() if clip.set in sets]


def clip(file: str) -> Clip:
    """One clip by its name in the manifest; where the folder is missing, a name that nobody will use."""
    return next((clip for clip in _manifest() if clip.file == file), Clip(file, "", None, "", 0.0, ""))


@functools.cache
def _normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer()


def normalized(text: str) -> str:
    plain = re.sub(r"(?<=\d),(?= )", "", text)  # a list of numbers is no number with thousands
    return re.sub(r"\bone\b", "1", str(_normalizer()(plain)))  # which the normaliser writes in both ways


def words_wrong(reference: str, text: str) -> int:
    """Words that were changed, left out or put in; where a space is ("one two" is 12 or 1 2) does not count."""
    wanted, got = normalized(reference), normalized(text)
    if wanted.replace(" ", "") == got.replace(" ", ""):
        return 0
    if not wanted or not got:
        return len((wanted or got).split())
    found = jiwer.process_words(wanted, got)
    return found.substitutions + found.insertions + found.deletions


def word_count(text: str) -> int:
    return len(normalized(text).split())


def belongs(text: str, clip: Clip) -> bool:
    """Whether this can only be the text of this clip: at most a third of its words are wrong, as tiny.en may have
    one of three in the shortest clips, while the text of any other clip has nearly all."""
    assert clip.text is not None
    return words_wrong(clip.text, text) * 3 <= max(3, word_count(clip.text))

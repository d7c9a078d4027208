"""Aligned words into sentences: the segments of text that was decoded without timestamp tokens.

A sentence ends at its punctuation if the speaker pauses there too, so that "Mr. Smith" stays in one piece. What is
longer than a subtitle should be is cut again at the best place inside: a sentence's end, a clause's, a long pause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from whisperd.inference.timestamps import AlignedWord, Sentence, Stretch, longest_word_s, settle_words

_SENTENCE_ENDS = ".?!…。！？"
_CLAUSE_ENDS = ",;:，；：、"
_CLOSING = "\"'”’)]»」』"
_PAUSE_S = 0.2  # behind the end of a sentence; behind an abbreviation it is next to none
_LONGEST_S = 10.0  # of a segment that can be cut
_PART_MIN_S = 1.0
# What any punctuation is worth when a long sentence is cut, in seconds of pause; a full stop may be an abbreviation's.
_MARK_WORTH_S = 0.4


def split_at_sentences(tokens: Sequence[int], words: Sequence[AlignedWord], window_s: float) -> list[Sentence]:
    """Each sentence with the tokens of its text and its words, whose times are settled; its stretch ends where the
    aligner says, also behind a word that holds a pause. All tokens are in one of them.

    `words` are the aligner's, in order. Empty where they are not made of exactly these tokens: it loses its way in
    broken characters, and no text may be lost with it.
    """
    if sum(word.tokens for word in words) != len(tokens):
        return []
    sentences: list[Sentence] = []
    position, floor_s = 0, 0.0
    for group in _grouped(_folded(words)):
        count = sum(word.tokens for word in group)
        settled = settle_words(group, window_s, floor_s)
        floor_s = settled[-1].end
        end = round(min(max(group[-1].end, floor_s), window_s), 3)
        sentences.append((Stretch(settled[0].start, end, tuple(tokens[position : position + count])), settled))
        position += count
    return sentences


def _folded(words: Sequence[AlignedWord]) -> list[AlignedWord]:
    """Without words of no letters, whose punctuation went to a neighbour; their tokens go to the word before."""
    folded: list[AlignedWord] = []
    ahead = 0
    for word in words:
        if word.word.strip():
            folded.append(replace(word, tokens=word.tokens + ahead))
            ahead = 0
        elif folded:
            folded[-1] = replace(folded[-1], tokens=folded[-1].tokens + word.tokens)
        else:
            ahead += word.tokens
    return folded


def _grouped(words: Sequence[AlignedWord]) -> list[list[AlignedWord]]:
    pauses = _pauses_s(words)
    groups: list[list[AlignedWord]] = []
    begin = 0
    for at in range(1, len(words) + 1):
        if at == len(words) or (_ends(words[at - 1], _SENTENCE_ENDS) and pauses[at] >= _PAUSE_S):
            groups += _cut_long(words[begin:at], pauses[begin:at])
            begin = at
    return groups


def _pauses_s(words: Sequence[AlignedWord]) -> list[float]:
    """The pause before each word. The aligner leaves none between words but where there is punctuation: others are in
    the word before, or at the beginning of the word itself."""
    longest_s = longest_word_s(words)
    excess = [max(0.0, word.end - word.start - longest_s) for word in words]
    gaps = [0.0, *(word.start - before.end for before, word in pairwise(words))]
    return [gap + before + own / 2 for gap, before, own in zip(gaps, [0.0, *excess], excess, strict=False)]


def _cut_long(words: Sequence[AlignedWord], pauses: Sequence[float]) -> list[list[AlignedWord]]:
    """The sentence in pieces of at most _LONGEST_S, where it can be cut at all."""
    parts: list[list[AlignedWord]] = []
    todo = [(0, len(words))]
    while todo:
        begin, stop = todo.pop()
        first, last = words[begin].start, words[stop - 1].end
        places = [
            at
            for at in range(begin + 1, stop)
            if words[at - 1].end - first >= _PART_MIN_S and last - words[at].start >= _PART_MIN_S
        ]
        if last - first <= _LONGEST_S or not places:
            parts.append(list(words[begin:stop]))
            continue
        middle = (begin + stop) / 2
        best = max(places, key=lambda at: (pauses[at] + _worth_s(words[at - 1]), -abs(at - middle)))
        todo += [(best, stop), (begin, best)]
    return parts


def _worth_s(before: AlignedWord) -> float:
    """How good a place behind this word is to cut, but for the pause there."""
    return _MARK_WORTH_S * _ends(before, _SENTENCE_ENDS + _CLAUSE_ENDS)


def _ends(word: AlignedWord, marks: str) -> bool:
    return word.word.rstrip().rstrip(_CLOSING).endswith(tuple(marks))

"""Does a text end by saying again what it has just said? The sign of a decoder that missed the end.

Pure text. True repetitions in speech look the same; the caller only spends a second look on them.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+", re.UNICODE)


def tail_repeats(text: str) -> bool:
    """Whether the last words (or, in scripts without spaces, characters) repeat those right before them.

    A phrase counts when at least two units long and said again to the end of the text, or when it breaks off
    on the way after at least three units.
    """
    units = _WORD.findall(text.lower())
    if len(units) <= 2 and len(text) > 12:  # a script without spaces: every sign is a unit
        units = [sign for sign in text if sign.isalnum()]
    count = len(units)
    # A suffix that starts `size` units behind its own copy: units[i] == units[i + size] to the end.
    for size in range(2, count):
        length = 0
        while length < count - size and units[count - 1 - length] == units[count - 1 - length - size]:
            length += 1
        if length >= min(size, 3):
            return True
    return False

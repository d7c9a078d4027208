"""Content that is known as deadly, by its hash, so that it does not cost two workers each time that it comes.

Bounded in number and in time: an out-of-memory killer may have had other reasons than the input.
"""

from __future__ import annotations

from collections import OrderedDict

from whisperd.errors import WhisperdError

POISON_MAX = 1024
POISON_S = 3600.0


class PoisonList:
    """What was condemned lately."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[WhisperdError, float]] = OrderedDict()

    def condemn(self, digest: str, error: WhisperdError, now: float) -> None:
        """Remembers this content and what to say of it; of too many the oldest is forgotten."""
        self._known[digest] = error, now + POISON_S
        if len(self._known) > POISON_MAX:
            self._known.popitem(last=False)

    def verdict(self, digest: str, now: float) -> WhisperdError | None:
        """What was said of this content, if it is deadly."""
        error, until = self._known.get(digest, (None, 0.0))
        return error if until > now else None

"""How much silence a model needs behind the speech to notice the end of it, when it is encoded with a short context.

With too little of it a model repeats itself or runs on; the guard (`inference.attempts`) finds such rows, but each of
them costs a decoding with the full context. With too much the encoder works on nothing. What is best was measured
for some models (`bench/tails.py`); the others get what was enough for all of those, with room to spare.

Windows that are decoded without timestamp tokens (`messages.LONG_S`) get by with half of it; a third still was enough.
"""

from __future__ import annotations

# Word error rates and the encoder's and decoder's seconds are in docs/PERFORMANCE.md.
_MEASURED_S = {"tiny.en": 3.0, "base": 4.0}
CAUTIOUS_S = 6.0


def tail_of(model: str, setting_s: float) -> float:
    """Seconds of silence for this model; `setting_s`, if it is not 0, is the operator's word for all models."""
    return setting_s or _MEASURED_S.get(model, CAUTIOUS_S)

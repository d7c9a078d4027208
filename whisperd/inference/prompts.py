"""What of the client's prompt the model gets to see: `hotwords` and `initial_prompt` share one bounded place.

Whisper has room for 448 tokens, prompt and text together, and learned with prompts of at most half of that. Each of
the two is sure of half of the prompt's place; what one leaves of it the other may use. Hotwords keep their
beginning, where the client put the most important ones, and the initial prompt its end, which is what the speech
follows. What is cut is told, as an option that has no effect must not look as if it had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens to stand before the text, and for the client what was cut."""

    tokens: tuple[int, ...]
    warnings: tuple[str, ...]


def share_prompt(hotwords: Sequence[int], initial: Sequence[int], budget: int) -> Prompt:
    """Both within `budget` tokens, the hotwords first."""
    half = budget // 2
    for_hotwords = min(len(hotwords), max(half, budget - len(initial)))
    for_initial = min(len(initial), budget - for_hotwords)
    warnings = []
    if for_hotwords < len(hotwords):
        warnings.append(_warning("hotwords", len(hotwords), for_hotwords, "first", budget))
    if for_initial < len(initial):
        warnings.append(_warning("initial_prompt", len(initial), for_initial, "last", budget))
    kept = initial[len(initial) - for_initial :]
    return Prompt((*hotwords[:for_hotwords], *kept), tuple(warnings))


def _warning(option: str, tokens: int, kept: int, which: str, budget: int) -> str:
    return (
        f"{option} is too long: of its {tokens} tokens the model was given the {which} {kept}"
        f" (initial_prompt and hotwords have {budget} together)"
    )

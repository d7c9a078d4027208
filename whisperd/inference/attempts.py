"""Is this text to be trusted? What one decoding of one row gave, and the questions that are asked of it.

Three kinds of doubt are kept apart. The guard asks whether a short context misled the model; a row that fails is
decoded again with the full context. Without a `beam_size` from the client rows are decoded greedily first, and those
whose text is unsure once more with a beam. The fallback is openai/whisper's: by the client's thresholds a text is too
repetitive or too unlikely, and the next temperature is tried. Pure figures; it knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whisperd.inference.repeats import tail_repeats
from whisperd.messages import FRAMES_MAX, DecodeOptions

# The guard's own limits, for rows with a short context; the client's thresholds decide the fallback instead.
_GUARD_COMPRESSION = 2.4
_GUARD_LOGPROB = -1.0
# A beam finds little in a text that the model is sure of, and a short clip takes half as long again when it is looked
# at twice. Over 169 clips base had 4.7 % word errors greedily, 4.6 % with a beam for the twentieth of rows below this,
# 4.4 % for the fifth below -0.4 and 4.5 % for all; tiny.en had 4.9 % in each case.
_UNSURE_LOGPROB = -0.5


# Tokens for each second of sure speech; usual are 3.2 (cost.py). A text of fewer may have stopped early.
_SPARSE_TOKENS = 2.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one decoding of one row gave."""

    tokens: tuple[int, ...]
    text: str
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float
    capped: bool


def token_cap(duration_s: float, frames: int, room: int) -> int:
    """Tokens that a window may have. Fast speech has five a second; a short context that runs past eight does not
    stop by itself. With the full context only `room` counts, the model's own limit as in openai/whisper."""
    if frames >= FRAMES_MAX:
        return room
    return min(room, max(32, int(8 * duration_s) + 24))


def generation_limit(cap: int, prompt_tokens: int) -> int:
    """CTranslate2's `max_length` for exactly `cap` tokens of text: it writes half of what it is given, or what the
    prompt leaves of it if that is fewer (the prompt's last token counts as the text's first)."""
    return max(2 * cap, prompt_tokens + cap - 1)


def guard(attempt: Attempt, options: DecodeOptions) -> str | None:
    """Why a row decoded with a short context is not to be trusted, or None."""
    if attempt.capped:
        return "token_cap"
    if attempt.compression_ratio > _GUARD_COMPRESSION:
        return "compression_ratio"
    if attempt.avg_logprob < _GUARD_LOGPROB:
        return "avg_logprob"
    if not attempt.text:
        return "empty"
    if tail_repeats(attempt.text):
        return "repeat"
    if options.log_prob_threshold is None and is_silence(attempt, options):
        return "no_speech"  # that figure means little with a short context
    return None


def is_unsure(attempt: Attempt) -> bool:
    """Whether a greedy text is worth a beam."""
    return attempt.avg_logprob < _UNSURE_LOGPROB


def is_sparse(attempt: Attempt, speech_s: float) -> bool:
    """Whether a text is so short for this much speech that it is worth asking where it stopped."""
    return len(attempt.tokens) < _SPARSE_TOKENS * speech_s


def is_silence(attempt: Attempt, options: DecodeOptions) -> bool:
    if options.no_speech_threshold is None or attempt.no_speech_prob <= options.no_speech_threshold:
        return False
    return options.log_prob_threshold is None or attempt.avg_logprob <= options.log_prob_threshold


def is_doubtful(attempt: Attempt, options: DecodeOptions) -> bool:
    """For windows that may hold no speech: whether the figures let the text be trusted all the same."""
    limit = options.no_speech_threshold
    return needs_fallback(attempt, options) or (limit is not None and attempt.no_speech_prob > limit)


def needs_fallback(attempt: Attempt, options: DecodeOptions) -> bool:
    unlikely = options.log_prob_threshold is not None and attempt.avg_logprob < options.log_prob_threshold
    if unlikely and is_silence(attempt, options):
        return False
    limit = options.compression_ratio_threshold
    return unlikely or (limit is not None and attempt.compression_ratio > limit)


def likeliest(tried: Sequence[Attempt], options: DecodeOptions) -> Attempt:
    """The one to keep where none is to be trusted: one that does not repeat itself, else one that came to an end.
    Likelihood only decides between equals, because a model that goes round in circles is ever surer of it."""
    limit = options.compression_ratio_threshold

    def merit(attempt: Attempt) -> tuple[bool, bool, float]:
        return limit is None or attempt.compression_ratio <= limit, not attempt.capped, attempt.avg_logprob

    return max(tried, key=merit)

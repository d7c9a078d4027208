"""Which text is kept when none is to be trusted."""

from __future__ import annotations

from whisperd.inference.attempts import Attempt, likeliest
from whisperd.messages import DecodeOptions

OPTIONS = DecodeOptions(compression_ratio_threshold=2.4)


def attempt(avg_logprob: float, compression_ratio: float, *, capped: bool = False) -> Attempt:
    return Attempt((1, 2, 3), "any", avg_logprob, 0.1, compression_ratio, 0.0, capped)


def test_one_that_does_not_repeat_itself_is_kept_however_unlikely() -> None:
    calm = attempt(-1.4, 1.9)
    assert likeliest([attempt(-0.1, 7.0), calm, attempt(-1.5, 2.0)], OPTIONS) is calm


def test_of_those_that_repeat_themselves_one_that_came_to_an_end_is_kept() -> None:
    """Somebody may really have said it twelve times, but nobody goes on until the model's last token."""
    ended = attempt(-0.3, 4.0)
    assert likeliest([attempt(-0.1, 32.0, capped=True), ended, attempt(-0.4, 3.9)], OPTIONS) is ended


def test_the_likeliest_of_equals_is_kept() -> None:
    """Without a limit none repeats itself, but an end counts all the same."""
    first, second = attempt(-0.2, 9.0, capped=True), attempt(-0.3, 2.5, capped=True)
    assert likeliest([second, first], OPTIONS) is first
    ended = attempt(-0.25, 9.0)
    assert likeliest([first, ended], DecodeOptions(compression_ratio_threshold=None)) is ended

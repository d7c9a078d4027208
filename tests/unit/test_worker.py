"""What is decided of a lost worker."""

from __future__ import annotations

from whisperd.channel import OUT_OF_DESCRIPTORS
from whisperd.worker import NotSent, WorkerLost, backoff_s, loss


def test_a_worker_that_keeps_dying_is_started_ever_more_rarely_but_for_ever() -> None:
    """Twice the time for each loss, up to a minute, also after thousands."""
    times = [backoff_s(losses) for losses in range(3000)]
    assert times[:4] == [0.5, 1.0, 2.0, 4.0]
    assert times == sorted(times)
    assert set(times[7:]) == {60.0}


def test_a_channel_that_ended_for_want_of_descriptors_is_no_death() -> None:
    """It is our shortage; whatever else ended it may be the input's doing."""
    assert type(loss(OUT_OF_DESCRIPTORS)) is NotSent
    assert type(loss("it closed the channel")) is WorkerLost

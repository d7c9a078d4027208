"""What a batch is predicted to cost, and how the rate of an engine is learned."""

from __future__ import annotations

import pytest
from house import make_job
from hypothesis import given
from hypothesis import strategies as st

from whisperd.cost import CPU, CUDA, CostModel, is_light, share_s, steps_of
from whisperd.jobs import Window
from whisperd.messages import FRAMES_MAX, DecodeOptions


def windows(number: int, length_s: float = 4.0, frames: int = 1000, beam: int | None = None) -> list[Window]:
    """So many windows of one job."""
    return make_job("a", (length_s,) * number, frames=frames, options=DecodeOptions(beam_size=beam)).windows


@given(st.integers(0, FRAMES_MAX), st.integers(1, FRAMES_MAX))
def test_a_longer_context_costs_more_than_in_proportion(frames: int, more: int) -> None:
    """Attention looks at everything from everywhere."""
    longer = min(FRAMES_MAX, frames + more)
    if frames and longer > frames:
        assert CPU.encode_s(longer) / longer >= CPU.encode_s(frames) / frames - 1e-12
        assert CPU.encode_s(longer) > CPU.encode_s(frames)


def test_the_shape_meets_what_was_measured() -> None:
    """Milliseconds of tiny.en: 8 per second of context up to 20 s, 16 at 30 s; decoding gains by company."""
    assert CPU.encode_s(1000) == pytest.approx(0.085, rel=0.1)
    assert CPU.encode_s(3000) == pytest.approx(30 * 0.0165, rel=0.1)
    one, four, eight = (CPU.decode_s([20] * rows, 1) / 20 for rows in (1, 4, 8))
    assert one == pytest.approx(0.0050, rel=0.1)
    assert four < 1.5 * one
    assert eight < 2 * one


@given(st.lists(st.floats(0.5, 30.0), min_size=1, max_size=16), st.sampled_from([None, 1, 5]))
def test_a_batch_costs_more_than_each_of_its_rows_and_less_than_all_alone(lengths: list[float], beam: int) -> None:
    """That is why there are batches."""
    rows = make_job("a", tuple(lengths), frames=FRAMES_MAX, options=DecodeOptions(beam_size=beam)).windows
    for shape in (CPU, CUDA):
        alone = [shape.batch_s([row]) for row in rows]
        assert max(alone) - 1e-9 <= shape.batch_s(rows) <= sum(alone) + 1e-9


def test_the_longest_context_counts_for_all_rows() -> None:
    """One call has one context."""
    short, long = windows(1), windows(1, frames=FRAMES_MAX)
    assert CPU.batch_s([*short, *long]) > CPU.batch_s(short) + 1.5 * CPU.encode_s(FRAMES_MAX) - CPU.encode_s(1000)


def test_a_share_is_what_a_row_costs_in_good_company() -> None:
    """Eight shares are a batch of eight."""
    eight = windows(8)
    assert sum(map(share_s, eight)) == pytest.approx(CPU.batch_s(eight))


def test_looking_for_the_language_takes_one_step() -> None:
    """There is no text to decode."""
    assert steps_of(make_job("a", (30.0,), task="detect").windows[0]) == 1


def test_short_jobs_are_light_and_long_ones_are_not() -> None:
    """By all of their windows, not by the one that is looked at."""
    assert is_light(make_job("clip", (3.0,)))
    assert is_light(make_job("half a minute", (15.0, 15.0), frames=2000))
    assert not is_light(make_job("a minute", (15.0,) * 4, frames=2000))
    assert not is_light(make_job("many", (1.0,) * 9, frames=400))
    begun = make_job("the first seconds of long audio")
    begun.more_to_come = True
    assert not is_light(begun)


def learned(*ratios: float) -> CostModel:
    """A model that saw batches take so many times what the shape says."""
    cost, batch = CostModel(), windows(2)
    for ratio in ratios:
        cost.learn(batch, ratio * CPU.batch_s(batch))
    return cost


def test_nothing_is_known_of_a_cold_engine() -> None:
    """The first batch is slow and one alone could be anything; until then the prior holds."""
    assert not learned(9.0, 1.0).measured
    assert CostModel(prior=20.0).rate == 20.0
    assert learned(9.0, 2.0, 2.0).measured


@pytest.mark.parametrize("wild", [0.0, 1000.0])
def test_one_wild_batch_does_not_spoil_the_rate(wild: float) -> None:
    """A stopped machine, a swapped-out worker."""
    cost = learned(*[2.0] * 10, wild, *[2.0] * 10)
    assert cost.rate == cost.best_rate == pytest.approx(2.0)
    assert cost.seconds(windows(2)) == pytest.approx(2.0 * CPU.batch_s(windows(2)))


def test_a_change_that_lasts_is_learned_within_some_batches() -> None:
    """Somebody else took half of the cores."""
    assert learned(*[1.0] * 100, *[2.0] * 16).rate == pytest.approx(2.0)


def test_the_better_batches_are_known_apart() -> None:
    """What is refused on a forecast is refused on the hopeful one."""
    cost = learned(*[1.0, 2.0, 3.0, 4.0] * 5)
    assert cost.best_rate <= 2.0 <= cost.rate


def test_a_batch_of_nothing_teaches_nothing() -> None:
    """And raises nothing."""
    cost = CostModel()
    cost.learn([], 1.0)
    assert cost.rate == 1.0

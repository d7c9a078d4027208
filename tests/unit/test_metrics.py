"""Histograms against numpy, the daemon's counts and windows, and the figures of real processes."""

from __future__ import annotations

import subprocess
import sys

import numpy
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisperd.histogram import BUCKETS_MAX, HIGHEST, LOWEST, RELATIVE_ERROR, Histogram
from whisperd.metrics import LABELS_MAX, RECENT_S, Counters, Labelled, Metrics
from whisperd.process_stats import ProcessStats, rss_bytes

values = st.floats(min_value=0, max_value=HIGHEST, allow_nan=False)
value_lists = st.lists(values, min_size=1, max_size=200)
quantiles = st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0]) | st.floats(0, 1)


def histogram_of(recorded: list[float]) -> Histogram:
    histogram = Histogram()
    for value in recorded:
        histogram.record(value)
    return histogram


# Histograms


@given(value_lists, quantiles)
def test_a_quantile_is_within_the_stated_error_of_numpys(recorded: list[float], q: float) -> None:
    """For any values in range and any q; numpy's "lower" is the same rank. Rounding is let through."""
    exact = float(numpy.quantile(recorded, q, method="lower"))
    estimate = histogram_of(recorded).quantile(q)
    assert estimate is not None
    assert abs(estimate - exact) <= max(exact * RELATIVE_ERROR * (1 + 1e-9), LOWEST)


def test_percentiles_of_a_plausible_day_are_within_the_stated_error() -> None:
    """100,000 latencies with a long tail; here numpy interpolates, as an operator's own query would."""
    latencies = numpy.random.default_rng(7).lognormal(mean=5.5, sigma=1.2, size=100_000)
    histogram = histogram_of(latencies.tolist())
    for q in (0.5, 0.95, 0.99, 0.999):
        exact = float(numpy.quantile(latencies, q))
        assert histogram.quantile(q) == pytest.approx(exact, rel=RELATIVE_ERROR)


@given(value_lists, value_lists, quantiles)
def test_merged_histograms_equal_the_histogram_of_both(
    left: list[float], right: list[float], q: float
) -> None:
    """Merging loses nothing: minutes add up to hours."""
    merged = histogram_of(left)
    merged.merge(histogram_of(right))
    both = histogram_of(left + right)
    assert merged.quantile(q) == both.quantile(q)
    assert merged.to_dict() == {**both.to_dict(), "sum": pytest.approx(both.total)}


@given(st.lists(values, max_size=50), quantiles)
def test_a_histogram_survives_its_stored_form(recorded: list[float], q: float) -> None:
    """Through JSON bytes and back, also when it is empty."""
    histogram = histogram_of(recorded)
    restored = Histogram.from_dict(orjson.loads(orjson.dumps(histogram.to_dict())))
    assert restored.to_dict() == histogram.to_dict()
    assert restored.quantile(q) == histogram.quantile(q)


def test_buckets_of_another_error_are_refused() -> None:
    """They would be added up as if they meant the same."""
    stored = {**histogram_of([1.0]).to_dict(), "error": 0.01}
    with pytest.raises(ValueError, match=r"0\.01"):
        Histogram.from_dict(stored)


def test_the_number_of_buckets_is_bounded() -> None:
    """However far apart the values are."""
    histogram = Histogram()
    for value in numpy.geomspace(1e-9, 1e30, 20_000).tolist():
        histogram.record(value)
    assert histogram.buckets_used <= BUCKETS_MAX
    assert histogram.quantile(0.0) == pytest.approx(1e-9)
    assert histogram.quantile(1.0) == pytest.approx(HIGHEST, rel=RELATIVE_ERROR)


def test_an_empty_histogram_has_no_quantile() -> None:
    """None, not nought: nothing was measured."""
    assert Histogram().quantile(0.95) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_refused(value: float) -> None:
    """It would spoil every sum after it."""
    with pytest.raises(ValueError, match="cannot be recorded"):
        Histogram().record(value)


def test_a_negative_value_counts_as_nought() -> None:
    """A clock that went back must not take anything away."""
    histogram = histogram_of([-5.0, 0.0])
    assert (histogram.count, histogram.total, histogram.quantile(1.0)) == (2, 0.0, 0.0)


@pytest.mark.parametrize("q", [-0.1, 1.1, float("nan")])
def test_a_quantile_outside_of_nought_to_one_is_refused(q: float) -> None:
    """95 for 0.95 is a mistake to be told of."""
    with pytest.raises(ValueError, match="not between 0 and 1"):
        histogram_of([1.0]).quantile(q)


# The daemon's figures


def test_a_snapshot_has_the_contracts_fields() -> None:
    """The names that docs and clients rely on, before anything has happened; gauges go in as given."""
    shown = Metrics(now=0.0).snapshot(1.0, {"queue_depth": 3, "process": {"rss_bytes": 1}})
    assert set(shown["requests"]) >= {"accepted", "succeeded", "failed", "cancelled"}
    assert set(shown["lines"]) == {"received", "parse_errors", "invalid"}
    assert shown["latency_ms"] == {"p50": None, "p95": None, "p99": None}
    assert (shown["batch_fill"], shown["rtf"], shown["audio_s"]) == (None, None, 0.0)
    assert (shown["queue_depth"], shown["process"]) == (3, {"rss_bytes": 1})
    orjson.dumps(shown)


def test_what_is_counted_is_shown() -> None:
    """One of each, under its own name."""
    metrics = Metrics(now=0.0)
    metrics.counters = Counters(
        accepted=4,
        lines_received=9,
        parse_errors=2,
        invalid=1,
        notifications_dropped=5,
        notifications_ignored=6,
    )
    metrics.succeeded(10.0, latency_ms=200.0, audio_s=4.0)
    metrics.succeeded(11.0, latency_ms=400.0, audio_s=6.0)
    metrics.failed(12.0, "audio_unreadable")
    metrics.cancelled(13.0)
    metrics.batch_done(13.0, rows=3, busy_s=0.5)
    metrics.batch_done(14.0, rows=1, busy_s=0.5)
    metrics.rows_retried.add("repeated_tail", 2)
    shown = metrics.snapshot(20.0, {})
    assert shown["requests"] == {
        "accepted": 4,
        "succeeded": 2,
        "failed": 1,
        "cancelled": 1,
        "failed_by_kind": {"audio_unreadable": 1},
    }
    assert shown["lines"] == {"received": 9, "parse_errors": 2, "invalid": 1}
    assert shown["notifications"] == {"dropped": 5, "ignored": 6}
    assert (shown["audio_s"], shown["batch_fill"], shown["rtf"]) == (10.0, 2.0, 0.1)
    assert shown["latency_ms"]["p50"] == pytest.approx(200.0, rel=RELATIVE_ERROR)
    assert shown["recent"]["error_rate"] == pytest.approx(1 / 3)
    assert shown["rows_retried"] == {"repeated_tail": 2}
    assert shown["uptime_s"] == 20.0


def test_recent_figures_forget_and_overall_ones_do_not() -> None:
    """After the window has passed, only the counts since start remember."""
    metrics = Metrics(now=0.0)
    metrics.succeeded(1.0, latency_ms=100.0, audio_s=5.0)
    metrics.batch_done(1.0, rows=8, busy_s=1.0)
    later = 1.0 + RECENT_S
    quiet = metrics.snapshot(later, {})
    assert quiet["latency_ms"]["p50"] is None
    assert (quiet["batch_fill"], quiet["rtf"], quiet["recent"]["succeeded"]) == (None, None, 0)
    metrics.succeeded(later, latency_ms=900.0, audio_s=5.0)
    shown = metrics.snapshot(later, {})
    assert shown["latency_ms"]["p50"] == pytest.approx(900.0, rel=RELATIVE_ERROR)
    assert shown["overall"]["latency_ms"]["p50"] == pytest.approx(100.0, rel=RELATIVE_ERROR)
    assert (shown["overall"]["batch_fill"], shown["requests"]["succeeded"]) == (8.0, 2)


@given(st.lists(st.floats(0, 3600), min_size=1, max_size=60))
def test_the_window_holds_between_four_and_five_minutes(gaps_s: list[float]) -> None:
    """Whatever the rhythm: nothing older than the window counts, everything of four minutes does."""
    metrics, now, ends = Metrics(now=0.0), 0.0, []
    for gap_s in gaps_s:
        now += gap_s
        ends.append(now)
        metrics.succeeded(now, latency_ms=1.0, audio_s=1.0)
    recent = metrics.snapshot(now, {})["recent"]["succeeded"]
    ages = [now - end for end in ends]
    assert sum(age < RECENT_S - 60 for age in ages) <= recent <= sum(age < RECENT_S for age in ages)


def test_slots_of_the_past_are_not_kept() -> None:
    """A daemon that runs for a year holds five of them."""
    metrics = Metrics(now=0.0)
    for minute in range(1000):
        metrics.cancelled(minute * 60.0)
    assert len(metrics._slots) == 5


def test_labels_are_bounded() -> None:
    """A worker that invents reasons fills one label named other, not the memory."""
    labelled = Labelled()
    for number in range(10 * LABELS_MAX):
        labelled.add(f"reason {number}")
    counts = labelled.to_dict()
    assert len(counts) == LABELS_MAX + 1
    assert sum(counts.values()) == 10 * LABELS_MAX
    assert counts["other"] == 9 * LABELS_MAX


def test_the_supervisors_metrics_need_no_numpy() -> None:
    """Counting is plain Python."""
    code = "import sys, whisperd.metrics, whisperd.process_stats; print('numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


# Processes


def test_a_child_is_counted_with_its_memory_while_it_lives() -> None:
    """A real child that waits for its input to close."""
    stats = ProcessStats()
    before = stats.read()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        during = stats.read()
        assert rss_bytes(child.pid) is not None
        child.communicate(b"\n")
    assert during["children"] == before["children"] + 1
    assert during["children_rss_bytes"] > before["children_rss_bytes"]
    assert stats.read()["children"] == before["children"]
    assert rss_bytes(child.pid) is None


def test_processor_time_of_this_process_and_its_ended_children_is_seen() -> None:
    """Work done between two reads shows in the second, also if who did it is gone."""
    stats = ProcessStats()
    subprocess.run([sys.executable, "-c", "sum(range(10_000_000))"], check=True)
    figures = stats.read()
    assert figures["cpu_percent"] > 0
    assert figures["rss_bytes"] > 1_000_000
    assert figures["fds"] > 2

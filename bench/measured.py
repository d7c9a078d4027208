"""One side's figures for one stretch of work, and how repetitions become one figure.

Ratios are taken within a repetition, where both sides met the same machine in the same minutes, and their median is
reported with the lowest and the highest. A median of times would mix minutes that have nothing to do with each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import process_tree
from sides import Answer, Side
from speech_set import Clip, Errors, percentile, word_errors

Figures = dict[str, Any]


@dataclass
class Stretch:
    """What came of one stretch of work: the answers in the clips' order, and the seconds of all."""

    clips: Sequence[Clip]
    answers: Sequence[Answer]
    seconds: float
    extra: Figures = field(default_factory=dict)


def measure(side: Side, work: Callable[[], Stretch]) -> Figures:
    """Does the work and takes down what it cost: the figures of one repetition."""
    counters = side.counters()
    with process_tree.TreeWatch(side.pid(), side.names) as watch:
        cpu_s = process_tree.cpu_s(side.pid())
        stretch = work()
        cpu_s = process_tree.cpu_s(side.pid()) - cpu_s
        after = side.counters()
    figures = speech_figures(stretch)
    figures["cpu_s_per_audio_hour"] = cpu_s / figures["audio_s"] * 3600 if figures["audio_s"] else None
    figures["peak_rss_bytes"] = watch.peak_bytes
    figures["together_rss_bytes"] = watch.together_bytes
    figures |= _batching(counters, after) | stretch.extra
    return figures


def speech_figures(stretch: Stretch) -> Figures:
    """Speed, latencies and errors of what was answered. What failed counts as an error, not as audio done."""
    good = [(clip, answer) for clip, answer in zip(stretch.clips, stretch.answers, strict=True) if not answer.error]
    audio_s = sum(clip.seconds for clip, _ in good)
    latencies = [answer.seconds for _, answer in good]
    by_clip = {}
    for clip, answer in good:
        errors = word_errors(clip.text or "", answer.text)
        by_clip[clip.file] = [errors.length, errors.substituted, errors.deleted, errors.inserted]
    figures: Figures = {
        "seconds": stretch.seconds,
        "audio_s": audio_s,
        "clips": len(good),
        "x_realtime": audio_s / stretch.seconds,
        "failed": [answer.error for answer in stretch.answers if answer.error],
        "by_clip": by_clip,
        "texts": {clip.file: answer.text for clip, answer in good},
    }
    for name, share in (("p50_s", 0.5), ("p95_s", 0.95), ("p99_s", 0.99)):
        figures[name] = percentile(latencies, share) if latencies else None
    return figures | wer_figures(by_clip)


def wer_figures(by_clip: dict[str, list[int]], only: set[str] | None = None) -> Figures:
    """Word error rate of all words together, with what it is made of."""
    total = Errors()
    for file, counts in by_clip.items():
        if only is None or file in only:
            total += Errors(*counts)
    return {
        "wer_percent": total.percent if total.length else None,
        "words": total.length,
        "substituted": total.substituted,
        "deleted": total.deleted,
        "inserted": total.inserted,
    }


def _batching(before: Figures, after: Figures) -> Figures:
    if not after:
        return {}
    batches, rows = (after[name] - before[name] for name in ("batches", "rows"))
    retried = {reason: count - before["retried"].get(reason, 0) for reason, count in after["retried"].items()}
    retried = {reason: count for reason, count in retried.items() if count}
    return {
        "batch_fill": rows / batches if batches else None,
        "rows": rows,
        "rows_retried": retried,
        "rows_retried_share": sum(retried.values()) / rows if rows else None,
    }


def median(repeats: Sequence[Figures]) -> Figures:
    """One row for a side: medians of its figures, the most memory, the sums of what was decoded again."""
    merged: Figures = {"repeats": len(repeats)}
    for name in dict.fromkeys(name for figures in repeats for name in figures):
        values = [figures[name] for figures in repeats if figures.get(name) is not None]
        if values and all(isinstance(value, int | float) for value in values):
            merged[name] = statistics.median(values)
    merged["peak_rss_bytes"] = highest([figures.get("peak_rss_bytes", {}) for figures in repeats])
    retried: dict[str, int] = {}
    for figures in repeats:
        for reason, count in figures.get("rows_retried", {}).items():
            retried[reason] = retried.get(reason, 0) + count
    merged["rows_retried"] = retried
    merged["failed"] = sum(len(figures.get("failed", ())) for figures in repeats)
    return merged


def highest(peaks: Sequence[dict[str, int]]) -> dict[str, int]:
    """The largest of each name."""
    merged: dict[str, int] = {}
    for peak in peaks:
        for name, value in peak.items():
            merged[name] = max(value, merged.get(name, 0))
    return merged


def spread(ratios: Sequence[float]) -> Figures | None:
    """Median, lowest and highest of ratios; None without any."""
    if not ratios:
        return None
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios), "of": len(ratios)}

"""Results of windows into the one result of a job: absolute times, running ids, one text.

The invariant: the segments' texts joined are the result's text (but for space at its ends), in the order of the
audio, whatever order the windows came back in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from whisperd.jobs import Job, Window
from whisperd.messages import SAMPLE_RATE, Segment, WindowResult, Word

# Written without spaces between words, so windows are joined without one too.
_NO_SPACES = frozenset({"zh", "ja", "yue", "th", "lo", "my", "km", "bo"})


def place_segments(window: Window, result: WindowResult, first_id: int, before: str) -> list[Segment]:
    """The window's segments in the client's time, numbered from `first_id`; `before` is the text they follow."""
    offset_s = window.start / SAMPLE_RATE
    placed = []
    for number, segment in enumerate(result.segments):
        text = segment.text
        if before and not before[-1].isspace() and not text[:1].isspace() and result.language not in _NO_SPACES:
            text = " " + text
        words = None
        if segment.words is not None:
            words = tuple(
                Word(w.word, _absolute(offset_s, w.start), _absolute(offset_s, w.end), round(w.probability, 4))
                for w in segment.words
            )
        placed.append(
            replace(
                segment,
                id=first_id + number,
                start=_absolute(offset_s, segment.start),
                end=_absolute(offset_s, segment.end),
                text=text,
                avg_logprob=round(segment.avg_logprob, 4),
                no_speech_prob=round(segment.no_speech_prob, 4),
                compression_ratio=round(segment.compression_ratio, 4),
                words=words,
            )
        )
        before = text or before
    return placed


def _absolute(offset_s: float, time_s: float) -> float:
    return round(offset_s + time_s, 3)


def place_ready(job: Job) -> list[Segment]:
    """Adds to the job's segments those that can be placed now, and returns them. They go in the order of the audio: a
    window that is late holds back the ones behind it."""
    known = len(job.segments)
    while job.placed < len(job.results) and (result := job.results[job.placed]) is not None:
        before = job.segments[-1].text if job.segments else ""
        job.segments += place_segments(job.windows[job.placed], result, len(job.segments), before)
        job.placed += 1
    return job.segments[known:]


def done_s(job: Job) -> float:
    """Seconds of the audio that are done: to the last window that is placed, and the later ones that are finished."""
    if job.finished == len(job.windows) and not job.more_to_come:
        return job.duration_s
    placed_s = job.windows[job.placed - 1].stop / SAMPLE_RATE if job.placed else 0.0
    later = zip(job.windows[job.placed :], job.results[job.placed :], strict=True)
    return placed_s + sum(window.duration_s for window, result in later if result is not None)


def join_text(segments: Sequence[Segment]) -> str:
    """The result's text."""
    return "".join(segment.text for segment in segments).strip()


def transcription(job: Job, segments: Sequence[Segment], rendered: dict[str, str], now: float) -> dict[str, Any]:
    """The result of `transcribe` as the contract names its fields."""
    timing = job_timing(job, now)
    given = job.work.row.language is not None
    result: dict[str, Any] = {
        "text": join_text(segments),
        "language": job.language,
        "language_probability": None if given or job.language_probability is None
        else round(job.language_probability, 4),
        "duration_s": round(job.duration_s, 3),
        "speech_s": round(job.speech_s, 3),
        "model": job.work.model,
        "task": job.work.row.task,
        "job": job.id,
        "segments": [segment.to_wire() for segment in segments],
        "timing": timing,
        "rtf": round(timing["total_ms"] / 1000 / job.duration_s, 4) if job.duration_s else 0.0,
        "windows": len(job.windows),
        "warnings": job.warnings,
    }
    if job.work.render:
        result["rendered"] = rendered
    return result


def detection(job: Job) -> dict[str, Any]:
    """The result of `detect_language`; without speech there is no language to name."""
    result = job.results[0] if job.results else None
    languages = result.languages if result else ()
    return {
        "language": languages[0][0] if languages else None,
        "probability": round(languages[0][1], 4) if languages else 0.0,
        "languages": [{"language": code, "probability": round(p, 6)} for code, p in languages],
        "model": job.work.model,
        "job": job.id,
    }


def job_timing(job: Job, now: float) -> dict[str, float]:
    """Milliseconds by stage. `queue_ms` is all waiting: for a media worker, and for a lane of the engine. The engine
    may have begun with long audio before all its speech was found: what they did side by side counts for both."""
    total_ms = (now - job.arrived) * 1000
    infer_ms = both_ms = 0.0
    if job.first_dispatch is not None:
        infer_ms = (now - job.first_dispatch) * 1000
        both_ms = max(0.0, job.prepared_at - job.first_dispatch) * 1000
    busy_ms = job.media_ms + job.vad_ms + infer_ms - both_ms
    return {
        "queue_ms": round(max(0.0, total_ms - busy_ms), 2),
        "media_ms": round(job.media_ms, 2),
        "vad_ms": round(job.vad_ms, 2),
        "infer_ms": round(infer_ms, 2),
        "total_ms": round(total_ms, 2),
    }

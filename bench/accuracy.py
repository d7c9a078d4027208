"""Word error rates of the daemon beside those of faster-whisper's own default, on the same clips in the same run.

    python bench/accuracy.py                       tiny.en, whole sets
    python bench/accuracy.py --model base --third
    python bench/accuracy.py --model base --other-languages
    python bench/accuracy.py --no-speech           words invented where nobody speaks

The daemon gets all clips with default options from many clients at once; faster-whisper then gets them one by one in
two threads, as its users do. Both run int8.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from speech_set import Clip, Errors, character_errors, clips, daemon, parser, save, settings, table, word_errors

from whisperd.models.names import ensure, resolve

SETS = ("librispeech", "ljspeech", "asterisk_en_8k")
QUIET_SETS = ("silence", "music", "nonspeech")
ALLOWED_POINTS = 0.3  # of word error rate above faster-whisper


@dataclass
class Run:
    """What one side made of all clips."""

    texts: list[str]
    languages: list[str | None]
    seconds: float
    retried: dict[str, int]
    fill: float | None = None


def ask_daemon(model: str, chosen: Sequence[Clip], concurrency: int, extra: dict[str, str]) -> Run:
    with daemon(model, **extra) as started, started.connect() as client:
        client.transcribe(chosen[0].path)  # nobody's figures should hold the start
        before = client.call("metrics.current")
        began = time.perf_counter()
        with ThreadPoolExecutor(concurrency) as threads:
            results = list(threads.map(lambda clip: client.transcribe(clip.path), chosen))
        seconds = time.perf_counter() - began
        after = client.call("metrics.current")
    retried = {
        reason: count - before["rows_retried"].get(reason, 0) for reason, count in after["rows_retried"].items()
    }
    batches = after["overall"]["batches"] - before["overall"]["batches"]
    rows = after["overall"]["rows"] - before["overall"]["rows"]
    return Run(
        [result.text for result in results], [result.language for result in results], seconds,
        {reason: count for reason, count in retried.items() if count}, rows / max(1, batches),
    )  # fmt: skip


def ask_faster_whisper(model: str, chosen: Sequence[Clip], vad_filter: bool = False) -> Run:
    from faster_whisper import WhisperModel

    path = ensure(resolve(model))
    loaded = WhisperModel(str(path), device="cpu", compute_type="int8", cpu_threads=1, num_workers=2)

    def one(clip: Clip) -> tuple[str, str]:
        segments, info = loaded.transcribe(str(clip.path), vad_filter=vad_filter)
        return "".join(segment.text for segment in segments).strip(), info.language

    began = time.perf_counter()
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(one, chosen))
    seconds = time.perf_counter() - began
    return Run([text for text, _ in results], [language for _, language in results], seconds, {})


def total(chosen: Sequence[Clip], run: Run, *, of_set: str | None = None) -> Errors:
    errors = Errors()
    for clip, text in zip(chosen, run.texts, strict=True):
        if of_set in (None, clip.set):
            errors += word_errors(clip.text or "", text)
    return errors


def compare_english(chosen: Sequence[Clip], ours: Run, theirs: Run, show: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    rows = []
    for name in (*SETS, None):
        mine, reference = total(chosen, ours, of_set=name), total(chosen, theirs, of_set=name)
        if not mine.length:
            continue
        points = mine.percent - reference.percent
        count = sum(name in (None, clip.set) for clip in chosen)
        rows.append([
            name or "all", count, mine.length, f"{mine.percent:.2f}", sdi(mine),
            f"{reference.percent:.2f}", sdi(reference), f"{points:+.2f}",
        ])  # fmt: skip
        figures[name or "all"] = {"words": mine.length, "wer": mine.percent, "reference_wer": reference.percent}
    table(["set", "clips", "words", "WER %", "S/D/I", "faster-whisper %", "S/D/I", "points"], rows)
    audio_s = sum(clip.seconds for clip in chosen)
    table(
        ["", "seconds", "x realtime", "batch fill", "rows decoded again"],
        [
            ["whisperd", f"{ours.seconds:.1f}", f"{audio_s / ours.seconds:.1f}", f"{ours.fill:.2f}", ours.retried],
            ["faster-whisper, 2 threads", f"{theirs.seconds:.1f}", f"{audio_s / theirs.seconds:.1f}", "", ""],
        ],
    )
    show_differences(chosen, ours, theirs, show)
    figures["speed"] = {"seconds": ours.seconds, "reference_seconds": theirs.seconds, "audio_s": audio_s}
    figures["rows_retried"] = ours.retried
    return figures


def sdi(errors: Errors) -> str:
    return f"{errors.substituted}/{errors.deleted}/{errors.inserted}"


def show_differences(chosen: Sequence[Clip], ours: Run, theirs: Run, show: int) -> None:
    """The clips on which the two differ most, for whoever wants to know why."""
    differences = []
    for clip, mine, reference in zip(chosen, ours.texts, theirs.texts, strict=True):
        gap = word_errors(clip.text or "", mine).wrong - word_errors(clip.text or "", reference).wrong
        differences.append((gap, clip, mine, reference))
    differences.sort(key=lambda difference: -abs(difference[0]))
    for gap, clip, mine, reference in differences[:show]:
        if gap:
            print(f"{gap:+d} words  {clip.file}\n  said      {clip.text}\n  whisperd  {mine}\n  reference {reference}")


def compare_languages(chosen: Sequence[Clip], ours: Run, theirs: Run) -> dict[str, Any]:
    rows = []
    sums = [Errors(), Errors()]
    means: list[list[float]] = [[], []]
    hits = [0, 0]
    for number, clip in enumerate(chosen):
        found = []
        for side, run in enumerate((ours, theirs)):
            errors = character_errors(clip.text or "", run.texts[number])
            sums[side] += errors
            means[side].append(errors.percent)
            hits[side] += run.languages[number] == clip.language
            words = word_errors(clip.text or "", run.texts[number])
            found += [run.languages[number], f"{errors.percent:.1f}", f"{words.percent:.1f}"]
        rows.append([clip.file.split("/")[1], f"{clip.seconds:.1f}", clip.language, *found])
    table(["clip", "s", "is", "whisperd", "CER %", "WER %", "faster-whisper", "CER %", "WER %"], rows)
    mean = [sum(values) / len(values) for values in means]
    table(
        ["", "languages right", "mean CER % per clip", "CER % of all characters"],
        [
            [name, f"{hits[side]}/{len(chosen)}", f"{mean[side]:.2f}", f"{sums[side].percent:.2f}"]
            for side, name in enumerate(("whisperd", "faster-whisper"))
        ],
    )
    print("rows decoded again:", ours.retried)
    return {"hits": hits, "clips": len(chosen), "mean_cer": mean, "cer": [errors.percent for errors in sums]}


def compare_quiet(model: str, chosen: Sequence[Clip], extra: dict[str, str]) -> dict[str, Any]:
    runs = {
        "whisperd": ask_daemon(model, chosen, 8, extra),
        "faster-whisper, vad_filter": ask_faster_whisper(model, chosen, vad_filter=True),
        "faster-whisper": ask_faster_whisper(model, chosen),
    }
    invented = {name: sum(len(text.split()) for text in run.texts) for name, run in runs.items()}
    table(["", "clips", "words invented"], [[name, len(chosen), count] for name, count in invented.items()])
    for clip, text in zip(chosen, runs["whisperd"].texts, strict=True):
        if text:
            print(f"{clip.file}: {text}")
    return {"invented": invented}


def main() -> int:
    arguments = arguments_from_command_line()
    print(f"model {arguments.model}, {os.cpu_count()} cores\n")
    if arguments.no_speech:
        quiet = [clip for clip in clips(*QUIET_SETS) if clip.text == ""]
        figures = compare_quiet(arguments.model, quiet, settings(arguments))
        save(arguments, figures)
        return 0 if figures["invented"]["whisperd"] == 0 else 1
    if arguments.other_languages:
        chosen = [clip for clip in clips("other_languages") if clip.text]
    else:
        chosen = [clip for clip in clips(*SETS) if clip.text][:: 3 if arguments.third else 1]
    ours = ask_daemon(arguments.model, chosen, arguments.concurrency, settings(arguments))
    theirs = ask_faster_whisper(arguments.model, chosen)
    if arguments.other_languages:
        save(arguments, compare_languages(chosen, ours, theirs))
        return 0
    figures = compare_english(chosen, ours, theirs, arguments.show)
    save(arguments, figures)
    return 0 if figures["all"]["wer"] <= figures["all"]["reference_wer"] + ALLOWED_POINTS else 1


def arguments_from_command_line() -> argparse.Namespace:
    made = parser("Word error rates beside faster-whisper's own.")
    made.add_argument("--model", default="tiny.en")
    made.add_argument("--third", action="store_true", help="every third clip")
    made.add_argument("--other-languages", action="store_true", help="clips in other languages, which are detected")
    made.add_argument("--no-speech", action="store_true", help="clips in which nobody speaks")
    made.add_argument("--concurrency", type=int, default=12, help="requests at once")
    made.add_argument("--show", type=int, default=5, help="clips to show on which the two differ most")
    return made.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""The long recordings: word error rate, memory of each process, and what short clips feel of it meanwhile.

    python bench/longform.py [--model tiny.en] [--priority bulk]

Short clips are sent one after the other, first to the idle daemon, then while it works on each of the recordings.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from speech_set import MB, Clip, MemoryWatch, clips, daemon, parser, percentile, save, settings, table, word_errors

from whisperd.client import Client

IDLE_CLIPS = 24


def latencies_s(client: Client, short: Sequence[Clip], enough: Callable[[], bool]) -> list[float]:
    """Seconds for one short clip after the other until it is enough."""
    seconds: list[float] = []
    for clip in itertools.cycle(short):
        if enough():
            return seconds
        began = time.perf_counter()
        client.transcribe(clip.path)
        seconds.append(time.perf_counter() - began)
    return seconds


def one_recording(client: Client, clip: Clip, short: Sequence[Clip], priority: str) -> dict[str, Any]:
    began = time.perf_counter()
    pending = client.submit(clip.path, priority=priority)
    meanwhile = latencies_s(client, short, pending.done)
    result = pending.result()
    errors = word_errors(clip.text or "", result.text)
    return {
        "audio_s": clip.seconds,
        "took_s": time.perf_counter() - began,
        "windows": result.windows,
        "wer": errors.percent,
        "errors": [errors.substituted, errors.deleted, errors.inserted],
        "short_clips": len(meanwhile),
        "short_p50_s": percentile(meanwhile, 0.5),
        "short_p95_s": percentile(meanwhile, 0.95),
    }


def main() -> int:
    made = parser("Long recordings, and short clips beside them.")
    made.add_argument("--model", default="tiny.en")
    made.add_argument("--priority", default="normal", help="of the long recording")
    made.add_argument("--only", default="", metavar="PART", help="recordings with this in their name")
    arguments = made.parse_args()
    short = [clip for clip in clips("asterisk_en_8k") if 2 < clip.seconds < 4][:6]
    figures: dict[str, Any] = {}
    with (
        daemon(arguments.model, **settings(arguments)) as started,
        started.connect() as client,
        MemoryWatch(started) as memory,
    ):
        latencies_s(client, short[:2], iter((False, False, True)).__next__)  # the first ones pay for the start
        left = iter(range(IDLE_CLIPS))
        idle = latencies_s(client, short, lambda: next(left, None) is None)
        for clip in (clip for clip in clips("longform") if arguments.only in clip.file):
            figures[clip.file] = one_recording(client, clip, short, arguments.priority)
    idle_p95_s = percentile(idle, 0.95)
    table(
        ["recording", "s", "took s", "windows", "WER %", "S/D/I", "short clips", "p50 s", "p95 s", "x idle p95"],
        [["none: idle", "", "", "", "", "", len(idle), f"{percentile(idle, 0.5):.2f}", f"{idle_p95_s:.2f}", ""]]
        + [
            [
                name, f"{row['audio_s']:.0f}", f"{row['took_s']:.1f}", row["windows"], f"{row['wer']:.2f}",
                "/".join(map(str, row["errors"])), row["short_clips"], f"{row['short_p50_s']:.2f}",
                f"{row['short_p95_s']:.2f}", f"{row['short_p95_s'] / idle_p95_s:.1f}",
            ]
            for name, row in figures.items()
        ],
    )  # fmt: skip
    table(["process", "peak RSS MB"], [[name, f"{peak / MB:.0f}"] for name, peak in sorted(memory.peak_bytes.items())])
    idle_figures = {"p50_s": percentile(idle, 0.5), "p95_s": idle_p95_s}
    save(arguments, {"recordings": figures, "idle": idle_figures, "peak_rss_bytes": memory.peak_bytes})
    return 0


if __name__ == "__main__":
    sys.exit(main())

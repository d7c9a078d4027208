"""What one run of the comparison does: how many clips, clients and repetitions, and what is asked of each side.

`--quick` measures the same things with less of everything. Where a side's rate does not depend on how many clips it
gets (faster-whisper takes one after the other, each for the price of 30 s), it gets only some of them there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sides import Flavour
from speech_set import Clip, clips

from whisperd.messages import LONG_BEAM, LONG_S
from whisperd.tails import tail_of

SHORT_SETS = ("librispeech", "ljspeech", "asterisk_en_8k")
PROBE_S = (2.7, 3.3)  # "a 3 s clip"

LIKE_BEAM = 5

# How the daemon decodes by default, for the sketch that it is compared with: contexts in steps of so many seconds
# (whisperd/batching.py), short clips greedily, and with a beam where a row's text is unsure (inference/attempts.py).
BUCKET_S = 1.0
DEFAULT_SEARCH = {"beam_size": 1, "long_beam_size": LONG_BEAM, "unsure_beam": 5, "unsure_logprob": -0.5}


@dataclass(frozen=True)
class Plan:
    """Sizes of all workloads."""

    repeats: int
    burst_step: int  # one in so many of the clips
    library_step: int  # one in so many of these for faster-whisper's own ways
    extra_burst_sides: tuple[str, ...]  # beside whisperd, serial, threads and the sketch
    closed: Mapping[int, int]  # clients: requests in all
    open_shares: tuple[float, ...]  # of the burst's throughput
    open_requests: int
    long_files: tuple[str, ...]  # parts of their names
    long_sides: tuple[str, ...]
    probes: int  # 3 s clips on the idle daemon
    idle_asks: int  # of one clip, before the long file
    cold_starts: int
    malformed_lines: int
    malformed_clips: int
    beside_normal: str  # part of the name of the long file that is `normal`; the `bulk` one is the longest


FULL = Plan(
    repeats=3,
    burst_step=1,
    library_step=1,
    extra_burst_sides=("batched", "wyoming"),
    closed={1: 16, 4: 48, 16: 96, 64: 128},
    open_shares=(0.1, 0.3, 0.6, 0.9),
    open_requests=60,
    long_files=("4m", "12m"),
    long_sides=("whisperd", "serial", "threads", "batched"),
    probes=40,
    idle_asks=30,
    cold_starts=5,
    malformed_lines=1000,
    malformed_clips=60,
    beside_normal="12m",
)
QUICK = Plan(
    repeats=1,
    burst_step=2,
    library_step=4,
    extra_burst_sides=(),
    closed={16: 32},
    open_shares=(0.6,),
    open_requests=24,
    long_files=("4m",),
    long_sides=("whisperd", "serial", "batched"),
    probes=8,
    idle_asks=10,
    cold_starts=1,
    malformed_lines=1000,
    malformed_clips=16,
    beside_normal="4m",
)


def flavours(model: str, tail_s: float | None) -> dict[str, Flavour]:
    """Each side's own defaults; and the same beam, timestamps and language for all, which is like for like.

    `tail_s` is the silence behind speech that the sketch takes; None: what the daemon takes for this model.
    """
    tail_s = tail_of(model, 0.0) if tail_s is None else tail_s
    sketch = {"tail_s": tail_s, "bucket_s": BUCKET_S, "long_s": LONG_S}
    like = {"beam_size": LIKE_BEAM, "long_beam_size": LIKE_BEAM, "timestamps": False, "language": "en"}
    return {
        "defaults": Flavour("defaults", {}, {}, {**sketch, **DEFAULT_SEARCH, "timestamps": True, "language": None}),
        "like_for_like": Flavour(
            "like_for_like",
            {"beam_size": LIKE_BEAM, "timestamps": "none", "language": "en"},
            {"beam_size": LIKE_BEAM, "without_timestamps": True, "language": "en"},
            {**sketch, **like},
        ),
    }


def short_clips(step: int) -> list[Clip]:
    """One in so many of the clips of each set, so that each is as well represented as in the whole."""
    chosen = []
    for name in SHORT_SETS:
        chosen += [clip for clip in clips(name) if clip.text][::step]
    return chosen


def probe_clips() -> list[Clip]:
    """Five clips of about three seconds."""
    low, high = PROBE_S
    return [clip for clip in clips(*SHORT_SETS) if clip.text and low <= clip.seconds <= high][:5]


def long_clips(parts: tuple[str, ...]) -> list[Clip]:
    return [clip for clip in clips("longform") if any(part in clip.file for part in parts)]

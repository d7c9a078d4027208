"""A daemon with certain settings, to be measured: the real one, over its own standard input, with a store of its own.

What is measured is thereby what a client gets, media, scheduling and all. The daemon ends with its pipe: whatever
happens to this process, nothing is left running.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import orjson

import whisperd
from whisperd.client import Client
from whisperd.config import flag_name
from whisperd.tuning import Clip, Observed, Texts, Value, Values, plain

SPEECH = Path(whisperd.__file__).parent / "tuning_speech"
_SINGLES = 2  # of one clip alone, in each round


def packaged_clips() -> list[Clip]:
    """The clips that come with whisperd, in an order of which any beginning is a fair sample."""
    rows = orjson.loads((SPEECH / "clips.json").read_bytes())
    return [Clip(row["file"], row["seconds"], row["text"]) for row in rows]


@dataclass
class Sums:
    """What was measured of one daemon so far."""

    speeds: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    texts: Texts = frozenset()
    rows_retried: int = 0


class Trial:
    """One daemon, from start to end. Every wait has a limit; what does not come in time raises Timeout."""

    def __init__(self, folder: Path, clips: Sequence[Clip], settings: Values) -> None:
        """Starts it; `folder` takes its log and store."""
        self._clips = clips
        self._log = folder / f"{time.monotonic_ns()}.log"
        flags = [text for name, value in settings.items() for text in (flag_name(name), _flag_value(value))]
        own = ["--config", os.devnull]  # the settings in effect are among the flags already
        own += ["--store", str(self._log.with_suffix(".db")), "--log-format", "json", "--log-level", "info"]
        with self._log.open("wb") as log:
            self._client = Client(spawn=True, args=[*flags, *own], stderr=log)

    def __enter__(self) -> Trial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def single(self, limit_s: float) -> float:
        """Seconds that the first clip takes alone. Raises RequestFailed, ConnectionLost, Timeout."""
        began = time.monotonic()
        self._client.transcribe(SPEECH / self._clips[0].file, timeout=limit_s)
        return time.monotonic() - began

    def burst(self, numbers: Sequence[int], limit_s: float, context: str = "auto") -> tuple[float, Texts]:
        """All these clips at once: seconds until the last is there, and what was heard. Raises as `single`."""
        began = time.monotonic()
        pending = [
            self._client.submit(SPEECH / self._clips[number].file, timeout=limit_s, encoder_context=context)
            for number in numbers
        ]
        texts = [each.result().text for each in pending]
        took_s = time.monotonic() - began
        return took_s, frozenset((number, plain(text)) for number, text in zip(numbers, texts, strict=True))

    def measure(self, numbers: Sequence[int], limit_s: float, sums: Sums) -> None:
        """One round: a burst, and a clip alone on the idle daemon. Adds to `sums`."""
        before = self._rows_retried()
        took_s, texts = self.burst(numbers, limit_s)
        sums.rows_retried += self._rows_retried() - before
        sums.speeds.append(sum(self._clips[number].seconds for number in numbers) / took_s)
        sums.texts |= texts
        sums.latencies_s += [self.single(limit_s) for _ in range(_SINGLES)]

    def observed(self, sums: Sums) -> Observed:
        peak = self._peak_rss_bytes()
        return Observed(tuple(sums.speeds), tuple(sums.latencies_s), sums.texts, sums.rows_retried, peak)

    def settled(self) -> dict[str, Value]:
        """Device, compute type, lanes and threads as the engine chose them; nothing of an engine without process."""
        names = ("device", "compute_type", "lanes", "threads")
        for line in self._log.read_bytes().splitlines():
            if b'"model ready"' in line:
                row = orjson.loads(line)
                return {name: row[name] for name in names if row.get(name) is not None}
        return {}

    def _rows_retried(self) -> int:
        return sum(self._client.call("metrics.current")["rows_retried"].values())

    def _peak_rss_bytes(self) -> int | None:
        """The most memory that the inference worker ever had; None where there is no such process."""
        pids = [worker["pid"] for worker in self._client.status()["workers"] if worker["kind"] == "inference"]
        for pid in pids:
            try:
                status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
            except OSError:
                continue  # it ended just now
            if found := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE):
                return int(found[1]) * 1024
        return None


def _flag_value(value: Value) -> str:
    return repr(value) if isinstance(value, float) else str(value)



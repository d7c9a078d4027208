"""What all measurements share: the test speech, how errors are counted, a daemon of one's own, memory over time.

Every script starts its own daemon in a folder of its own, so that nothing on the machine is touched and nobody else's
daemon is measured. Errors are counted after Whisper's English normalisation, as everybody does who publishes figures;
other languages are compared by character, without case, punctuation and space.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import psutil
from whisper_normalizer.english import EnglishTextNormalizer

from whisperd.client import Client

SPEECH = Path(__file__).resolve().parents[1].parent / "shared" / "speech"
MB = 1e6
_NORMALIZE = EnglishTextNormalizer()
_SAMPLE_EVERY_S = 0.1
_READY_TIMEOUT_S = 180.0  # a large model is read from disk and hashed


@dataclass(frozen=True)
class Clip:
    """One line of the manifest."""

    file: str
    set: str
    text: str | None
    language: str
    seconds: float

    @property
    def path(self) -> Path:
        return SPEECH / self.file


def clips(*sets: str) -> list[Clip]:
    """The clips of some sets, in the manifest's order. Ends the program where the folder is missing."""
    manifest = SPEECH / "manifest.jsonl"
    if not manifest.is_file():
        sys.exit(f"{SPEECH} is not on this machine; it holds the speech that is measured with")
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    return [
        Clip(row["file"], row["set"], row["text"], row["language"], row.get("seconds", 0.0))
        for row in rows
        if row["set"] in sets
    ]


@dataclass(frozen=True)
class Errors:
    """Words (or characters) of the reference, and what was done to them."""

    length: int = 0
    substituted: int = 0
    deleted: int = 0
    inserted: int = 0

    def __add__(self, other: Errors) -> Errors:
        return Errors(
            self.length + other.length,
            self.substituted + other.substituted,
            self.deleted + other.deleted,
            self.inserted + other.inserted,
        )

    @property
    def wrong(self) -> int:
        return self.substituted + self.deleted + self.inserted

    @property
    def percent(self) -> float:
        return 100.0 * self.wrong / max(1, self.length)


def word_errors(reference: str, text: str) -> Errors:
    wanted, got = _NORMALIZE(reference), _NORMALIZE(text)
    if not wanted or not got:
        return Errors(len(wanted.split()), 0, len(wanted.split()), len(got.split()))
    found = jiwer.process_words(wanted, got)
    return Errors(len(wanted.split()), found.substitutions, found.deletions, found.insertions)


def character_errors(reference: str, text: str) -> Errors:
    wanted, got = (re.sub(r"[\W_]", "", part.lower()) for part in (reference, text))
    found = jiwer.process_characters(wanted, got) if wanted and got else None
    if found is None:
        return Errors(len(wanted), 0, len(wanted), len(got))
    return Errors(len(wanted), found.substitutions, found.deletions, found.insertions)


@dataclass
class Started:
    """A daemon of the script's own."""

    socket: Path
    process: subprocess.Popen[bytes]

    def connect(self) -> Client:
        return Client(self.socket, timeout=1800.0)


@contextlib.contextmanager
def daemon(model: str, *flags: str, **settings: object) -> Iterator[Started]:
    """Runs `whisperd serve` with this model; `settings` become WHISPERD_*. Its log ends where the script's errors do,
    from warnings on."""
    folder = Path(tempfile.mkdtemp(prefix="wd-bench-"))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WHISPERD_")}
    environ |= {"XDG_STATE_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "WHISPERD_LOG_LEVEL": "warning"}
    environ |= {f"WHISPERD_{name.upper()}": str(value) for name, value in settings.items()}
    socket = folder / "w.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "whisperd", "serve", "--socket", str(socket), "--model", model, *flags],
        env=environ,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        started = Started(socket, process)
        _wait_until_ready(started)
        yield started
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder)


def _wait_until_ready(started: Started) -> None:
    """Raises RuntimeError where it does not become ready."""
    pause = threading.Event()
    late = time.monotonic() + _READY_TIMEOUT_S
    while not started.socket.exists():
        if started.process.poll() is not None or time.monotonic() > late:
            raise RuntimeError("the daemon did not start; see above")
        pause.wait(0.05)
    with started.connect() as client:
        while not (health := client.health())["ready"]:
            if time.monotonic() > late:
                raise RuntimeError(f"the daemon did not become ready: {health.get('reasons')}")
            pause.wait(0.05)


class MemoryWatch:
    """Resident memory of the daemon's processes, sampled until the block is left. `peak_bytes` by name, such as
    "supervisor", "media 1", "inference tiny.en"; whoever is replaced shares the name with the successor."""

    def __init__(self, started: Started) -> None:
        self._started = started
        self._names: dict[int, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes: dict[str, int] = {}

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        with self._started.connect() as client:
            while not self._stop.wait(_SAMPLE_EVERY_S):
                for name, rss_bytes in memory_bytes(client).items():
                    self.peak_bytes[name] = max(rss_bytes, self.peak_bytes.get(name, 0))


def memory_bytes(client: Client) -> dict[str, int]:
    """Resident memory of each process of the daemon now."""
    status = client.status()
    found = {"supervisor": psutil.Process(status["pid"]).memory_info().rss}
    counts: dict[str, int] = {}
    for worker in status["workers"]:
        counts[worker["kind"]] = counts.get(worker["kind"], 0) + 1
        label = worker.get("model") or str(counts[worker["kind"]])
        found[f"{worker['kind']} {label}"] = worker["rss_bytes"] or 0
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints columns, the first to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        first, *rest = row
        print("  ".join([first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True))]))
    print()


def parser(description: str) -> argparse.ArgumentParser:
    """With what all scripts take."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    made.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the daemon, such as lanes=3"
    )
    return made


def settings(arguments: argparse.Namespace) -> dict[str, str]:
    """What `--set` says, for `daemon`."""
    return dict(pair.split("=", 1) for pair in arguments.set)


def save(arguments: argparse.Namespace, figures: dict[str, Any]) -> None:
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

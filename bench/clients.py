"""Fifty socket clients with four requests each, all at once, half by descriptor: is every reply the right one, once?

    python bench/clients.py [--clients 50] [--requests 4] [--long-line-mb 100]

First every clip is transcribed alone, which gives the text that its replies are judged by. Then the burst; afterwards
the same burst beside a client that sends a line far beyond the limit, which shows what that line costs in memory.
"""

from __future__ import annotations

import itertools
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import psutil
from speech_set import MB, Clip, Errors, Started, clips, daemon, parser, percentile, save, settings, table, word_errors

SETS = ("asterisk_en_8k", "ljspeech", "librispeech")
SECONDS_MAX = 6.0
_PIECE = b"x" * 1_000_000
# A batch and a row alone differ in the last digits, so now and then in a word; another clip's text differs in most.
SAME_TEXT_PERCENT = 34.0


class Requests:
    """One client's share of the burst: what it asks, and every line that it was sent."""

    def __init__(self, numbered: Sequence[tuple[int, Clip]], by_fd: bool) -> None:
        self.numbered = numbered
        self.by_fd = by_fd
        self.replies: list[dict[str, Any]] = []
        self.latencies_s: list[float] = []

    def run(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            began = time.perf_counter()
            for number, clip in self.numbered:
                audio: dict[str, Any] = {"fd": 0} if self.by_fd else {"path": str(clip.path)}
                line = {"jsonrpc": "2.0", "id": number, "method": "transcribe", "params": {"audio": audio}}
                with clip.path.open("rb") as file:
                    descriptors = [file.fileno()] if self.by_fd else []
                    socket.send_fds(sock, [json.dumps(line).encode() + b"\n"], descriptors)
            sock.shutdown(socket.SHUT_WR)  # all is read to the end, where a doubled reply would be seen
            for line_back in sock.makefile("rb"):
                self.replies.append(json.loads(line_back))
                self.latencies_s.append(time.perf_counter() - began)


def burst(started: Started, chosen: Sequence[Clip], count: int) -> tuple[list[Requests], float]:
    """All clients at once. Returns them and the seconds it took."""
    numbered = list(enumerate(chosen))
    asked = [Requests(numbered[first::count], by_fd=first % 2 == 0) for first in range(count)]
    threads = [threading.Thread(target=each.run, args=(str(started.socket),)) for each in asked]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return asked, time.perf_counter() - began


def judge(asked: Sequence[Requests], chosen: Sequence[Clip], alone: dict[str, str]) -> dict[str, Any]:
    replies = [reply for each in asked for reply in each.replies]
    counts = Counter(reply["id"] for reply in replies)
    strayed = sum(reply["id"] not in dict(each.numbered) for each in asked for reply in each.replies)
    texts = {reply["id"]: reply["result"]["text"] for reply in replies if "result" in reply}
    errors = Errors()
    wrong, different = [], 0
    for number, text in texts.items():
        clip = chosen[number]
        errors += word_errors(clip.text or "", text)
        different += text != alone[clip.file]
        if word_errors(alone[clip.file], text).percent > SAME_TEXT_PERCENT:
            wrong.append(f"{clip.file}: {text!r} instead of {alone[clip.file]!r}")
    latencies = [seconds for each in asked for seconds in each.latencies_s]
    return {
        "requests": len(chosen),
        "lost": sum(counts[number] == 0 for number in range(len(chosen))),
        "doubled": sum(count > 1 for count in counts.values()),
        "at the wrong client": strayed,
        "errors": sum("error" in reply for reply in replies),
        "text of another clip": wrong,
        "text not letter for letter as alone": different,
        "WER %": round(errors.percent, 2),
        "p50 s": round(percentile(latencies, 0.5), 2),
        "p95 s": round(percentile(latencies, 0.95), 2),
    }


class LongLine:
    """Sends one line without end while a burst goes on, and watches the supervisor's memory."""

    def __init__(self, started: Started, megabytes: int) -> None:
        self._started = started
        self._megabytes = megabytes
        self._process = psutil.Process(started.process.pid)
        self._stop = threading.Event()
        self.peak_bytes = 0
        self.answer = ""

    def watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)

    def send(self) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._started.socket))
            for _ in range(self._megabytes):
                sock.sendall(_PIECE)
            sock.sendall(b"\n")
            self.answer = json.loads(sock.makefile("rb").readline())["error"]["data"]["kind"]

    def beside(self, chosen: Sequence[Clip], count: int) -> list[Requests]:
        threads = [threading.Thread(target=self.watch)]
        if self._megabytes:
            threads.append(threading.Thread(target=self.send))
        for thread in threads:
            thread.start()
        asked, _ = burst(self._started, chosen, count)
        for thread in threads[1:]:
            thread.join()
        self._stop.set()
        threads[0].join()
        return asked


def main() -> int:
    made = parser("Many clients at once.")
    made.add_argument("--model", default="tiny.en")
    made.add_argument("--clients", type=int, default=50)
    made.add_argument("--requests", type=int, default=4, help="of each client")
    made.add_argument("--long-line-mb", type=int, default=100)
    made.add_argument("--max-line-mib", type=int, default=64, help="the daemon's limit on a line")
    arguments = made.parse_args()
    several = [clip for clip in clips(*SETS) if clip.text and clip.seconds < SECONDS_MAX]
    chosen = list(itertools.islice(itertools.cycle(several), arguments.clients * arguments.requests))
    limit_bytes = arguments.max_line_mib * 1024 * 1024
    with (
        daemon(arguments.model, max_line_bytes=limit_bytes, **settings(arguments)) as started,
        started.connect() as client,
    ):
        alone = {clip.file: client.transcribe(clip.path).text for clip in several[: len(chosen)]}
        before = client.call("metrics.current")["overall"]
        asked, took_s = burst(started, chosen, arguments.clients)
        after = client.call("metrics.current")["overall"]
        quiet = LongLine(started, 0)
        judge(quiet.beside(chosen, arguments.clients), chosen, alone)
        loud = LongLine(started, arguments.long_line_mb)
        beside = judge(loud.beside(chosen, arguments.clients), chosen, alone)
    figures = judge(asked, chosen, alone)
    figures["took s"] = round(took_s, 1)
    figures["batch fill"] = round((after["rows"] - before["rows"]) / (after["batches"] - before["batches"]), 2)
    table(["", "burst", "beside the long line"], [[name, figures[name], beside.get(name, "")] for name in figures])
    cost = {
        "answer": loud.answer,
        "peak_without_mb": round(quiet.peak_bytes / MB, 1),
        "peak_with_mb": round(loud.peak_bytes / MB, 1),
        "limit_mb": round(limit_bytes / MB, 1),
        "beyond_the_limit_mb": round((loud.peak_bytes - quiet.peak_bytes - limit_bytes) / MB, 1),
    }
    table(["supervisor, a line of " + str(arguments.long_line_mb) + " MB", ""], list(cost.items()))
    save(arguments, {"burst": figures, "beside_the_long_line": beside, "long_line": cost})
    bad = sum(len(run["text of another clip"]) + run["lost"] + run["doubled"] + run["at the wrong client"]
              + run["errors"] for run in (figures, beside))  # fmt: skip
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""A thousand lines that are no requests among those that are: nothing may be lost, mixed up or slowed down by them.

The real requests go once without and once with the malformed lines among them, on one connection each. Every real
one must come out right; every malformed line must be answered with an error of the kind that its fault has.
"""

from __future__ import annotations

import itertools
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plan as plans
from measured import Figures, Stretch, measure
from run import Run
from sides import Answer, Whisperd
from speech_set import Clip, word_errors
from workloads import SEED

# A row alone and in a batch differ in the last digits, so now and then in a word; another clip's text in most.
_SAME_TEXT_PERCENT = 34.0


@dataclass(frozen=True)
class Fault:
    """A line, and the kind of error that it earns. `{id}` in the line stands for its own id, if it can have one."""

    line: bytes
    kind: str


_ID = b'{"jsonrpc":"2.0","id":"ID",'
FAULTS = (
    Fault(b"hello", "parse_error"),
    Fault(b'{"jsonrpc":"2.0","id":1,"method":"transcribe"', "parse_error"),
    Fault(b'\xff\xfe{"jsonrpc":"2.0"}', "parse_error"),
    Fault(b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}', "parse_error"),
    Fault(b"[" * 2000, "parse_error"),
    Fault(b"7", "invalid_request"),
    Fault(b'{"id":"ID","method":"ping"}', "invalid_request"),
    Fault(b'{"jsonrpc":"1.0","id":"ID","method":"ping"}', "invalid_request"),
    Fault(_ID + b'"method":7}', "invalid_request"),
    Fault(b'{"jsonrpc":"2.0","id":{"a":1},"method":"ping"}', "invalid_request"),
    Fault(_ID + b'"method":"transcribe","params":"a.wav"}', "invalid_params"),
    Fault(_ID + b'"method":"no.such.method"}', "method_not_found"),
    Fault(_ID + b'"method":"transcribe","params":{}}', "invalid_params"),
    Fault(_ID + b'"method":"transcribe","params":{"audio":{"path":7}}}', "invalid_params"),
    Fault(_ID + b'"method":"transcribe","params":{"audio":{"path":"a.wav"},"beam_size":-3}}', "invalid_params"),
    Fault(_ID + b'"method":"transcribe","params":{"audio":{"data":"!!!"}}}', "invalid_params"),
    Fault(_ID + b'"method":"transcribe","params":{"audio":{"path":"/no/such/file.wav"}}}', "audio_not_found"),
)


def malformed(run: Run) -> None:
    name = "malformed"
    title = f"{run.plan.malformed_lines} malformed lines among {run.plan.malformed_clips} real ones"
    chosen = list(itertools.islice(itertools.cycle(plans.short_clips(3)), run.plan.malformed_clips))

    def work(side: Any, number: int) -> None:
        texts: dict[int, str] = {}
        rows = (("without", 0), ("with", run.plan.malformed_lines))
        for row, count in rows if number % 2 == 0 else reversed(rows):
            talk = Talk(side, chosen, count, SEED + number)
            figures = measure(side, talk.stretch)
            run.add(name, title, row, figures | talk.judged(texts))
            for complaint in talk.complaints(texts):
                run.failed(name, row, complaint)
            texts = texts or talk.texts()

    run.in_turns("malformed lines", ("whisperd",), work)
    run.finish(name, {"x_realtime, with / without": ("x_realtime", "with", "without")})


class Talk:
    """All lines over one connection, in an order in which faults and requests are mixed, and what came back."""

    def __init__(self, side: Whisperd, chosen: Sequence[Clip], faults: int, seed: int) -> None:
        self._path = str(side.started.socket)
        self._chosen = chosen
        self._faults = list(itertools.islice(itertools.cycle(FAULTS), faults))
        self._lines = [_request(number, clip) for number, clip in enumerate(chosen)]
        self._lines += [fault.line.replace(b"ID", b"fault-%d" % i) for i, fault in enumerate(self._faults)]
        random.Random(seed).shuffle(self._lines)
        self._replies: list[dict[str, Any]] = []
        self._at: dict[int, float] = {}

    def stretch(self) -> Stretch:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self._path)
            began = time.perf_counter()
            sender = threading.Thread(target=self._send, args=(sock,))
            sender.start()
            for line in sock.makefile("rb"):
                reply = json.loads(line)
                self._replies.append(reply)
                if isinstance(reply["id"], int) and "result" in reply:
                    self._at[reply["id"]] = time.perf_counter() - began
            sender.join()
            seconds = max(self._at.values(), default=time.perf_counter() - began)
        texts = self.texts()
        answers = [
            Answer(texts[number], self._at[number]) if number in texts else Answer("", 0.0, "no text came back")
            for number in range(len(self._chosen))
        ]
        return Stretch(self._chosen, answers, seconds)

    def _send(self, sock: socket.socket) -> None:
        sock.sendall(b"".join(line + b"\n" for line in self._lines))
        sock.shutdown(socket.SHUT_WR)

    def texts(self) -> dict[int, str]:
        return {
            reply["id"]: reply["result"]["text"]
            for reply in self._replies
            if "result" in reply and isinstance(reply["id"], int)
        }

    def _kinds(self) -> Counter[str]:
        return Counter(
            reply["error"].get("data", {}).get("kind", "untyped") for reply in self._replies if "error" in reply
        )

    def judged(self, alone: dict[int, str]) -> Figures:
        """How many lines were answered how; `alone` are the real ones' texts in the run before, if there was one."""
        return {"lines": len(self._lines), "replies": len(self._replies), "error_kinds": dict(self._kinds()),
                "wrong_texts": len(self._wrong(alone))}  # fmt: skip

    def _wrong(self, alone: dict[int, str]) -> list[int]:
        found = self.texts()
        return [
            number
            for number, text in alone.items()
            if number not in found or word_errors(text, found[number]).percent > _SAME_TEXT_PERCENT
        ]

    def complaints(self, alone: dict[int, str]) -> list[str]:
        """Everything that a careful client would complain of."""
        found = []
        wanted, got = Counter(fault.kind for fault in self._faults), self._kinds()
        if wanted != got:
            found.append(f"errors wanted: {dict(wanted - got)}; not wanted: {dict(got - wanted)}")
        if len(self._replies) != len(self._lines):
            found.append(f"{len(self._replies)} replies to {len(self._lines)} lines")
        doubled = [id for id, count in Counter(str(reply["id"]) for reply in self._replies).items()
                   if count > 1 and id != "None"]  # fmt: skip
        if doubled:
            found.append(f"answered more than once: {doubled[:5]}")
        if wrong := self._wrong(alone):
            found.append(f"other texts with the malformed lines than without: requests {wrong[:5]}")
        return found


def _request(number: int, clip: Clip) -> bytes:
    params = {"audio": {"path": str(clip.path)}}
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": "transcribe", "params": params}).encode()

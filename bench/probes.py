"""Workloads of a single request: on an idle daemon, beside a long file, and right after a start."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plan as plans
from measured import Figures, Stretch, measure, speech_figures, spread
from run import Run, make
from sides import Answer, Whisperd, ask
from speech_set import Clip
from workloads import SEED

_PAUSE_S = 0.3  # at most, between two clips beside a long file: else each would come right behind a batch's end
_COLD_TIMEOUT_S = 300.0


def idle(run: Run) -> None:
    """One 3 s clip: end to end over the socket against faster-whisper in its own process, by turns."""
    name, title = "idle", "one 3 s clip, nothing else to do"
    probes = plans.probe_clips()
    flavour = run.flavours["defaults"]
    run.say(f"{name}: {run.plan.probes} clips by turns")
    asked: list[Clip] = []
    answers: dict[str, list[Answer]] = {"whisperd": [], "serial": []}
    try:
        with make("whisperd", run.setup, run.warm) as ours, make("serial", run.setup, run.warm) as theirs:

            def by_turns() -> Stretch:
                for number in range(run.plan.probes):
                    clip = probes[number % len(probes)]
                    asked.append(clip)
                    for side in (ours, theirs) if number % 2 else (theirs, ours):
                        answers[side.name] += side.burst([clip], flavour)[0]
                return Stretch(asked, answers["whisperd"], sum(answer.seconds for answer in answers["whisperd"]))

            inner: list[Figures] = []

            def watched() -> Stretch:
                inner.append(measure(ours, by_turns))
                reference = answers["serial"]
                return Stretch(asked, reference, sum(answer.seconds for answer in reference))

            outer = measure(theirs, watched)
    except Exception as error:  # as of any side: the other workloads go on
        run.failed(name, "whisperd or serial", f"{type(error).__name__}: {error}")
        return
    run.add(name, title, "whisperd", inner[0])
    run.add(name, title, "serial", outer)
    run.finish(name, {})
    pairs = zip(answers["whisperd"], answers["serial"], strict=True)
    ratios = [mine.seconds / other.seconds for mine, other in pairs if not mine.error]
    run.cases[name]["ratios"]["seconds, whisperd / serial"] = spread(ratios)


def beside(run: Run) -> None:
    """One short clip after the other while a long file is transcribed, against the same clip on the idle daemon."""
    files = {"bulk": plans.long_clips(("12m",))[0], "normal": plans.long_clips((run.plan.beside_normal,))[0]}
    probe = plans.probe_clips()[0]

    def work(side: Any, number: int) -> None:
        asker = side.connect()
        try:
            def alone() -> Stretch:
                began = time.perf_counter()
                answers = [ask(asker, probe, time.perf_counter()) for _ in range(run.plan.idle_asks)]
                return Stretch([probe] * len(answers), answers, time.perf_counter() - began)

            run.add("beside", _TITLE, "idle", measure(side, alone))
            for priority, file in files.items():
                _beside_one(run, side, asker, (file, priority), probe, number)
        finally:
            asker.close()

    run.in_turns("beside a long file", ("whisperd",), work)
    ratios = {}
    for file_priority in files:
        for priority in ("normal", "interactive"):
            row = _row(priority, file_priority)
            ratios[f"p95_s, {row} / p50 idle"] = (row, "p95_s")
            ratios[f"p50_s, {row} / p50 idle"] = (row, "p50_s")
    run.finish("beside", {})
    case = run.cases.get("beside")
    for label, (row, figure) in ratios.items() if case else ():
        repeats = zip(*(case["sides"].get(side, {"repeats": []})["repeats"] for side in (row, "idle")), strict=False)
        found = spread([above[figure] / below["p50_s"] for above, below in repeats])
        if found:
            case["ratios"][label] = found


_TITLE = "a 3 s clip while a long file is transcribed"


def _row(priority: str, file_priority: str) -> str:
    return f"{priority} beside {file_priority}"


def _beside_one(
    run: Run, side: Whisperd, asker: Any, file: tuple[Clip, str], probe: Clip, number: int
) -> None:
    """Clips by turns `normal` and `interactive` until the file's text is there."""
    long_clip, file_priority = file
    pause = random.Random(SEED + number)
    took: dict[str, list[Answer]] = {"normal": [], "interactive": []}
    results: list[Answer] = []

    def stretch() -> Stretch:
        client = side.started.connect()
        began = time.perf_counter()
        try:
            pending = client.submit(long_clip.path, priority=file_priority)
            while not pending.done():
                for priority, answers in took.items():
                    time.sleep(pause.uniform(0, _PAUSE_S))
                    if not pending.done():
                        answers.append(ask(asker, probe, time.perf_counter(), priority=priority))
            text, seconds = pending.result().text, time.perf_counter() - began
        finally:
            client.close()
        results.append(Answer(text, seconds))
        return Stretch([long_clip], results, seconds)

    run.add("beside", _TITLE, f"the file, {file_priority}", measure(side, stretch))
    for priority, answers in took.items():
        if not answers:
            run.failed("beside", _row(priority, file_priority), "the file was done before a clip could be sent")
            continue
        taken = Stretch([probe] * len(answers), answers, sum(answer.seconds for answer in answers))
        run.add("beside", _TITLE, _row(priority, file_priority), speech_figures(taken))


def cold_start(run: Run) -> None:
    """From the start of a process to its first text: the daemon on stdio, and a script that uses faster-whisper."""
    name, title = "cold_start", "cold start to the first text"
    probe = plans.probe_clips()[0]
    folder = Path(tempfile.mkdtemp(prefix="wd-bench-cold-"))
    sides = {"whisperd": (_daemon_command, _daemon_text), "script": (_script_command, _script_text)}
    times: dict[str, list[float]] = {side: [] for side in sides}
    try:
        # The first start of all reads and hashes the weights; the daemon remembers that, and the system the files.
        for number in range(-1, run.plan.cold_starts):
            for side in list(sides) if number % 2 else list(reversed(sides)):
                run.say(f"{name}: {side}, {'once for the caches' if number < 0 else number + 1}")
                command, text_of = sides[side]
                try:
                    seconds, text = _first_text(*command(run, probe), folder, text_of)
                except Exception as error:  # as of any side: the other one goes on
                    run.failed(name, side, f"{type(error).__name__}: {error}")
                    continue
                figures = speech_figures(Stretch([probe], [Answer(text, seconds)], seconds))
                figures["peak_rss_bytes"] = {}
                if number < 0:
                    run.case(name, title)[f"first_{side}_s"] = seconds
                else:
                    times[side].append(seconds)
                    run.add(name, title, side, figures)
    finally:
        shutil.rmtree(folder)
    run.finish(name, {"seconds, whisperd / script": ("seconds", "whisperd", "script")})


def _daemon_command(run: Run, probe: Clip) -> tuple[list[str], bytes]:
    request = {"jsonrpc": "2.0", "id": 1, "method": "transcribe", "params": {"audio": {"path": str(probe.path)}}}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in run.setup.settings.items()]
    if run.setup.device != "cpu":
        flags.append(f"--device={run.setup.device}")
    command = [sys.executable, "-m", "whisperd", "serve", "--stdio", "--model", run.setup.model, *flags]
    return command, json.dumps(request).encode() + b"\n"


_SCRIPT = """
import sys
from faster_whisper import WhisperModel
model = WhisperModel(sys.argv[1], device=sys.argv[2], compute_type=sys.argv[3])
segments, _ = model.transcribe(sys.argv[4])
print("".join(segment.text for segment in segments), flush=True)
"""


def _script_command(run: Run, probe: Clip) -> tuple[list[str], bytes]:
    arguments = [str(run.setup.folder), run.setup.device, run.setup.compute_type, str(probe.path)]
    return [sys.executable, "-c", _SCRIPT, *arguments], b""


def _daemon_text(line: bytes) -> str:
    reply = json.loads(line)
    if "result" not in reply:
        raise RuntimeError(f"the first reply is {line[:300]!r}")
    return str(reply["result"]["text"])


def _script_text(line: bytes) -> str:
    return line.decode().strip()


def _first_text(command: Sequence[str], stdin: bytes, folder: Path, text_of: Any) -> tuple[float, str]:
    """Seconds from the start of the process until its first line was read, and the text in it."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WHISPERD_")}
    environ |= {"XDG_STATE_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "WHISPERD_LOG_LEVEL": "warning"}
    began = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(stdin)
        process.stdin.close()
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
        if not line:
            raise RuntimeError(f"it ended with {process.wait(_COLD_TIMEOUT_S)} and said nothing")
        process.wait(_COLD_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    return seconds, text_of(line)

"""The sides that are no server: one process that loads faster-whisper and does what it is told on its stdin.

    python bench/inprocess.py serial|threads|batched|sketch MODEL_FOLDER DEVICE COMPUTE_TYPE

One JSON object a line in each direction. A command is {"files": […], "options": {…}}; the answer holds for each file
its text and when it was there, in seconds from the command's begin, so that the pipes to the parent are in no figure.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sketch
from faster_whisper import BatchedInferencePipeline, WhisperModel, decode_audio

from whisperd.inference.placement import prefer_wide_vectors

_BATCH_SIZE = 8  # of the batched pipeline; its own default
Command = Callable[[Sequence[str], dict[str, Any]], dict[str, Any]]


def cores() -> int:
    return len(os.sched_getaffinity(0))


def one_after_the_other(transcribe: Callable[..., Any], extra: dict[str, Any], threads: int) -> Command:
    """Files through faster-whisper's own `transcribe`, in so many threads at once."""

    def run(files: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
        began = time.perf_counter()

        def one(file: str) -> tuple[str, float]:
            segments, _ = transcribe(file, **extra, **options)
            text = "".join(segment.text for segment in segments).strip()
            return text, time.perf_counter() - began

        with ThreadPoolExecutor(threads) as pool:
            answers = list(pool.map(one, files))
        return {"seconds": time.perf_counter() - began, "answers": answers}

    return run


def all_known(model: WhisperModel) -> Command:
    def run(files: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
        samples = [decode_audio(file) for file in files]
        made = sketch.Sketch(model, samples, sketch.Settings(**options), cores())
        seconds = made.run()
        answers = [made.answers[index] for index in range(len(files))]
        return {"seconds": seconds, "answers": answers, "retried": made.retried}

    return run


def load(kind: str, folder: str, device: str, compute_type: str) -> Command:
    """faster-whisper as its users set it up; nothing is given but what makes the side what it is."""
    if kind == "sketch":
        prefer_wide_vectors()  # as the daemon's engine does
    several: dict[str, Any] = {"cpu_threads": 1, "num_workers": cores()} if kind in ("threads", "sketch") else {}
    model = WhisperModel(folder, device=device, compute_type=compute_type, local_files_only=True, **several)
    if kind == "serial":
        return one_after_the_other(model.transcribe, {}, 1)
    if kind == "threads":
        return one_after_the_other(model.transcribe, {}, cores())
    if kind == "batched":
        return one_after_the_other(BatchedInferencePipeline(model).transcribe, {"batch_size": _BATCH_SIZE}, 1)
    return all_known(model)


def main() -> int:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not get between the replies
    command = load(*sys.argv[1:5])
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = command(asked["files"], asked["options"])
        except Exception as error:  # it is reported as this side's failure, and the next command is taken
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=replies, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

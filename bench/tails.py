"""What a context costs and what it takes from the text: tails of silence, beams, and lengths of windows.

    python bench/tails.py [--model base] [--tails 2 3 4 6 0] [--beams 0 1 5]        short clips
    python bench/tails.py --windows 15 20 25 30 [--tails 3]                         long audio, cut into windows

The engine by itself, in this process and on one thread: no daemon, no arrivals. A tail of 0 stands for the full
context, a beam of 0 for what the daemon does where the client names none. Long audio is the long recordings and the
clips of each LibriSpeech chapter, one behind the other with short pauses, so that there is enough of it for the figures
to mean something; a third of a point is still chance.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from faster_whisper import decode_audio
from speech_set import Clip, Errors, clips, parser, save, table, word_errors

from whisperd.batching import context_frames
from whisperd.inference.engine import Recognizer
from whisperd.inference.placement import Placement
from whisperd.inference.rows import Row
from whisperd.media.vad import SpeechDetector
from whisperd.media.windows import plan_windows
from whisperd.messages import SAMPLE_RATE, DecodeOptions, RowOptions
from whisperd.models.names import ensure, resolve

SETS = ("librispeech", "ljspeech", "asterisk_en_8k")
_ROWS = 8
_CHAPTER_CLIPS = 8  # chapters with fewer are no long audio
_PAUSES_S = (0.05, 0.5)
Samples = npt.NDArray[np.float32]


@dataclass
class Trial:
    """One audio in windows, and what it should come to."""

    reference: str
    rows: list[Row]


def short_trials(every: int) -> list[Trial]:
    return [Trial(clip.text or "", [_row(decode_audio(str(clip.path)))]) for clip in clips(*SETS)[::every]]


def long_audio() -> list[tuple[str, Samples]]:
    found = [(clip.text or "", decode_audio(str(clip.path))) for clip in clips("longform")]
    chapters: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips("librispeech"):
        chapters["-".join(clip.path.name.split("-")[:2])].append(clip)
    chance = np.random.default_rng(1)
    for chapter in chapters.values():
        if len(chapter) >= _CHAPTER_CLIPS:
            parts = []
            for clip in sorted(chapter, key=lambda clip: clip.file):
                pause = np.zeros(int(SAMPLE_RATE * chance.uniform(*_PAUSES_S)), np.float32)
                parts += [decode_audio(str(clip.path)), pause]
            found.append((" ".join(clip.text or "" for clip in chapter), np.concatenate(parts)))
    return found


def cut(audio: Samples, probabilities: Sequence[float], window_s: float) -> list[Row]:
    plan = plan_windows(probabilities, len(audio), vad="auto", window_s=window_s)
    return [
        _row(audio[window.start : window.stop], sure_s, (stop - window.start) / SAMPLE_RATE)
        for window, sure_s, stop in zip(plan.windows, plan.sure_speech_s, plan.speech_stop, strict=True)
    ]


def _row(samples: Samples, sure_s: float = 30.0, stop_s: float = 30.0) -> Row:
    return Row(samples, RowOptions("en"), sure_s, stop_s)


def measure(recognizer: Recognizer, trials: Sequence[Trial], options: DecodeOptions) -> list[object]:
    """Errors, CPU seconds and retries, with the rows of all trials in batches of like contexts."""
    by_context: dict[int, list[tuple[int, int, Row]]] = defaultdict(list)
    for number, trial in enumerate(trials):
        for place, row in enumerate(trial.rows):
            by_context[context_frames(len(row.samples), options.tail_s)].append((number, place, row))
    texts: dict[tuple[int, int], str] = {}
    retried: Counter[str] = Counter()
    began = time.process_time()
    for frames, rows in sorted(by_context.items()):
        for batch in _batches(rows):
            results = recognizer.transcribe([row for *_, row in batch], options, frames, lambda: None)
            for (number, place, _), result in zip(batch, results, strict=True):
                texts[number, place] = "".join(segment.text for segment in result.segments)
                retried.update([result.retried] if result.retried else [])
    cpu_s = time.process_time() - began
    errors = Errors()
    for number, trial in enumerate(trials):
        errors += word_errors(trial.reference, " ".join(texts[number, place] for place in range(len(trial.rows))))
    audio_s = sum(row.duration_s for trial in trials for row in trial.rows)
    wrong = f"{errors.substituted}/{errors.deleted}/{errors.inserted}"
    return [f"{errors.percent:.2f}", wrong, f"{audio_s / cpu_s:.1f}", dict(retried)]


def _batches(rows: list[tuple[int, int, Row]]) -> Iterator[list[tuple[int, int, Row]]]:
    """Rows of like length together: a batch takes as many steps as its longest text."""
    rows.sort(key=lambda one: len(one[2].samples))
    for at in range(0, len(rows), _ROWS):
        yield rows[at : at + _ROWS]


def main() -> None:
    arguments = _arguments()
    recognizer = Recognizer(ensure(resolve(arguments.model)), Placement("cpu", "int8", 1, 1))
    if arguments.windows:
        detector = SpeechDetector()
        heard = [(text, audio, detector.speech_probabilities(audio)) for text, audio in long_audio()]
        sets = {f"{s:g} s": [Trial(t, cut(a, p, s)) for t, a, p in heard] for s in arguments.windows}
    else:
        sets = {"clip": short_trials(arguments.every)}
    rows: list[list[object]] = []
    for (length, trials), tail_s, beam in itertools.product(sets.items(), arguments.tails, arguments.beams):
        options = DecodeOptions(timestamps=not arguments.plain, beam_size=beam or None, tail_s=tail_s or None)
        found = measure(recognizer, trials, options)
        rows.append([length, f"{tail_s:g} s" if tail_s else "full", beam or "as needed", *found])
        print(*rows[-1], flush=True)
    print()
    header = ["window", "tail", "beam", "WER %", "S/D/I", "x realtime, one core", "rows decoded again"]
    table(header, rows)
    save(arguments, {"model": arguments.model, "header": header, "rows": rows})


def _arguments() -> argparse.Namespace:
    wanted = parser(__doc__ or "")
    wanted.add_argument("--model", default="tiny.en")
    wanted.add_argument("--every", type=int, default=1, help="every so many-th clip only")
    wanted.add_argument("--tails", type=float, nargs="+", default=[2.0, 3.0, 4.0, 6.0, 0.0])
    wanted.add_argument("--beams", type=int, nargs="+", default=[0])
    wanted.add_argument("--windows", type=float, nargs="*", help="cut long audio into windows, at most so long (s)")
    wanted.add_argument("--plain", action="store_true", help="without timestamps")
    return wanted.parse_args()


if __name__ == "__main__":
    main()

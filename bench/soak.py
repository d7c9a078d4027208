"""Does anything grow? Memory of each process while requests go through.

    python bench/soak.py --fake    the supervisor after 200, 2,000 and 8,000 requests, with the fake engine
    python bench/soak.py           300 requests with the real model, memory of every process on the way
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from speech_set import MB, clips, daemon, memory_bytes, parser, save, settings, table

SETS = ("librispeech", "ljspeech", "asterisk_en_8k")
FAKE_MARKS = (200, 400, 800, 1200, 1600, 2000, 8000)
REAL_MARKS = (50, 100, 150, 200, 250, 300)


def main() -> int:
    made = parser("Memory over many requests.")
    made.add_argument("--fake", action="store_true", help="the fake engine: only the supervisor is looked at")
    made.add_argument("--model", default="tiny.en")
    made.add_argument("--concurrency", type=int, default=8, help="requests at once")
    arguments = made.parse_args()
    paths = [clip.path for clip in clips(*SETS) if clip.seconds < 10]
    name = "fake" if arguments.fake else arguments.model
    marks = FAKE_MARKS if arguments.fake else REAL_MARKS
    history: dict[int, dict[str, int]] = {}
    with daemon(name, **settings(arguments)) as started, started.connect() as client:
        done = 0
        with ThreadPoolExecutor(arguments.concurrency) as threads:
            for mark in marks:
                wanted = [paths[number % len(paths)] for number in range(done, mark)]
                for result in threads.map(client.transcribe, wanted):
                    assert result.text, "every clip has words in it"
                done = mark
                history[mark] = {name: size for name, size in memory_bytes(client).items() if size}
    names = list(history[marks[0]])
    rows = [[name, *(f"{history[mark].get(name, 0) / MB:.1f}" for mark in marks)] for name in names]
    table(["RSS in MB after requests", *marks], rows)
    save(arguments, {str(mark): sizes for mark, sizes in history.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())

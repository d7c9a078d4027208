"""Many inputs through one client: several at once, results in the order of the inputs.

Bounded on both sides: `jobs` requests are under way, and no more than LOOKAHEAD results wait for an earlier one
that takes long. A failure is that input's result; only the loss of the daemon ends the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

from whisperd.cli.bar import REFRESH_S, Bar
from whisperd.cli.inputs import Input
from whisperd.client import AudioNotFound, Client, RequestFailed, Timeout, Transcript

LOOKAHEAD = 256  # transcripts of minutes of audio are some 10 kB each

Outcome = Transcript | RequestFailed | Timeout


def in_order(
    client: Client, inputs: Sequence[Input], options: dict[str, Any], jobs: int, bar: Bar
) -> Iterator[tuple[Input, Outcome]]:
    """Each input with its transcript or its error. Raises ConnectionLost. Leaving early cancels the rest."""

    def work(input: Input) -> Outcome:
        try:
            if input.problem:
                return AudioNotFound.local(input.problem)
            pending = client.submit(input.source, **options)
            bar.started(input, pending)
            return pending.result()
        except (RequestFailed, Timeout) as error:
            return error
        finally:
            bar.finished(input)

    rest = iter(inputs)
    with ThreadPoolExecutor(jobs, thread_name_prefix="whisperd-transcribe") as pool:
        window: deque[tuple[Input, Future[Outcome]]] = deque()
        try:  # from the first submission on: an interrupt may come while the others are being made
            window.extend((input, pool.submit(work, input)) for input in islice(rest, LOOKAHEAD))
            while window:
                input, future = window.popleft()
                yield input, _watch(future, bar)
                window.extend((following, pool.submit(work, following)) for following in islice(rest, 1))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()  # which lets go of the threads that wait for it
            raise


def _watch(future: Future[Outcome], bar: Bar) -> Outcome:
    while bar.shows_progress and not wait([future], REFRESH_S).done:
        bar.refresh()
    outcome = future.result()
    bar.refresh()
    return outcome

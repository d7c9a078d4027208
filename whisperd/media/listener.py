"""Speech probabilities while the audio is still being decoded.

Of long audio nothing can be transcribed before its first windows are known, and meanwhile the machine has little else
to do: decoding and the search for speech take about as long as each other. So the samples are looked at by a second
thread as they are written. It sees them as the memory file has them, in the same blocks, and comes to the same numbers.
"""

from __future__ import annotations

import array
import os
import queue
import threading
from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from whisperd.media.sample_file import SampleFile
from whisperd.media.vad import BLOCK_SAMPLES, SpeechDetector, read_samples, sample_blocks

_BEGIN_SAMPLES = 2 * BLOCK_SAMPLES  # less audio than this is one window, and not worth a thread
# Blocks told at once, two minutes of audio: planning them takes some ten milliseconds, after which the worker says that
# it is alive. Where decoding is slow, as of video, all of a day may be there at its end.
_TOLD_BLOCKS = 8


class Listener:
    """Listens to one input, of which several readers may write a file of samples; it hears the first one. To be closed,
    which ends the thread."""

    def __init__(self, detector: SpeechDetector) -> None:
        self._detector = detector
        self._file: SampleFile | None = None
        self._fd = -1
        self._thread: threading.Thread | None = None
        self._grown = threading.Condition()
        self._sample_count = 0
        self._whole = self._given_up = False
        # As arrays: lists of a day's probabilities would take 90 MB.
        self._found: queue.SimpleQueue[array.array[float] | BaseException | None] = queue.SimpleQueue()

    def written(self, file: SampleFile) -> None:
        """More samples are in the file."""
        if self._thread is None and file.sample_count >= _BEGIN_SAMPLES:
            self._file, self._fd = file, file.duplicate()
            self._thread = threading.Thread(target=self._listen, daemon=True)
            self._thread.start()
        if file is self._file:
            self._grow(file.sample_count)

    def probabilities(self, fd: int, sample_count: int) -> Iterator[list[float]]:
        """Those of the file that was chosen, now complete, some blocks at a time where they are there already."""
        if self._thread is None or not os.path.sameopenfile(fd, self._fd):
            self.close()
            yield from self._detector.probabilities(sample_blocks(fd, sample_count))
            return
        self._grow(sample_count, whole=True)
        ended = False
        while not ended:
            several: list[float] = []
            for count in range(_TOLD_BLOCKS):
                if count and self._found.empty():
                    break
                part = self._found.get()
                if isinstance(part, BaseException):
                    raise part
                ended = part is None
                several += part or ()
            if several:
                yield several

    def close(self) -> None:
        """Ends the thread, if there is one; a second call does nothing."""
        if self._thread is not None:
            with self._grown:
                self._given_up = True
                self._grown.notify()
            self._thread.join()  # some 40 ms at most
            os.close(self._fd)
            self._thread, self._file = None, None

    def _grow(self, sample_count: int, *, whole: bool = False) -> None:
        with self._grown:
            self._sample_count, self._whole = sample_count, whole
            self._grown.notify()

    def _listen(self) -> None:
        try:
            for part in self._detector.probabilities(self._blocks()):
                self._found.put(array.array("d", part))
            self._found.put(None)
        except BaseException as error:  # which belongs to the thread that asks
            self._found.put(error)

    def _blocks(self) -> Iterator[NDArray[np.float32]]:
        start = 0
        while True:
            with self._grown:
                self._grown.wait_for(partial(self._is_there, start + BLOCK_SAMPLES))
                count = min(BLOCK_SAMPLES, self._sample_count - start)
                if self._given_up or not count:
                    return
            yield read_samples(self._fd, start, count)
            start += count

    def _is_there(self, sample_count: int) -> bool:
        return self._whole or self._given_up or self._sample_count >= sample_count

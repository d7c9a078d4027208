"""Looking for speech while the audio is still being written: the same numbers as afterwards, whatever happens."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from whisperd.media.listener import Listener
from whisperd.media.sample_file import SampleFile
from whisperd.media.vad import SpeechDetector, sample_blocks
from whisperd.media.windows import FRAME_SAMPLES
from whisperd.messages import SAMPLE_RATE


@pytest.fixture(scope="module")
def detector() -> SpeechDetector:
    return SpeechDetector()


def noise(seconds: float, seed: int) -> NDArray[np.float32]:
    """A rumble that swells, of which the detector is not sure."""
    chance = np.random.default_rng(seed)
    samples = chance.normal(0, 0.05, int(seconds * SAMPLE_RATE)).cumsum()
    swell = np.sin(np.arange(samples.size) / SAMPLE_RATE * 3) ** 2
    return (samples / np.abs(samples).max(initial=1e-6) * swell).astype(np.float32)


def write(file: SampleFile, samples: NDArray[np.float32], listener: Listener, step: int) -> None:
    for start in range(0, samples.size, step):
        file.write(samples[start : start + step, np.newaxis], SAMPLE_RATE)
        listener.written(file)


def afterwards(detector: SpeechDetector, file: SampleFile) -> list[float]:
    """What is found when all is there."""
    fd = file.duplicate()
    parts = list(detector.probabilities(sample_blocks(fd, file.sample_count)))
    os.close(fd)
    return [each for part in parts for each in part]


def heard(listener: Listener, file: SampleFile) -> list[float]:
    fd = file.duplicate()
    parts = list(listener.probabilities(fd, file.sample_count))
    os.close(fd)
    assert all(parts)
    return [each for part in parts for each in part]


@pytest.mark.parametrize("step", [1_000, 131_072, 600_000])
@pytest.mark.parametrize("seconds", [0.0, 0.01, 20.0, 32.0, 48.0, 70.3])
def test_what_is_heard_meanwhile_is_what_is_heard_afterwards(
    detector: SpeechDetector, seconds: float, step: int
) -> None:
    file = SampleFile(3600.0)
    with closing(Listener(detector)) as listener:
        write(file, noise(seconds, 1), listener, step)
        assert heard(listener, file) == afterwards(detector, file)
    file.close()


def test_what_is_there_already_comes_in_pieces(detector: SpeechDetector) -> None:
    """Or the worker would be silent for as long as it takes to plan a day of audio."""
    file = SampleFile(3600.0)
    with closing(Listener(detector)) as listener:
        write(file, noise(300, 1), listener, 131_072)
        fd = file.duplicate()
        parts = listener.probabilities(fd, file.sample_count)
        first = len(next(parts))
        assert listener._thread
        listener._thread.join(30.0)
        assert not listener._thread.is_alive()
        sizes = [len(part) for part in parts]
        os.close(fd)
    assert first + sum(sizes) == -(-file.sample_count // FRAME_SAMPLES)
    assert len(sizes) > 1
    assert max(sizes) <= 128 * SAMPLE_RATE / FRAME_SAMPLES
    file.close()


def test_the_file_that_is_chosen_counts(detector: SpeechDetector) -> None:
    """A second reader may have got more out of the input than the first."""
    first, second = SampleFile(3600.0), SampleFile(3600.0)
    with closing(Listener(detector)) as listener:
        write(first, noise(40, 1), listener, 131_072)
        write(second, noise(60, 2), listener, 131_072)
        assert heard(listener, second) == afterwards(detector, second)
    with closing(Listener(detector)) as listener:
        write(first, noise(1, 1), listener, 131_072)
        write(second, noise(1, 2), listener, 131_072)
        assert heard(listener, first) == afterwards(detector, first)
    first.close()
    second.close()


def test_nothing_is_left_when_decoding_fails(detector: SpeechDetector) -> None:
    """Nor when nobody wants the rest."""
    file = SampleFile(3600.0)
    threads, descriptors = threading.active_count(), psutil.Process().num_fds()

    def fail() -> None:
        with closing(Listener(detector)) as listener:
            write(file, noise(40, 1), listener, 131_072)
            assert threading.active_count() == threads + 1
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    fd = file.duplicate()
    with closing(Listener(detector)) as listener:
        write(file, noise(40, 1), listener, 131_072)
        assert next(iter(listener.probabilities(fd, file.sample_count)))
    os.close(fd)
    assert (threading.active_count(), psutil.Process().num_fds()) == (threads, descriptors)
    file.close()


def test_what_goes_wrong_in_the_thread_is_told_to_who_asks() -> None:
    class Broken(SpeechDetector):
        def probabilities(self, blocks: Iterable[NDArray[np.float32]]) -> Iterator[list[float]]:
            yield from super().probabilities(np.zeros(1_000, np.float32) for _ in blocks)

    file = SampleFile(3600.0)
    with closing(Listener(Broken())) as listener:
        write(file, noise(50, 1), listener, 131_072)
        with pytest.raises(ValueError, match="multiple of 512"):
            heard(listener, file)
    file.close()

"""Where somebody speaks: samples in, one speech probability per 32 ms out.

The model is Silero's, in the file that faster-whisper ships; the package is located but not imported,
because it would bring the whole engine along. The model is recurrent: audio is fed in blocks with its
state carried over, which gives the same numbers as all at once, in little memory, and lets the caller
show that it is alive.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from whisperd.media.windows import FRAME_SAMPLES

_MODEL_FILE = Path("assets", "silero_vad_v6.onnx")
_CONTEXT_SAMPLES = 64  # each frame is shown with the end of the one before
_STATE_SHAPE = (1, 1, 128)
BLOCK_SAMPLES = 500 * FRAME_SAMPLES  # 16 s of audio, some 40 ms of work, 2 MB


class SpeechDetector:
    """The loaded model. One thread; keeps no state between audios."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = 1
        options.intra_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # or the largest block ever seen stays allocated
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            str(model_path()), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def probabilities(self, blocks: Iterable[NDArray[np.float32]]) -> Iterator[list[float]]:
        """For each block the probabilities of its frames.

        Blocks are 16 kHz mono, of any whole number of frames; the last may end within one. Raises ValueError
        for another that does.
        """
        hidden = np.zeros(_STATE_SHAPE, np.float32)
        cell = np.zeros(_STATE_SHAPE, np.float32)
        before = np.zeros((1, _CONTEXT_SAMPLES), np.float32)
        ended = False
        for block in blocks:
            if ended:
                raise ValueError(f"only the last block may have a length that is no multiple of {FRAME_SAMPLES}")
            missing = -block.size % FRAME_SAMPLES
            ended = bool(missing)
            frames = np.pad(block, (0, missing)).reshape(-1, FRAME_SAMPLES)
            if not len(frames):
                continue
            ends = np.concatenate((before, frames[:, -_CONTEXT_SAMPLES:]))
            before = ends[-1:]
            inputs = {"input": np.concatenate((ends[:-1], frames), axis=1), "h": hidden, "c": cell}
            speech, hidden, cell = self._session.run(None, inputs)
            yield np.asarray(speech).reshape(-1).tolist()

    def speech_probabilities(self, samples: NDArray[np.float32]) -> list[float]:
        """One probability per started frame of audio that is in memory."""
        cuts = range(0, samples.size, BLOCK_SAMPLES)
        blocks = (samples[start : start + BLOCK_SAMPLES] for start in cuts)
        return [probability for part in self.probabilities(blocks) for probability in part]


def model_path() -> Path:
    """The model's file. Raises FileNotFoundError where faster-whisper is missing or no longer ships it."""
    spec = importlib.util.find_spec("faster_whisper")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("faster-whisper is not installed; it brings the speech detector's model")
    path = Path(spec.origin).parent / _MODEL_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; this faster-whisper does not ship the expected model")
    return path


def sample_blocks(fd: int, sample_count: int) -> Iterator[NDArray[np.float32]]:
    """The samples of a memory file in blocks for `probabilities`."""
    for start in range(0, sample_count, BLOCK_SAMPLES):
        yield read_samples(fd, start, min(BLOCK_SAMPLES, sample_count - start))


def read_samples(fd: int, start: int, count: int) -> NDArray[np.float32]:
    """Samples of a memory file of float32, read by position."""
    return np.frombuffer(os.pread(fd, count * 4, start * 4), "<f4")

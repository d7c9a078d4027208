"""What the engine could give if all clips were known in advance: the mark for the scheduler.

Nothing here waits, arrives, is checked or is answered. Clips are sorted by length, put into batches of eight and
decoded by one thread per core, with the tail of silence, beam and timestamps that the daemon uses in the run it is
compared with: long clips without timestamp tokens, but with an alignment of the text where times are wanted. Rows that
look wrong are decoded again with the full context, so that the text is as good. The audio is decoded beforehand and
nobody looks for speech, both of which the daemon has to do in its time.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from ctranslate2 import Device, StorageView
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer

_RATE, _HOP = 16_000, 160
_FULL_FRAMES = 3000
_ROWS = 8
_DOUBTFUL_RATIO, _DOUBTFUL_LOGPROB = 2.4, -1.0


@dataclass(frozen=True)
class Settings:
    """As the daemon has them. `language` None: it is detected, by the first encoding, as the daemon does."""

    tail_s: float
    bucket_s: float
    beam_size: int
    timestamps: bool
    language: str | None
    long_s: float  # clips from here on get half the tail, `long_beam_size` and no timestamp tokens
    long_beam_size: int
    unsure_beam: int = 0  # for the rows whose text is less likely than this, after a greedy look; 0: no second look
    unsure_logprob: float = 0.0


@dataclass(frozen=True)
class _Batch:
    frames: int
    rows: tuple[int, ...]
    long: bool

    @property
    def work(self) -> int:
        return self.frames * len(self.rows)


@dataclass(frozen=True)
class _Found:
    """A row's text, how likely it is, and whether it looks as if the short context had misled the model."""

    text: str
    tokens: list[int]
    logprob: float
    doubtful: bool


class Sketch:
    """One run over samples (16 kHz, float32) that are all here."""

    def __init__(self, model: WhisperModel, samples: Sequence[Any], settings: Settings, threads: int) -> None:
        self._model = model
        self._samples = samples
        self._settings = settings
        self._threads = threads
        self._tokenizers: dict[str, Tokenizer] = {}
        self._lock = threading.Lock()
        self._began = 0.0
        self.answers: dict[int, tuple[str, float]] = {}  # text and when it was there, in seconds
        self.retried = 0

    def run(self) -> float:
        """Decodes everything. Returns the seconds it took."""
        self._began = time.perf_counter()
        batches = sorted(self._batches(), key=lambda batch: -batch.work)
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(self._decode, batches))
        return time.perf_counter() - self._began

    def _is_long(self, index: int) -> bool:
        return len(self._samples[index]) / _RATE >= self._settings.long_s

    def _frames(self, index: int) -> int:
        bucket = round(self._settings.bucket_s * 100)
        tail_s = self._settings.tail_s / 2 if self._is_long(index) else self._settings.tail_s
        wanted = (len(self._samples[index]) / _RATE + tail_s) * 100
        return min(_FULL_FRAMES, int(-(-wanted // bucket)) * bucket)

    def _batches(self) -> list[_Batch]:
        alike: dict[tuple[int, bool], list[int]] = {}
        for index in sorted(range(len(self._samples)), key=lambda index: len(self._samples[index])):
            alike.setdefault((self._frames(index), self._is_long(index)), []).append(index)
        return [
            _Batch(frames, tuple(indexes[first : first + _ROWS]), long)
            for (frames, long), indexes in alike.items()
            for first in range(0, len(indexes), _ROWS)
        ]

    def _decode(self, batch: _Batch) -> None:
        for index, found in zip(batch.rows, self._texts(batch), strict=True):
            text = found.text
            if found.doubtful and batch.frames < _FULL_FRAMES:
                text = self._texts(_Batch(_FULL_FRAMES, (index,), batch.long))[0].text
                with self._lock:
                    self.retried += 1
            self.answers[index] = (text, time.perf_counter() - self._began)

    def _texts(self, batch: _Batch) -> list[_Found]:
        settings = self._settings
        encoded = self._encode(batch)
        tokenizers = self._tokenizers_for(batch, encoded)
        beam_size = settings.long_beam_size if batch.long else settings.beam_size
        found = self._generate(batch, encoded, tokenizers, beam_size)
        unsure = [row for row, one in enumerate(found)
                  if settings.unsure_beam and not one.doubtful and one.logprob < settings.unsure_logprob]  # fmt: skip
        if unsure:
            again = _Batch(batch.frames, tuple(batch.rows[row] for row in unsure), batch.long)
            rows = StorageView.from_array(np.ascontiguousarray(np.array(encoded.to_device(Device.cpu))[unsure]))
            own = [tokenizers[row] for row in unsure]
            for row, one in zip(unsure, self._generate(again, rows, own, settings.unsure_beam), strict=True):
                found[row] = one
        if batch.long and settings.timestamps:
            self._align(batch, encoded, tokenizers, found)
        return found

    def _align(
        self, batch: _Batch, encoded: Any, tokenizers: Sequence[Tokenizer], found: Sequence[_Found]
    ) -> None:
        """Finds the times of the words, one row after the other; nobody wants to know them here."""
        outputs = np.array(encoded.to_device(Device.cpu))
        for row, (index, tokenizer, one) in enumerate(zip(batch.rows, tokenizers, found, strict=True)):
            frames = min(_FULL_FRAMES, len(self._samples[index]) // _HOP)
            own = StorageView.from_array(np.ascontiguousarray(outputs[row : row + 1]))
            self._model.find_alignment(tokenizer, [one.tokens], own, [frames])

    def _generate(
        self, batch: _Batch, encoded: Any, tokenizers: Sequence[Tokenizer], beam_size: int
    ) -> list[_Found]:
        plain = batch.long or not self._settings.timestamps
        prompts = [self._model.get_prompt(tokenizer, [], without_timestamps=plain) for tokenizer in tokenizers]
        longest_s = max(len(self._samples[index]) for index in batch.rows) / _RATE
        cap = 224 if batch.frames >= _FULL_FRAMES else max(32, int(8 * longest_s) + 24)
        results = self._model.model.generate(
            encoded,
            prompts,
            beam_size=beam_size,
            max_length=2 * cap,  # of which CTranslate2 writes half
            max_initial_timestamp_index=50,
            return_scores=True,
        )
        return [_read(result, tokenizer, cap) for result, tokenizer in zip(results, tokenizers, strict=True)]

    def _encode(self, batch: _Batch) -> Any:
        features = []
        for index in batch.rows:
            samples = self._samples[index][: batch.frames * _HOP]
            samples = np.pad(samples, (0, batch.frames * _HOP - len(samples)))
            features.append(self._model.feature_extractor(samples, padding=0)[..., : batch.frames])
        if self._model.model.device != "cpu":
            return self._model.encode(np.stack(features))
        # on a CPU a batch of encodings is slower than one after the other: it falls out of the cache
        return StorageView.from_array(np.concatenate([np.array(self._model.encode(one)) for one in features]))

    def _tokenizers_for(self, batch: _Batch, encoded: Any) -> list[Tokenizer]:
        if not self._model.model.is_multilingual:
            languages = ["en"] * len(batch.rows)
        elif self._settings.language:
            languages = [self._settings.language] * len(batch.rows)
        else:
            languages = [found[0][0][2:-2] for found in self._model.model.detect_language(encoded)]
        with self._lock:
            for language in languages:
                if language not in self._tokenizers:
                    self._tokenizers[language] = Tokenizer(
                        self._model.hf_tokenizer,
                        self._model.model.is_multilingual,
                        task="transcribe",
                        language=language,
                    )
        return [self._tokenizers[language] for language in languages]


def _read(result: Any, tokenizer: Tokenizer, cap: int) -> _Found:
    tokens = result.sequences_ids[0]
    words = [token for token in tokens if token < tokenizer.eot]
    text = tokenizer.decode(words).strip()
    data = text.encode()
    mean_logprob = result.scores[0] * len(tokens) / (len(tokens) + 1)
    doubtful = (
        len(tokens) >= cap - 1
        or mean_logprob < _DOUBTFUL_LOGPROB
        or (bool(data) and len(data) / len(zlib.compress(data)) > _DOUBTFUL_RATIO)
        or _says_its_end_twice(text)
    )
    return _Found(text, words, mean_logprob, doubtful)


def _says_its_end_twice(text: str) -> bool:
    """Whether the last three words or more stand once more right before themselves, or the last sentence does."""
    words = [word.strip(".,;:!?\"'").lower() for word in text.split()]
    for size in range(3, len(words) // 2 + 1):
        if words[-size:] == words[-2 * size : -size]:
            return True
    sentences = [part.strip().lower() for part in text.replace("!", ".").replace("?", ".").split(".") if part.strip()]
    return any(one == two and len(one.split()) > 1 for one, two in pairwise(sentences))

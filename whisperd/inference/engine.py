"""The only module that knows faster-whisper and CTranslate2: a batch of windows in, text with figures out.

Five things are decided here and nowhere else.

*Short context.* Whisper is trained on 30 s, and padding short windows to it is most of their cost. Windows come with
a shorter context (`frames`) whose end is silence. A model so fed sometimes fails to stop: it repeats itself or
runs on. The guard (`attempts.guard`) finds those rows, and they alone are decoded again with the full context.

*Two ways to decode.* Short windows tell their times by timestamp tokens. Long ones (`messages.is_long`) are decoded
without them, and their sentences are found by aligning the text with the audio.

*A beam where it helps.* Unless the client names a `beam_size`, short rows are decoded greedily, which costs half as
much, and only those whose text is unsure once more with a beam, from the same encoding. Long ones get a narrow one.

*Temperature fallback*, as in openai/whisper: a row that is too repetitive or too unlikely is decoded again, alone, at
the next temperature, so that one bad row changes nothing for its neighbours.

*No memory.* Nothing of one call is kept for the next but the model itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import numpy.typing as npt
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import _LANGUAGE_CODES, Tokenizer
from faster_whisper.transcribe import get_compression_ratio, get_suppressed_tokens, merge_punctuations
from faster_whisper.utils import download_model

from whisperd.errors import WhisperdError
from whisperd.inference.attempts import (
    Attempt,
    generation_limit,
    guard,
    is_sparse,
    is_unsure,
    likeliest,
    needs_fallback,
    token_cap,
)
from whisperd.inference.placement import Placement, prefer_wide_vectors
from whisperd.inference.prompts import Prompt, share_prompt
from whisperd.inference.rows import Heard, Row, by_context, in_one, joined, padded, rest_of, rest_of_text, stretches_of
from whisperd.inference.sentences import split_at_sentences
from whisperd.inference.timestamps import AlignedWord, Sentence, with_words
from whisperd.messages import (
    FRAMES_MAX,
    FRAMES_PER_SECOND,
    SAMPLE_RATE,
    DecodeOptions,
    Segment,
    WindowResult,
    Word,
    is_long,
)

_HOP = SAMPLE_RATE // FRAMES_PER_SECOND  # samples per log-mel frame
_MAX_INITIAL_TIMESTAMP = 50  # in timestamp tokens: speech is expected to begin in the first second
_BEAM_SIZE = 5  # of the second look at an unsure row; faster-whisper's default
_BEST_OF = 5  # samples drawn at a temperature above zero, of which the likeliest is kept
Beat = Callable[[], None]


def load(path: Path, wanted: Placement) -> Recognizer:
    """The model in memory. "auto" takes the GPU if there is one that works. Raises WhisperdError model_load_failed."""
    if wanted.device != "auto":
        return Recognizer(path, wanted.settled(wanted.device))
    if ctranslate2.get_cuda_device_count() > 0:
        try:
            recognizer = Recognizer(path, wanted.settled("cuda"))
            recognizer.try_out()
            return recognizer
        except (WhisperdError, RuntimeError) as error:  # a driver without the CUDA libraries that CTranslate2 wants
            sys.stderr.write(f"there is a GPU, but it cannot be used: {error}; going on with the CPU\n")
    return Recognizer(path, wanted.settled("cpu"))


class Recognizer:
    """A loaded model. `transcribe` may be called from as many threads at once as there are lanes."""

    def __init__(self, path: Path, placement: Placement) -> None:
        """`placement` is settled. Raises WhisperdError model_load_failed."""
        self.placement = placement
        prefer_wide_vectors()
        try:
            self.model = WhisperModel(
                str(path),
                device=placement.device,
                compute_type=placement.compute_type,
                cpu_threads=placement.threads,
                num_workers=placement.workers,
                local_files_only=True,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise WhisperdError("model_load_failed", f"{path}: {error}") from error
        self.multilingual = bool(self.model.model.is_multilingual)
        self._tokenizers: dict[tuple[str, str], Tokenizer] = {}
        self.languages = self._known_languages()

    def try_out(self) -> None:
        """One look at silence. Raises RuntimeError where the device's libraries are missing."""
        self.model.encode(np.zeros((self.model.model.n_mels, 2 * FRAMES_PER_SECOND), dtype=np.float32))

    def _known_languages(self) -> list[str]:
        """Language codes whose token the model has; older models lack some."""
        if not self.multilingual:
            return ["en"]
        vocabulary = self.model.hf_tokenizer
        return [code for code in _LANGUAGE_CODES if vocabulary.token_to_id(f"<|{code}|>") is not None]

    def transcribe(
        self, rows: Sequence[Row], options: DecodeOptions, frames: int, beat: Beat
    ) -> list[WindowResult]:
        """Decodes a batch. `beat` is called between the steps, so that a hang can be told from hard work."""
        heard = self._decode(rows, options, frames, beat)
        results = [one.result for one in heard]
        rests = {i: rest for i, row in enumerate(rows) if (rest := rest_of_text(row, heard[i].stretches))}
        for rest_frames, indexes in by_context(rows, rests, options).items():
            rest_rows = [rest_of(rows[i], rests[i].cut_s, results[i].language) for i in indexes]
            for i, again in zip(indexes, self.transcribe(rest_rows, options, rest_frames, beat), strict=True):
                results[i] = joined(results[i], again, rests[i])
        if not options.timestamps:
            results = [in_one(result, row) for result, row in zip(results, rows, strict=True)]
        warnings = self._prompt(options).warnings
        return [replace(result, warnings=warnings) for result in results]

    def _decode(
        self, rows: Sequence[Row], options: DecodeOptions, frames: int, beat: Beat
    ) -> list[Heard]:
        """One pass over a batch, with a second look at the rows that failed."""
        encoded = self._encode(rows, frames, beat)
        languages = self._languages(rows, encoded)
        tokenizers = [self._tokenizer(language, row.options.task)
                      for (language, _), row in zip(languages, rows, strict=True)]  # fmt: skip
        attempts = self._first_attempts(encoded, rows, tokenizers, options, frames, beat)
        heard = []
        for i, (row, tokenizer, attempt) in enumerate(zip(rows, tokenizers, attempts, strict=True)):
            reason = guard(attempt, options) if frames < FRAMES_MAX else None
            own, row_encoded, index = attempt, encoded, i
            if reason or needs_fallback(attempt, options):
                own, row_encoded = self._retry(row, tokenizer, options, None if frames < FRAMES_MAX else attempt, beat)
                reason, index = reason or "temperature", 0
            sentences = self._sentences(row, tokenizer, own, options, row_encoded, index)
            beat()
            language, probability = languages[i]
            segments = [_segment(n, tokenizer, own, one, row.options.words) for n, one in enumerate(sentences)]
            result = WindowResult(tuple(segments), language, probability, reason)
            heard.append(Heard(result, [stretch for stretch, _ in sentences]))
        return heard

    def _first_attempts(
        self,
        encoded: Any,
        rows: Sequence[Row],
        tokenizers: Sequence[Tokenizer],
        options: DecodeOptions,
        frames: int,
        beat: Beat,
    ) -> list[Attempt]:
        """One attempt for each row at the first temperature, with the beam that was asked for or that the row needs."""
        attempts: dict[int, Attempt] = {}

        def decode(chosen: Sequence[int], suited: DecodeOptions) -> None:
            own = [rows[i] for i in chosen], [tokenizers[i] for i in chosen]
            found = self._generate(_rows_of(encoded, chosen), *own, suited, options.temperatures[0], frames)
            attempts.update(zip(chosen, found, strict=True))
            beat()

        for suited in dict.fromkeys(options.for_window(row.duration_s) for row in rows):
            chosen = [i for i, row in enumerate(rows) if options.for_window(row.duration_s) == suited]
            decode(chosen, suited)
            unsure = [i for i in chosen if is_unsure(attempts[i])]
            if options.beam_size is None and options.temperatures[0] == 0 and unsure:
                decode(unsure, replace(suited, beam_size=_BEAM_SIZE))
        return [attempts[i] for i in range(len(rows))]

    def detect(self, rows: Sequence[Row], beat: Beat) -> list[WindowResult]:
        """Language probabilities of each row, best first, from the full context."""
        if not self.multilingual:
            found = [[("en", 1.0)] for _ in rows]
        else:
            encoded = self._encode(rows, FRAMES_MAX, beat)
            found = [[(token[2:-2], p) for token, p in row] for row in self.model.model.detect_language(encoded)]
        return [WindowResult((), *every[0], languages=tuple(every)) for every in found]

    def _encode(self, rows: Sequence[Row], frames: int, beat: Beat) -> Any:
        """Encoder output of shape [rows, frames / 2, d_model].

        Silence is padded as samples, then turned into log-mel: zeros put into the log-mel are no silence to the
        model. On a CPU rows are encoded one by one, because a batch of them only falls out of the cache.
        """
        features = [
            self.model.feature_extractor(padded(row.samples, frames * _HOP), padding=0)[..., :frames] for row in rows
        ]
        if self.model.model.device != "cpu":
            encoded = self.model.encode(np.stack(features))
            beat()
            return encoded
        outputs: npt.NDArray[np.float32] | None = None
        for i, one in enumerate(features):
            output = np.asarray(self.model.encode(one))
            if outputs is None:
                outputs = np.empty((len(features), *output.shape[1:]), output.dtype)
            outputs[i] = output[0]
            beat()
        return ctranslate2.StorageView.from_array(outputs)

    def _languages(self, rows: Sequence[Row], encoded: Any) -> list[tuple[str, float]]:
        if not self.multilingual:
            return [("en", 1.0)] * len(rows)
        if all(row.options.language for row in rows):
            return [(str(row.options.language), 1.0) for row in rows]
        detected = self.model.model.detect_language(encoded)
        return [
            (row.options.language, 1.0) if row.options.language else (found[0][0][2:-2], float(found[0][1]))
            for row, found in zip(rows, detected, strict=True)
        ]

    def _tokenizer(self, language: str, task: str) -> Tokenizer:
        key = (language, task)
        if key not in self._tokenizers:
            self._tokenizers[key] = Tokenizer(
                self.model.hf_tokenizer, self.multilingual, task=task, language=language
            )
        return self._tokenizers[key]

    def _prompt(self, options: DecodeOptions) -> Prompt:
        """The tokens of `hotwords` and `initial_prompt`, within half of the model's place for tokens."""
        hotwords, initial = (
            self.model.hf_tokenizer.encode(" " + text.strip(), add_special_tokens=False).ids if text else []
            for text in (options.hotwords, options.initial_prompt)
        )
        return share_prompt(hotwords, initial, self.model.max_length // 2 - 1)

    def _generate(
        self,
        encoded: Any,
        rows: Sequence[Row],
        tokenizers: Sequence[Tokenizer],
        options: DecodeOptions,
        temperature: float,
        frames: int,
    ) -> list[Attempt]:
        previous = list(self._prompt(options).tokens)  # the hotwords are in it: get_prompt would bound them apart
        prompts = [
            self.model.get_prompt(tokenizer, previous, without_timestamps=not options.timestamps)
            for tokenizer in tokenizers
        ]
        prompt_tokens = len(prompts[0])
        room = min(self.model.max_length // 2, self.model.max_length - prompt_tokens)
        cap = token_cap(max(row.duration_s for row in rows), frames, room)
        sampling: dict[str, Any] = {"beam_size": options.beam_size or 1}
        if temperature > 0:
            # sampling_topk 0 means all tokens; its default of 1 would make every temperature greedy
            sampling = {"beam_size": 1, "num_hypotheses": _BEST_OF, "sampling_topk": 0,
                        "sampling_temperature": temperature}  # fmt: skip
        results = self.model.model.generate(
            encoded,
            prompts,
            max_length=generation_limit(cap, prompt_tokens),
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=self._suppressed(tokenizers[0], options),
            max_initial_timestamp_index=_MAX_INITIAL_TIMESTAMP,
            **sampling,
        )
        return [
            _attempt(result, tokenizer, temperature, cap)
            for result, tokenizer in zip(results, tokenizers, strict=True)
        ]

    def _suppressed(self, tokenizer: Tokenizer, options: DecodeOptions) -> list[int]:
        """CTranslate2 writes to the ids it is given without a look: one beyond the vocabulary ends the process."""
        vocabulary = self.model.hf_tokenizer.get_vocab_size()
        known = [token for token in options.suppress_tokens if token < vocabulary]
        return list(get_suppressed_tokens(tokenizer, known))

    def _retry(
        self, row: Row, tokenizer: Tokenizer, options: DecodeOptions, first: Attempt | None, beat: Beat
    ) -> tuple[Attempt, Any]:
        """One row alone with the full context, down the temperatures; `first` is what the first of them gave
        with the full context, if it was tried. Returns the kept attempt and the row's encoder output."""
        encoded = self._encode([row], FRAMES_MAX, beat)
        tried = [first] if first else []
        if first and row.faint:
            return first, encoded
        options = replace(options.for_window(row.duration_s), beam_size=options.beam_size or _BEAM_SIZE)
        for temperature in options.temperatures[len(tried) :]:
            attempt = self._generate(encoded, [row], [tokenizer], options, temperature, FRAMES_MAX)[0]
            beat()
            tried.append(attempt)
            if not needs_fallback(attempt, options) or row.faint:
                return attempt, encoded  # (where there may be no speech, guessing on would only invent some)
        return likeliest(tried, options), encoded

    def _sentences(
        self, row: Row, tokenizer: Tokenizer, attempt: Attempt, options: DecodeOptions, encoded: Any, index: int
    ) -> list[Sentence]:
        """The attempt's text by its times, which for long windows are found by alignment; where nobody asked for times,
        only if the text may have stopped early."""
        stretches = stretches_of(row, attempt, options, tokenizer.timestamp_begin, tokenizer.eot)
        long = is_long(row.duration_s)
        wanted = row.options.words or long if options.timestamps else is_sparse(attempt, row.speech_s)
        if not stretches or not wanted:
            return [(stretch, []) for stretch in stretches]
        tokens = [token for stretch in stretches for token in stretch.tokens]
        words = self._aligned(row, tokenizer, tokens, encoded, index)
        if long or not options.timestamps:
            return split_at_sentences(tokens, words, row.duration_s) or [(stretches[0], [])]
        return with_words(stretches, words, row.duration_s)

    def _aligned(
        self, row: Row, tokenizer: Tokenizer, tokens: list[int], encoded: Any, index: int
    ) -> list[AlignedWord]:
        """The words of a text, found in the window's encoder output."""
        speech_frames = min(FRAMES_MAX, max(2, int(len(row.samples) / _HOP)))
        found = self.model.find_alignment(tokenizer, [tokens], _rows_of(encoded, [index]), [speech_frames])[0]
        merge_punctuations(found, "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、")
        return [
            AlignedWord(w["word"], float(w["start"]), float(w["end"]), float(w["probability"]), len(w["tokens"]))
            for w in found
        ]


def _segment(number: int, tokenizer: Tokenizer, attempt: Attempt, sentence: Sentence, words: bool) -> Segment:
    stretch, own = sentence
    return Segment(
        id=number,
        start=own[0].start if own else stretch.start,
        end=own[-1].end if own else stretch.end,
        text=tokenizer.decode(list(stretch.tokens)),
        avg_logprob=attempt.avg_logprob,
        no_speech_prob=attempt.no_speech_prob,
        compression_ratio=attempt.compression_ratio,
        temperature=attempt.temperature,
        words=tuple(Word(w.word, w.start, w.end, w.probability) for w in own) if words else None,
    )


def _rows_of(encoded: Any, indexes: Sequence[int]) -> Any:
    """Some rows of encoder output, still of three dimensions."""
    if encoded.shape[0] == len(indexes):
        return encoded
    on_cpu = encoded.to_device(ctranslate2.Device.cpu) if encoded.device != "cpu" else encoded
    return ctranslate2.StorageView.from_array(np.array(on_cpu)[list(indexes)])


def _attempt(result: Any, tokenizer: Tokenizer, temperature: float, cap: int) -> Attempt:
    tokens = result.sequences_ids[0]
    text = tokenizer.decode(tokens).strip()
    return Attempt(
        tokens=tuple(tokens),
        text=text,
        # the score is the mean over the tokens; openai/whisper's mean counts the end of text too
        avg_logprob=result.scores[0] * len(tokens) / (len(tokens) + 1),
        no_speech_prob=result.no_speech_prob,
        compression_ratio=get_compression_ratio(text),
        temperature=temperature,
        capped=len(tokens) >= cap - 1,
    )


def main() -> int:
    """`python -m whisperd.inference.engine download NAME`: fetches a model from its hub, prints the folder."""
    if len(sys.argv) != 3 or sys.argv[1] != "download":
        sys.stderr.write("usage: python -m whisperd.inference.engine download NAME\n")
        return 2
    try:
        folder = download_model(sys.argv[2])
    except Exception as error:  # the hub client raises many kinds; each ends here as one line for the caller
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

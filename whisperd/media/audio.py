"""An input's bytes to samples: which reader is asked, when a second one is, and what counts as audio.

The container is found from the bytes. libsndfile reads what it reads well, FFmpeg the rest and whatever
libsndfile could not read to its end; of two attempts the longer one counts. A file that breaks off is audio
with a warning, as long as anything could be decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from whisperd.errors import WhisperdError
from whisperd.media import containers
from whisperd.media.input import AudioHints, AudioInput
from whisperd.media.readers import PCM, Attempt, Blocks, read_ffmpeg, read_headerless, read_libsndfile, read_pcm
from whisperd.media.sample_file import SampleFile

_END_BYTES = 1 << 16  # looked at on both ends of the input; an Ogg page is never longer
_KNOWN = "wav, flac, mp3, ogg, opus, m4a, mp4, webm, mkv, aac, wma, ac3, aiff, au, caf"


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """`fd`, the caller's: a sealed memory file of `sample_count` float32 samples, 16 kHz, mono."""

    fd: int
    sample_count: int
    warnings: tuple[str, ...]


def decode_audio(
    source: AudioInput,
    hints: AudioHints,
    *,
    max_audio_s: float,
    on_block: Callable[[], None],
    on_written: Callable[[SampleFile], None],
) -> DecodedAudio:
    """Decodes the whole input. `on_block` is called between pieces of work that take far below half a second;
    `on_written` after each block with the file that it was written to, which need not be the one that is chosen.

    Raises WhisperdError: `audio_unreadable`, or `audio_too_long` as soon as `max_audio_s` is passed.
    """
    head = source.read_at(0, _END_BYTES)
    attempts: list[Attempt] = []
    try:
        for reader in _readers(source, hints, head, attempts):
            attempts.append(Attempt(SampleFile(max_audio_s), on_block, on_written))
            attempts[-1].run(reader(attempts[-1]))
        best = max(attempts, key=lambda attempt: attempt.samples.sample_count)
        if not best.samples.sample_count:
            raise WhisperdError("audio_unreadable", _why_unreadable(attempts, source, head))
        best.samples.seal()
        warnings = tuple(_warnings(best, source, head))
        return DecodedAudio(best.samples.detach(), best.samples.sample_count, warnings)
    finally:
        for attempt in attempts:
            attempt.samples.close()


def _readers(
    source: AudioInput, hints: AudioHints, head: bytes, attempts: list[Attempt]
) -> Iterator[Callable[[Attempt], Blocks]]:
    """The readers to ask, one after the other; `attempts` tells how those before fared."""
    if hints.format in PCM:
        yield partial(read_pcm, source, hints)
        return
    if source.offset_is_ours and containers.libsndfile_reads(head):
        yield partial(read_libsndfile, source)
        if attempts[0].samples.sample_count and not attempts[0].ends_early():
            return
    yield partial(read_ffmpeg, source, head)
    codec = containers.headerless_codec(hints.format, hints.suffix)
    if codec and not containers.signature(head) and not any(attempt.recognised for attempt in attempts):
        yield partial(read_headerless, source, hints, codec)


def _why_unreadable(attempts: list[Attempt], source: AudioInput, head: bytes) -> str:
    recognised = [attempt for attempt in attempts if attempt.recognised]
    if recognised:
        return f"no audio could be decoded: {recognised[-1].stopped_by or 'it is empty or damaged'}"
    begins_like = containers.signature(head)
    if begins_like:
        return f"it begins like {begins_like}, but the rest is damaged or missing ({source.size_bytes} bytes came)"
    return (
        f"no known kind of audio was recognised in these {source.size_bytes} bytes; send one of {_KNOWN}, "
        "or name the format of audio without a header"
    )


def _warnings(best: Attempt, source: AudioInput, head: bytes) -> Iterator[str]:
    tail = source.read_at(max(0, source.size_bytes - _END_BYTES), _END_BYTES)
    early = best.ends_early() or containers.missing_end(head, tail, source.size_bytes)
    if early:
        yield f"audio ends early: {early}"
    if best.damaged:
        yield f"damaged parts that were left out: {best.damaged}"
    if best.samples.replaced:
        yield f"samples that are no numbers or absurdly large, replaced by silence: {best.samples.replaced}"
    yield from best.notes

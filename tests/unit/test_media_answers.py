"""What a media worker says is believed only if it can be true."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standin_media import SEALS, sample_file

from whisperd.media.answers import (
    TEXT_MAX,
    WARNINGS_MAX,
    Hearing,
    Nonsense,
    Slice,
    digest_of,
    failure_of,
)

REQUEST = {"window_s": 30.0, "max_audio_s": 60.0, "first_only": False}
COUNT = 16_000 * 40
ANSWER: dict[str, Any] = {
    "speech_s": 30.5,
    "windows": [[0, 100_000], [100_000, 400_000]],
    "sure_speech_s": [2.0, 10],
    "speech_stop": [0, 400_000],
    "media_ms": 12.5,
    "vad_ms": 0,
    "warnings": ["audio ends early"],
}


@pytest.fixture
def fd() -> Iterator[int]:
    """Forty seconds, sealed."""
    fd = sample_file(COUNT)
    yield fd
    os.close(fd)


def part(*windows: tuple[int, int]) -> dict[str, Any]:
    """Some windows, spoken through."""
    return {
        "windows": [list(window) for window in windows],
        "sure_speech_s": [1.0] * len(windows),
        "speech_stop": [stop for _, stop in windows],
    }


def test_a_true_answer_is_taken(fd: int) -> None:
    """As many samples as the memory file holds."""
    prepared = Hearing(REQUEST).prepared(ANSWER, [fd])
    assert prepared.samples is not None
    assert (prepared.samples.fd, prepared.samples.count) == (fd, COUNT)
    assert prepared.windows == [Slice(0, 100_000, 2.0, 0), Slice(100_000, 400_000, 10.0, 400_000)]
    assert (prepared.speech_s, prepared.media_ms, prepared.vad_ms) == (30.5, 12.5, 0.0)
    assert prepared.warnings == ["audio ends early"]
    none = {"windows": [], "sure_speech_s": [], "speech_stop": [], "warnings": []}
    assert Hearing(REQUEST).prepared(ANSWER | none, [fd]).windows == []


def test_windows_in_parts_are_taken_with_the_samples_beside_the_first(fd: int) -> None:
    """The end may bring some more, or none."""
    hearing = Hearing(REQUEST)
    first, second = hearing.part(part((0, 100_000)), [fd]), hearing.part(part((150_000, 200_000)), [])
    assert first.samples is not None
    assert (first.samples.count, second.samples) == (COUNT, None)
    assert [one.start for one in first.windows + second.windows] == [0, 150_000]
    prepared = hearing.prepared(ANSWER | part((200_000, 400_000)), [])
    assert (prepared.samples, [one.start for one in prepared.windows]) == (None, [200_000])


def test_parts_that_cannot_be_true_are_nonsense(fd: int) -> None:
    """No windows, windows in front of those told before, too many of all parts together, samples twice or never."""
    for second, fds in (
        (part(), []),
        (part((50_000, 150_000)), []),
        (part((100_000, COUNT + 1)), []),
        (part((100_000, 200_000)), [fd]),
    ):
        hearing = Hearing(REQUEST)
        hearing.part(part((0, 100_000)), [fd])
        with pytest.raises(Nonsense):
            hearing.part(second, fds)
    with pytest.raises(Nonsense):
        Hearing(REQUEST).part(part((0, 100_000)), [])
    hearing = Hearing(REQUEST)
    hearing.part(part((0, 100)), [fd])
    with pytest.raises(Nonsense, match="descriptors"):
        hearing.prepared(ANSWER | part((200, 300)), [fd])
    hearing = Hearing(REQUEST)
    hearing.part(part(*((at, at + 1) for at in range(100))), [fd])
    with pytest.raises(Nonsense, match="windows of"):
        hearing.part(part(*((at, at + 1) for at in range(100, 200))), [])


def test_an_input_of_which_one_window_is_wanted_is_told_at_once(fd: int) -> None:
    """Nobody would take a part of it."""
    with pytest.raises(Nonsense):
        Hearing(REQUEST | {"first_only": True}).part(part((0, 100_000)), [fd])


@pytest.mark.parametrize(
    "changes",
    [
        {"speech_s": -1.0}, {"speech_s": 40.1}, {"speech_s": "1"}, {"speech_s": True}, {"speech_s": float("nan")},
        {"media_ms": float("inf")}, {"media_ms": -1}, {"vad_ms": None}, {"vad_ms": []},
        {"windows": None}, {"windows": {}}, {"windows": [[0, 100_000]]}, {"windows": [0, 1]},
        {"windows": [[0, 100_000], [100_000]]}, {"windows": [[0, 100_000], "ab"]},
        {"windows": [[0, 100_000], [100_000, 400_000.0]]}, {"windows": [[False, 100_000], [100_000, 400_000]]},
        {"windows": [[-1, 100_000], [100_000, 400_000]]}, {"windows": [[0, 100_001], [100_000, 400_000]]},
        {"windows": [[100_000, 400_000], [0, 100_000]]}, {"windows": [[0, 0], [100_000, 400_000]]},
        {"windows": [[0, 100_000], [200_000, COUNT + 1]]}, {"windows": [[0, 100_000], [100_000, 580_001]]},
        {"windows": [[at, at + 1] for at in range(1000)], "sure_speech_s": [1] * 1000, "speech_stop": [1] * 1000},
        {"sure_speech_s": [2.0]}, {"sure_speech_s": [2.0, -1]}, {"sure_speech_s": [2.0, None]}, {"sure_speech_s": 2},
        {"speech_stop": [0]}, {"speech_stop": [0, 400_001]}, {"speech_stop": [0, 99_999]}, {"speech_stop": [0, 2e5]},
        {"warnings": "none"}, {"warnings": [1]}, {"warnings": ["x"] * (WARNINGS_MAX + 1)},
        {"warnings": ["x" * (TEXT_MAX + 1)]},
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_true_is_nonsense(fd: int, changes: dict[str, Any]) -> None:
    """Wrong types, wrong ranges, lists that do not fit each other or the samples."""
    with pytest.raises(Nonsense):
        Hearing(REQUEST).prepared(ANSWER | changes, [fd])


@pytest.mark.parametrize("name", sorted(ANSWER))
def test_an_answer_with_a_part_missing_is_nonsense(fd: int, name: str) -> None:
    """Every field that is used must be there."""
    with pytest.raises(Nonsense):
        Hearing(REQUEST).prepared({key: value for key, value in ANSWER.items() if key != name}, [fd])


def test_samples_must_be_one_sealed_readable_memory_file_of_whole_samples(tmp_path: Path) -> None:
    """Otherwise whoever sent them could change or cut them while an inference worker reads."""
    path = tmp_path / "samples"
    path.write_bytes(bytes(COUNT * 4))
    odd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(odd, 4 * COUNT + 1)
    half = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(half, 4 * COUNT)
    fcntl.fcntl(half, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW)
    fcntl.fcntl(odd, fcntl.F_ADD_SEALS, SEALS)
    sealed = sample_file(COUNT)
    reading, writing = os.pipe()
    bad = [
        os.open(path, os.O_RDONLY), odd, half, sample_file(COUNT, sealed=False), sample_file(0),
        sample_file(16_000 * 61), reading, writing, os.open(f"/proc/self/fd/{sealed}", os.O_PATH),
    ]  # fmt: skip
    for fd in bad:
        with pytest.raises(Nonsense):
            Hearing(REQUEST).prepared(ANSWER, [fd])
    for fds in ([], [sealed, bad[0]]):
        with pytest.raises(Nonsense):
            Hearing(REQUEST).prepared(ANSWER, fds)
    for fd in (*bad, sealed):
        os.close(fd)


@pytest.mark.parametrize("kind", ["audio_unreadable", "audio_too_long", "internal"])
def test_errors_of_decoding_are_passed_on(kind: str) -> None:
    """With their text."""
    error = failure_of({"kind": kind, "message": "why"})
    assert (error.kind, error.message) == (kind, "why")


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "no_such_kind", "message": "x"}, {"kind": "overloaded", "message": "x"}, {"kind": [], "message": "x"},
        {"message": "x"}, {"kind": "internal"}, {"kind": "internal", "message": 1},
        {"kind": "internal", "message": "x" * (TEXT_MAX + 1)},
    ],
)  # fmt: skip
def test_errors_that_are_not_the_workers_to_give_are_nonsense(message: dict[str, Any]) -> None:
    """It must not speak for the supervisor, nor bring it an unknown kind."""
    with pytest.raises(Nonsense):
        failure_of(message)


@pytest.mark.parametrize("digest", [None, 1, "", "0" * 31, "0" * 33, "G" * 32, "0" * 32 + "\n"])
def test_a_digest_is_32_hex_digits(digest: Any) -> None:
    """It becomes a key that is kept."""
    assert digest_of({"digest": "0123456789abcdef" * 2}) == "0123456789abcdef" * 2
    with pytest.raises(Nonsense):
        digest_of({"digest": digest})

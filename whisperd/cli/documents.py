"""Where transcripts go: standard output, or one file each in a folder.

A file appears under its name whole or not at all. Names are settled for all inputs before the first is written,
so that which file is called what does not depend on which is done first.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import click
import orjson

from whisperd.cli.inputs import Input, shown
from whisperd.client.results import Transcript

FORMATS = ("txt", "json", "jsonl", "srt", "vtt", "tsv", "lrc")
TIMED_FORMATS = frozenset({"srt", "vtt", "tsv", "lrc"})


class Sink(Protocol):
    """Takes transcripts in the order of the arguments."""

    def write(self, input: Input, transcript: Transcript) -> None:
        """Raises OSError."""

    def close(self) -> None:
        """Ends what was begun."""


def document(format_name: str, input: Input, transcript: Transcript) -> bytes:
    """One transcript in one format, ending with a newline unless it is empty."""
    if format_name in ("json", "jsonl"):
        layout = orjson.OPT_INDENT_2 if format_name == "json" else 0
        return orjson.dumps({"file": shown(input.name), **transcript.raw}, option=layout | orjson.OPT_APPEND_NEWLINE)
    from whisperd.render import render

    return render(format_name, transcript.segments, transcript.language).encode()


class Printer:
    """Standard output. JSON is an array as soon as there is more than one input."""

    def __init__(self, format_name: str, count: int) -> None:
        self._format = format_name
        self._is_array = format_name == "json" and count > 1
        self._written = 0

    def write(self, input: Input, transcript: Transcript) -> None:
        content = document(self._format, input, transcript)
        if self._is_array:
            content = (b"[\n" if not self._written else b",\n") + content.rstrip(b"\n")
        elif self._written and self._format in ("srt", "vtt"):
            content = b"\n" + content
        self._written += 1
        click.echo(content, nl=False)  # bytes: UTF-8 whatever the locale

    def close(self) -> None:
        if self._is_array:
            click.echo("\n]" if self._written else "[]")


class Folder:
    """One file per input. Inputs from a folder keep their place in it; equal names are told apart."""

    def __init__(self, directory: Path, format_name: str, inputs: Sequence[Input]) -> None:
        self._format = format_name
        self._paths = dict(zip(inputs, output_paths(directory, format_name, inputs), strict=True))

    def write(self, input: Input, transcript: Transcript) -> None:
        write_whole(self._paths[input], document(self._format, input, transcript))

    def close(self) -> None:
        """Every file is finished when it is written."""


def output_paths(directory: Path, format_name: str, inputs: Sequence[Input]) -> list[Path]:
    """a.wav → a.txt; beside a.flac → a.wav.txt and a.flac.txt; where that is not enough → a.wav-2.txt."""
    stems = Counter(input.below.with_suffix("") for input in inputs)
    taken: set[Path] = set()
    paths = []
    for input in inputs:
        base = input.below.with_suffix("")
        base = base if stems[base] == 1 else input.below
        candidate, number = base, 1
        while candidate in taken:
            number += 1
            candidate = base.with_name(f"{base.name}-{number}")
        taken.add(candidate)
        paths.append(directory / candidate.with_name(f"{candidate.name}.{format_name}"))
    return paths


def write_whole(path: Path, content: bytes) -> None:
    """Writes beside `path` and renames, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:64]}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            Path(file.name).chmod(0o666 & ~_umask())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

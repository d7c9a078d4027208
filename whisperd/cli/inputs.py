"""What the arguments of `transcribe` mean: files, folders, a list of names, standard input.

A name that is given is taken at its word, whatever its suffix; only inside folders the suffix decides what is
media. No file is opened here: one that cannot be read is that file's failure, not the command's. Standard input
is the exception. It is put into a temporary file before anything else happens, so that waiting for it can be
interrupted and any daemon can be given a path.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

STDIN = "-"
MEDIA_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3gp", "aac", "ac3", "aif", "aifc", "aiff", "alaw", "amr", "ape", "au", "caf", "flac", "g722"),
        *("m4a", "m4b", "m4v", "mka", "mkv", "mov", "mp2", "mp3", "mp4", "mpeg", "mpg", "mts", "oga", "ogg"),
        *("ogv", "opus", "snd", "spx", "ts", "tta", "ulaw", "w64", "wav", "webm", "wma", "wmv", "wv"),
    )
)


@dataclass(frozen=True, slots=True, eq=False)  # the same name given twice is two inputs
class Input:
    """One thing to transcribe. `name` is how the user wrote it, `below` its place in the folder it came from."""

    name: str
    source: str
    below: Path
    problem: str | None = None  # why there is nothing to send


def expand(arguments: Sequence[str], files_from: str | None, cleanup: contextlib.ExitStack) -> list[Input]:
    """All inputs in order; folders are searched through, sorted. `cleanup` removes what was put aside.

    Raises click.UsageError.
    """
    names = [*arguments, *(_read_list(files_from) if files_from else ())]
    if not names:
        raise click.UsageError("nothing to transcribe: name files, folders, or - for standard input")
    if names.count(STDIN) + (files_from == STDIN) > 1:
        raise click.UsageError("standard input can be read only once")
    inputs: list[Input] = []
    for name in names:
        if name == STDIN:
            inputs.append(_standard_input(cleanup))
        elif Path(name).is_dir():
            found = list(_media_below(Path(name)))
            inputs += found or [Input(name, name, Path(name), "no media files in this folder")]
        else:
            inputs.append(Input(name, name, Path(Path(name).name)))
    return inputs


def _read_list(files_from: str) -> Iterator[str]:
    """One name a line; blank lines do not count. Names are bytes, and come back as Python carries them."""
    try:
        content = sys.stdin.buffer.read() if files_from == STDIN else Path(files_from).read_bytes()
    except OSError as error:
        raise click.UsageError(f"--files-from {files_from}: {error.strerror}") from error
    return (os.fsdecode(line) for line in content.splitlines() if line.strip())


def _standard_input(cleanup: contextlib.ExitStack) -> Input:
    if sys.stdin.isatty():
        raise click.UsageError("standard input is a terminal; - wants audio from a pipe or a file")
    spool = cleanup.enter_context(tempfile.NamedTemporaryFile(prefix="whisperd-stdin-"))  # noqa: SIM115 - it does
    shutil.copyfileobj(sys.stdin.buffer, spool)
    spool.flush()
    return Input(STDIN, spool.name, Path("stdin"))


def _media_below(folder: Path) -> Iterator[Input]:
    for directory, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = Path(directory, name)
            if path.suffix.lower() in MEDIA_SUFFIXES and not name.startswith("."):
                yield Input(str(path), str(path), path.relative_to(folder))


def shown(name: str) -> str:
    """A name as text: what is not UTF-8 in it is replaced."""
    return os.fsencode(name).decode("utf-8", "replace")

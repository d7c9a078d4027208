"""Some settings in a TOML file changed, and nothing else: not its comments, its order, its mode.

The file is the user's, so only the values' own characters are replaced and new keys go to the end. What comes out is
parsed before it is written and must say exactly what the old one said but for the changes; a file for which that does
not work out is left alone. It appears under its name whole or not at all.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

from whisperd.errors import WhisperdError

_NEW_MODE = 0o644


def changed(text: str, changes: Mapping[str, int | float | str], note: str) -> str:
    """The file's text with these top-level values; `note` is the comment above those that are new. Raises ValueError
    where the result would say something else besides."""
    wanted = tomllib.loads(text) | dict(changes)
    new: list[str] = []
    for name, value in changes.items():
        line = rf"""^([ \t]*["']?{name}["']?[ \t]*=[ \t]*)[^#\r\n]*?([ \t]*(?:#[^\r\n]*)?\r?)$"""
        text, count = re.subn(line, rf"\g<1>{_toml(value)}\g<2>", text, count=1, flags=re.MULTILINE)
        if not count:
            new.append(f"{name} = {_toml(value)}\n")
    if new:
        text += ("\n" if text and not text.endswith("\n") else "") + f"# {note}\n" + "".join(new)
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        found = {}
    if found != wanted:
        raise ValueError("the file's layout does not allow to change single values safely")
    return text


def _toml(value: int | float | str) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def check_writable(path: Path) -> None:
    """Finds out whether the file, or the folder for it, can be made there. Raises WhisperdError forbidden."""
    target = _target(path)
    try:
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only")
        existing = next(folder for folder in target.parents if folder.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise _cannot(path, error) from error


def change_file(path: Path, changes: Mapping[str, int | float | str], note: str) -> None:
    """Applies the changes to what the file says now; makes it if it is missing. Raises WhisperdError."""
    target = _target(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        before = target.read_bytes().decode("utf-8") if target.exists() else ""
        after = changed(before, changes, note)
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else _NEW_MODE
        _replace(target, after.encode("utf-8"), mode)
    except OSError as error:
        raise _cannot(path, error) from error
    except ValueError as error:
        lines = ", ".join(f"{name} = {_toml(value)}" for name, value in changes.items())
        raise WhisperdError("conflict", f"{path} is left as it is ({error}); set by hand: {lines}") from error


def _replace(target: Path, content: bytes, mode: int) -> None:
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name[:64]}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), mode)
            Path(file.name).replace(target)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _target(path: Path) -> Path:
    """Where a symbolic link leads: settings are often kept elsewhere and linked."""
    return path.resolve()


def _cannot(path: Path, error: OSError) -> WhisperdError:
    return WhisperdError("forbidden", f"cannot write {path}: {error.strerror or error}")

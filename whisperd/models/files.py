"""The files of the models that come as Python packages: found, joined, and believed only by their SHA-256.

A package is somebody else's upload, so its bytes count for nothing until their hash is the one written down
here. Hashing 75 to 145 MB at every start would be felt, so a match is remembered with the file's inode, size
and mtime; whoever cannot write the cache still gets the right answer, only later. What is joined from parts
appears under its final name whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import orjson

from whisperd.errors import WhisperdError
from whisperd.models.embedded import EmbeddedModel, Part

_READ_BYTES = 1024 * 1024
_REMEMBERED_NAME = "verified.json"


def cache_directory(environ: Mapping[str, str]) -> Path | None:
    """Where joined models and remembered checks live; systemd's CacheDirectory= first. Not created here.

    None where no home is known. No fallback to a shared temporary directory: whoever owned the place could
    plant remembered checks in it.
    """
    if service := environ.get("CACHE_DIRECTORY", "").split(":")[0]:
        return Path(service) / "models"
    cache = Path(environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        cache = cache.expanduser()
    except RuntimeError:
        return None
    return cache / "whisperd" / "models" if cache.is_absolute() else None


def package_directory(package: str) -> Path | None:
    """Where an installed top-level package lies; its code is not run."""
    spec = importlib.util.find_spec(package)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None


def part_path(part: Part) -> Path | None:
    """The part on disk, or None where the package or the file is missing."""
    directory = package_directory(part.package)
    path = directory / part.relative if directory else None
    return path if path and path.is_file() else None


def directory_in_place(model: EmbeddedModel) -> Path | None:
    """The package's own directory if all files lie there whole; None where they must be joined."""
    directories: set[Path] = set()
    for file in model.files:
        path = part_path(file.parts[0])
        if len(file.parts) != 1 or path is None or path.name != file.name:
            return None
        directories.add(path.parent)
    return directories.pop() if len(directories) == 1 else None


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class RememberedChecks:
    """Which files were seen to have which hash, by path, inode, size and mtime.

    Two processes that write at once may lose one of the two entries: that file is hashed once more, no harm.
    """

    def __init__(self, directory: Path | None) -> None:
        self._file = directory / _REMEMBERED_NAME if directory else None

    def holds(self, path: Path, sha256: str) -> bool:
        return self._read().get(str(path)) == [*_identity(path), sha256]

    def remember(self, path: Path, sha256: str) -> None:
        self._write({**self._read(), str(path): [*_identity(path), sha256]})

    def forget(self, path: Path) -> None:
        entries = self._read()
        if entries.pop(str(path), None) is not None:
            self._write(entries)

    def _read(self) -> dict[str, list[int | str]]:
        if self._file is None:
            return {}
        try:
            entries = orjson.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}  # absent, unreadable or garbled alike: the files are hashed again
        return entries if isinstance(entries, dict) else {}

    def _write(self, entries: dict[str, list[int | str]]) -> None:
        if self._file is None:
            return
        temporary: str | None = None
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fd, temporary = tempfile.mkstemp(prefix=".verified-", dir=self._file.parent)
            with os.fdopen(fd, "wb") as out:
                out.write(orjson.dumps(entries))
            Path(temporary).replace(self._file)
        except OSError:
            # A memory that cannot be kept costs time at the next start and nothing else.
            if temporary is not None:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def check_file(path: Path, sha256: str, remembered: RememberedChecks) -> None:
    """Raises WhisperdError(model_load_failed) unless the file has this hash."""
    try:
        if remembered.holds(path, sha256):
            return
        actual = sha256_of(path)
    except OSError as error:
        raise WhisperdError("model_load_failed", f"cannot read {path}: {error.strerror}") from error
    if actual != sha256:
        raise mismatch(path, sha256, actual)
    remembered.remember(path, sha256)


def mismatch(path: Path, expected: str, actual: str) -> WhisperdError:
    return WhisperdError(
        "model_load_failed",
        f"{path} is not the file it should be: its SHA-256 is {actual}, expected {expected}; "
        "reinstall the package that it came with (pip install --force-reinstall)",
    )


def ensure_embedded(model: EmbeddedModel, environ: Mapping[str, str]) -> Path:
    """A directory with the model's checked files: the package's own, or one joined in the cache."""
    cache = cache_directory(environ)
    remembered = RememberedChecks(cache)
    directory = directory_in_place(model)
    if directory is not None:
        for file in model.files:
            check_file(directory / file.name, file.sha256, remembered)
        return directory
    if cache is None:
        raise WhisperdError(
            "model_load_failed", f"no place to join the model {model.name} in; XDG_CACHE_HOME can name one"
        )
    return _joined(model, cache, remembered)


def _joined(model: EmbeddedModel, cache: Path, remembered: RememberedChecks) -> Path:
    target = cache / model.directory_name
    if _intact(model, target, remembered):
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f".{model.directory_name}.lock"):
            if _intact(model, target, remembered):  # another process was quicker
                return target
            _join(model, target)
    except OSError as error:
        raise WhisperdError(
            "model_load_failed", f"cannot join the model {model.name} in {cache}: {_why(error)}"
        ) from error
    for file in model.files:
        remembered.remember(target / file.name, file.sha256)
    return target


def _intact(model: EmbeddedModel, target: Path, remembered: RememberedChecks) -> bool:
    """The cache is ours and can be made again, so damage in it is a reason to do that, not an error."""
    try:
        for file in model.files:
            check_file(target / file.name, file.sha256, remembered)
    except WhisperdError:
        return False
    return True


def _join(model: EmbeddedModel, target: Path) -> None:
    """Makes `target` from the parts. The caller holds the lock, so any leftover belongs to a dead process."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for file in model.files:
            with (partial / file.name).open("xb") as out:
                for part in file.parts:
                    _copy_checked(part, out)
                out.flush()
                os.fsync(out.fileno())
            if (actual := sha256_of(partial / file.name)) != file.sha256:
                raise mismatch(partial / file.name, file.sha256, actual)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk must not stay full because of us
        raise


def _copy_checked(part: Part, out: BinaryIO) -> None:
    source = part_path(part)
    if source is None:
        raise WhisperdError(
            "model_load_failed", f"{part.relative} of the package {part.package} is missing; reinstall it"
        )
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
            out.write(block)
    if digest.hexdigest() != part.sha256:
        raise mismatch(source, part.sha256, digest.hexdigest())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process at a time; the kernel lets go when its holder dies."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _why(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no room there ({error.strerror}); free some, or set XDG_CACHE_HOME to a larger disk"
    return f"{error.strerror}; XDG_CACHE_HOME names another place to keep it"

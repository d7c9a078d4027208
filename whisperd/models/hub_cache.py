"""The local Hugging Face cache: which repositories lie in it and where, read without network or library.

huggingface_hub is slow to import and would be one more library in the supervisor, for what is a handful of
directory names. Its rule for the cache's place is repeated here, and a test compares the two.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

# The hub's own limit is 96 characters for the whole; the first character keeps dots from being a path.
_REPO = re.compile(r"(?=.{3,96}$)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")

# The short names that faster-whisper knows (a test compares them), with their Hugging Face repositories.
HUB_REPOS: dict[str, str] = {
    "tiny.en": "Systran/faster-whisper-tiny.en",
    "tiny": "Systran/faster-whisper-tiny",
    "base.en": "Systran/faster-whisper-base.en",
    "base": "Systran/faster-whisper-base",
    "small.en": "Systran/faster-whisper-small.en",
    "small": "Systran/faster-whisper-small",
    "medium.en": "Systran/faster-whisper-medium.en",
    "medium": "Systran/faster-whisper-medium",
    "large-v1": "Systran/faster-whisper-large-v1",
    "large-v2": "Systran/faster-whisper-large-v2",
    "large-v3": "Systran/faster-whisper-large-v3",
    "large": "Systran/faster-whisper-large-v3",
    "distil-large-v2": "Systran/faster-distil-whisper-large-v2",
    "distil-medium.en": "Systran/faster-distil-whisper-medium.en",
    "distil-small.en": "Systran/faster-distil-whisper-small.en",
    "distil-large-v3": "Systran/faster-distil-whisper-large-v3",
    "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
}


def is_repo(name: str) -> bool:
    """Whether the name has the form owner/name."""
    return _REPO.fullmatch(name) is not None


def cache_directory() -> Path:
    """Where huggingface_hub keeps its downloads; it need not exist."""
    home = _expanded(os.environ.get("HF_HOME", f"{os.environ.get('XDG_CACHE_HOME', '~/.cache')}/huggingface"))
    older = os.environ.get("HUGGINGFACE_HUB_CACHE", f"{home}/hub")
    return Path(_expanded(os.environ.get("HF_HUB_CACHE", older)))


def snapshot(repo: str) -> Path | None:
    """The directory of the newest download of a repository's main branch; its files may be incomplete."""
    storage = _storage(repo)
    try:
        commit = (storage / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return storage / "snapshots" / commit


def is_begun(repo: str) -> bool:
    """Whether anything of the repository lies here."""
    return os.path.isdir(_storage(repo))  # noqa: PTH112 -- Path's raises where it may not look


def repos() -> Iterator[str]:
    """The repositories of models in the cache."""
    try:
        folders = sorted(cache_directory().glob("models--*--*"))
    except OSError:
        return  # a cache that may not be read has nothing to offer
    for folder in folders:
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        if is_repo(repo):
            yield repo


def blob_sha256(path: Path) -> str | None:
    """The hash a file in a snapshot should have: the cache names a large file's blob by its SHA-256.

    None for small files, whose blobs have git's hash, and for files outside the cache.
    """
    blob = path.resolve().name
    return blob if path.is_symlink() and _SHA256_HEX.fullmatch(blob) else None


def _storage(repo: str) -> Path:
    return cache_directory() / f"models--{repo.replace('/', '--')}"


def _expanded(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 -- Path's raises where no home is known

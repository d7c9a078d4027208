"""Every setting, once: its default, the reason for the default, and where its value came from.

A setting is read from four layers, later ones winning: the defaults below, the TOML file, `WHISPERD_*` in the
environment, and command-line flags. A name that no layer knows is refused with the nearest one that exists,
because a setting that is silently ignored is the worst kind of bug report.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 1024 * 1024


class ConfigError(Exception):
    """A setting that cannot be used; the message names the layer, the setting and what was expected."""


def _setting(default: Any, doc: str) -> Any:
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class Config:
    """Settings in effect. Units are in the names: `_s` seconds, `_bytes` bytes."""

    stdio: bool = _setting(False, "speak the protocol on stdin and stdout")
    socket: str | None = _setting(None, "path of the main socket")
    control_socket: str | None = _setting(None, "path of the control socket")
    socket_group: str | None = _setting(None, "group whose members may submit and observe (mode 0660, else 0600)")
    store: str | None = _setting(None, "path of the SQLite store")
    model: str | None = _setting(None, "default model: a name, a path, or unset for the embedded one")
    device: str = _setting("auto", "auto, cpu or cuda")
    compute_type: str = _setting("auto", "auto (int8 on cpu, float16 on cuda) or a CTranslate2 compute type")
    lanes: int = _setting(0, "batches decoded side by side; 0 = one per core (one on cuda)")
    threads: int = _setting(0, "threads per lane; 0 = cores divided by lanes")
    express_lanes: int = _setting(-1, "lanes besides, for short work beside long; -1 = one (none on cuda)")
    batch_rows: int = _setting(0, "windows in one engine call at most; 0 = 8 (32 on cuda), more gains little")
    batch_s: float = _setting(3.0, "seconds that a batch of long files or bulk may take: it cannot be interrupted")
    window_s: float = _setting(18.0, "longest window cut from long audio; longer ones cost more than they mend")
    tail_s: float = _setting(0.0, "silence encoded behind speech, half of it from 8 s on; 0 = what the model needs")
    media_workers: int = _setting(2, "processes that decode media; two, so that one long file blocks nobody")
    models_max: int = _setting(2, "models loaded at once; the one idle longest makes room")
    idle_unload_s: float = _setting(0.0, "unload a model after so long without work; 0 = never")
    hang_timeout_s: float = _setting(20.0, "an engine that gives no sign of life for longer counts as hung")
    media_hang_timeout_s: float = _setting(8.0, "the same for media workers; they give a sign twice a second")
    worker_rss_max_bytes: int = _setting(0, "recycle a larger inference worker; 0 = thrice its size when ready + 1 GiB")
    ordered: bool = _setting(False, "reply in request order instead of completion order")
    drain_timeout_s: float = _setting(0.0, "longest wait for accepted work at the end; 0 = no limit")
    max_line_bytes: int = _setting(64 * MIB, "longest request line; 64 MiB of base64 is 25 minutes of 16-bit PCM")
    control_line_bytes: int = _setting(1 * MIB, "longest line on the control socket, which carries no audio")
    queue_max: int = _setting(1024, "requests admitted at once, all clients together")
    client_quota: int = _setting(256, "requests admitted at once for one socket client")
    backlog_requests: int = _setting(10_000, "requests that wait behind the queue on stdio before reading stops")
    backlog_bytes: int = _setting(256 * MIB, "the same in bytes of their lines")
    output_max_bytes: int = _setting(64 * MIB, "unread replies after which a client that does not read is dropped")
    connections_max: int = _setting(512, "open socket connections; far under the usual limit of 1,024 descriptors")
    max_audio_bytes: int = _setting(2048 * MIB, "largest input file: 3 h of CD-quality WAV is 1.9 GB")
    max_audio_s: float = _setting(4 * 3600.0, "longest audio; four hours of samples are 0.9 GB of memory")
    max_decode_s: float = _setting(300.0, "longest time for decoding and VAD of one input")
    prepared_audio_s: float = _setting(3600.0, "decoded audio that may wait for the engine: 230 MB of memory")
    allow_root: tuple[str, ...] = _setting((), "directories that `path` may open; none = no restriction")
    log_level: str = _setting("info", "debug, info, warning or error")
    log_format: str = _setting("text", "text or json")


FIELDS: dict[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(Config)}
_HINTS = typing.get_type_hints(Config)
_CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "log_level": ("debug", "info", "warning", "error"),
    "log_format": ("text", "json"),
}
# (lowest, highest) where a value outside would break a promise rather than merely be odd
_RANGES: dict[str, tuple[float, float]] = {
    "window_s": (1.0, 30.0),
    "tail_s": (0.0, 29.0),
    "batch_rows": (0, 64),
    "express_lanes": (-1, 16),
    "media_workers": (1, 64),
    "models_max": (1, 64),
    "queue_max": (1, 1_000_000),
    "client_quota": (1, 1_000_000),
    "backlog_requests": (1, 10_000_000),
    "max_line_bytes": (1024, 1024 * MIB),
    "control_line_bytes": (1024, 1024 * MIB),
    "lanes": (0, 256),
    "threads": (0, 256),
    "hang_timeout_s": (0.5, 86_400),
    "media_hang_timeout_s": (0.5, 86_400),
}


@dataclass(frozen=True)
class Loaded:
    """The settings in effect, and for each its layer: "default", "file PATH", "WHISPERD_X" or "flag"."""

    config: Config
    sources: Mapping[str, str]


def flag_name(name: str) -> str:
    """The command-line flag of a setting; one in seconds loses its `_s`, as in `--drain-timeout`."""
    return "--" + name.removesuffix("_s").replace("_", "-")


def load_config(flags: Mapping[str, Any], file: Path | None, environ: Mapping[str, str]) -> Loaded:
    """Merges the layers. Flags that are None were not given. Raises ConfigError."""
    values: dict[str, Any] = {}
    sources = dict.fromkeys(FIELDS, "default")

    def take(layer: str, name: str, value: Any) -> None:
        values[name], sources[name] = value, layer

    for name, value in (_read_file(file) if file else {}).items():
        take(f"file {file}", _known(name, f"{file}"), _checked(name, value, f"{file}"))
    for variable, text in environ.items():
        if variable.startswith("WHISPERD_"):
            name = _known(variable.removeprefix("WHISPERD_").lower(), variable)
            take(variable, name, _checked(name, _parse(name, text, variable), variable))
    for name, value in flags.items():
        if value is not None:
            take("flag", _known(name, "flag"), _checked(name, value, flag_name(name)))
    return Loaded(Config(**values), sources)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error


def _known(name: str, where: str) -> str:
    if name in FIELDS:
        return name
    near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{where}: there is no setting {name!r}{hint}")


def _parse(name: str, text: str, where: str) -> Any:
    """An environment variable's text as the setting's type."""
    kinds = _kinds(name)
    if bool in kinds:
        lowered = text.strip().lower()
        if lowered in ("1", "true", "yes", "on"):
            return True
        if lowered in ("0", "false", "no", "off", ""):
            return False
        raise ConfigError(f"{where}: {text!r} is neither true nor false")
    if tuple in kinds:
        return tuple(part for part in text.split(":") if part)
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError as error:
                raise ConfigError(f"{where}: {text!r} is not a number") from error
    return text


def _kinds(name: str) -> set[type]:
    hint = _HINTS[name]
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return {typing.get_origin(member) or member for member in members}


def _checked(name: str, value: Any, where: str) -> Any:
    kinds = _kinds(name)
    if tuple in kinds and isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if float in kinds and type(value) is int:
        value = float(value)
    if type(value) not in kinds:
        names = (kind.__name__ for kind in kinds if kind is not type(None))
        wanted = "a list of strings" if tuple in kinds else " or ".join(sorted(names))
        raise ConfigError(f"{where}: {name} wants {wanted}, not {value!r}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ConfigError(f"{where}: {name} is one of {', '.join(_CHOICES[name])}, not {value!r}")
    low, high = _RANGES.get(name, (0, float("inf")))
    if isinstance(value, int | float) and not isinstance(value, bool) and not low <= value <= high:
        raise ConfigError(f"{where}: {name} must be between {low:g} and {high:g}, not {value!r}")
    return value

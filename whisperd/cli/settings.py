"""One command-line option for every setting, made from the settings themselves, so that none can be forgotten."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

import click

from whisperd.config import FIELDS, Config, ConfigError, Loaded, flag_name, load_config
from whisperd.paths import default_settings_path

Command = TypeVar("Command", bound=Callable[..., Any])
_HINTS = typing.get_type_hints(Config)
_METAVARS = {"model": "NAME|PATH", "allow_root": "DIR", "socket_group": "GROUP"}


def setting_options(command: Command) -> Command:
    """Adds `--config` and an option per setting."""
    for name in reversed(FIELDS):
        command = _option(name)(command)
    file = click.Path(path_type=Path, dir_okay=False)
    help = "TOML file with settings.  [default: whisperd/whisperd.toml in $XDG_CONFIG_HOME, if it is there]"
    return click.option("--config", "config_file", type=file, help=help)(command)


def _option(name: str) -> Callable[[Command], Command]:
    hint = _HINTS[name]
    kinds = set(typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,))
    field = FIELDS[name]
    default = field.default if field.default is not MISSING else None
    help = field.metadata["doc"] + (f"  [default: {default}]" if _is_worth_showing(default) else "")
    flag = flag_name(name)
    if bool in kinds:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=help)
    if typing.get_origin(hint) is tuple:
        return click.option(flag, name, multiple=True, metavar=_METAVARS.get(name), help=help + " (repeatable)")
    kind = int if int in kinds else float if float in kinds else str
    metavar = _METAVARS.get(name) or ("S" if name.endswith("_s") else "N" if kind is not str else "TEXT")
    if name in ("socket", "control_socket", "store"):
        metavar = "PATH"
    return click.option(flag, name, type=kind, default=None, metavar=metavar, help=help)


def _is_worth_showing(default: Any) -> bool:
    return default not in (None, False, ()) and default != ""


def load(config_file: Path | None, flags: dict[str, Any]) -> Loaded:
    """All layers merged; a setting that cannot be used is wrong usage."""
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    try:
        return load_config(given, config_file or _default_file(), os.environ)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _default_file() -> Path | None:
    """The user's or the service's settings, if there are any: not for a user without a home, or without access to it,
    as a hardened service may be. Nobody named that file, so the daemon starts; `config show` tells what it uses."""
    try:
        path = default_settings_path()
        return path if path.exists() else None
    except (RuntimeError, PermissionError):
        return None

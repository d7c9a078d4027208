"""`whisperd config`: the settings in effect."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from whisperd.cli.output import emit, format_option
from whisperd.cli.settings import load, setting_options


@click.group("config")
def command() -> None:
    """Look at settings.

    \b
    whisperd config show
    """


@command.command("show")
@setting_options
@format_option()
def show_command(config_file: Path | None, format_name: str | None, **flags: Any) -> None:
    """Print every setting that `whisperd serve` would use with the same options, and where it came from.

    \b
    whisperd config show --config whisperd.toml
    WHISPERD_MODEL=base whisperd config show --format json
    """
    loaded = load(config_file, flags)
    values = asdict(loaded.config)
    rows = [{"setting": name, "value": values[name], "from": loaded.sources[name]} for name in values]
    emit({"settings": rows}, format_name)

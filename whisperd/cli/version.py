"""`whisperd version`."""

from __future__ import annotations

import click

from whisperd import PROTOCOL_VERSION, __version__
from whisperd.cli.output import emit, format_option


@click.command("version")
@format_option()
def command(format_name: str | None) -> None:
    """Print the versions of the program and of the protocol.

    \b
    whisperd version --format json
    """
    emit({"version": __version__, "protocol": str(PROTOCOL_VERSION)}, format_name)

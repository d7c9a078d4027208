"""`whisperd ctl`: any method of the contract, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import orjson

from whisperd.cli.failures import told
from whisperd.cli.output import emit, format_option

# Everything else is answered on the control socket too, which work on the main one cannot delay.
MAIN_SOCKET_METHODS = frozenset({"transcribe", "detect_language"})


def complete_method(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """For the shell's completion."""
    from whisperd.protocol import load_schemas

    names = [key.removeprefix("methods/") for key in load_schemas() if key.startswith("methods/")]
    return [name for name in names if name.startswith(incomplete)]


@click.command("ctl")
@click.argument("method", shell_complete=complete_method)
@click.argument("params", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    envvar="WHISPERD_SOCKET",
    help="The socket to use.  [default: the runtime directory's]",
)
@click.option("--timeout", type=click.FloatRange(min=0), help="Give up after so many seconds.")
@format_option()
def command(
    method: str, params: Sequence[str], socket: Path | None, timeout: float | None, format_name: str | None
) -> None:
    """Call a METHOD of the running daemon.

    A VALUE that is JSON is sent as such, everything else as a string. `whisperd schema` lists the methods,
    `whisperd schema METHOD` tells what one takes and returns.

    \b
    whisperd ctl status
    whisperd ctl models.load model=base
    whisperd ctl cancel job=j-42
    whisperd ctl transcribe audio='{"path": "/tmp/a.flac"}' language=en
    """
    values = dict(parse_param(param) for param in params)
    from whisperd.client import Client

    with told(), Client(socket or find_socket(method), spawn=False, timeout=timeout) as client:
        emit(client.call(method, **values), format_name)


def parse_param(param: str) -> tuple[str, Any]:
    """`key=value`; a value that is not JSON is a string."""
    key, separator, text = param.partition("=")
    if not separator or not key:
        raise click.UsageError(f"{param!r} is not KEY=VALUE")
    try:
        return key, orjson.loads(text)
    except orjson.JSONDecodeError:
        return key, text


def find_socket(method: str) -> Path:
    """The control socket where there is one and it serves the method, else the main one."""
    from whisperd.paths import default_control_path, default_socket_path

    control = default_control_path()
    return control if method not in MAIN_SOCKET_METHODS and control.is_socket() else default_socket_path()

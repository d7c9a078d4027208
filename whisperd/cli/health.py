"""`whisperd health`: the daemon's verdict on itself as a monitor's exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from whisperd.cli.output import emit, format_option

_CODES = {"healthy": 0, "degraded": 1, "unhealthy": 2}  # the plugin convention of Nagios and its heirs
_WORDS = {0: "OK", 1: "WARNING", 2: "CRITICAL", 3: "UNKNOWN"}
UNKNOWN = 3


@click.command("health")
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    envvar="WHISPERD_SOCKET",
    help="The socket to ask.  [default: the runtime directory's]",
)
@click.option("--timeout", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Seconds to wait.")
@format_option("line")
def command(socket: Path | None, timeout: float, format_name: str | None) -> None:
    """Say whether the daemon can do its work.

    The exit code is that of a monitoring plugin: 0 healthy, 1 degraded, 2 unhealthy or not there, 3 it cannot
    be told. `--format line` prints the one line that such a monitor shows.

    \b
    whisperd health && echo fine
    whisperd health --format line --timeout 5
    """
    code, verdict = _ask(socket, timeout)
    if format_name == "line":
        reasons = "; ".join(reason["message"] for reason in verdict["reasons"])
        click.echo(f"WHISPERD {_WORDS[code]} - {verdict['status']}" + (f": {reasons}" if reasons else ""))
    else:
        emit(verdict, format_name)
    sys.exit(code)


def _ask(socket: Path | None, timeout: float) -> tuple[int, dict[str, Any]]:
    """The exit code, and a verdict in the shape of the method's result."""
    from whisperd.cli.ctl import find_socket
    from whisperd.client import Client, ConnectionLost, RequestFailed, Timeout
    from whisperd.errors import WhisperdError

    try:
        with Client(socket or find_socket("health"), spawn=False, timeout=timeout) as client:
            verdict = client.health()
        return _CODES.get(verdict["status"], UNKNOWN), verdict
    except (ConnectionLost, Timeout) as error:
        return 2, _unhealthy("unhealthy", "no_answer", str(error))
    except (RequestFailed, WhisperdError) as error:
        return UNKNOWN, _unhealthy("unknown", error.kind, error.message)


def _unhealthy(status: str, kind: str, message: str) -> dict[str, Any]:
    return {"status": status, "live": False, "ready": False, "reasons": [{"kind": kind, "message": message}]}

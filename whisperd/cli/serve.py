"""`whisperd serve`: the daemon."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from whisperd.cli.failures import told
from whisperd.cli.settings import load, setting_options


@click.command("serve")
@setting_options
def command(config_file: Path | None, **flags: Any) -> None:
    """Run the daemon.

    Without --stdio and without sockets of your own it listens on whisperd.sock and control.sock in the runtime
    directory ($RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/whisperd, or whisperd-UID in the temporary directory). Each
    setting can also come from a TOML file or from the environment (--drain-timeout is drain_timeout_s in the
    file and WHISPERD_DRAIN_TIMEOUT_S in the environment); flags win. `whisperd config show` tells what is in
    effect.

    \b
    whisperd serve --model tiny.en
    whisperd serve --socket /run/w/whisperd.sock --socket-group speech
    echo '{"jsonrpc": "2.0", "id": 1, "method": "ping"}' | whisperd serve --stdio
    """
    settings = load(config_file, flags)
    from whisperd.start import run

    with told():
        sys.exit(run(settings))

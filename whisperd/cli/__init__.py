"""The command line. Each subcommand is a module of this package, imported when it is named.

A start costs what the one command needs: `whisperd ctl ping` must not pay for progress bars, and nothing here
pays for numpy. Exit codes: 0 done, 1 something failed, 2 wrong usage, 70 no daemon or it was lost,
130 interrupted; `health` has those of monitoring plugins.
"""

from __future__ import annotations

import importlib

import click

from whisperd import __version__

_COMMANDS = (
    "transcribe",
    "serve",
    "ctl",
    "health",
    "models",
    "tune",
    "config",
    "schema",
    "completion",
    "version",
)


class _Lazy(click.Group):
    """Finds a subcommand in the module of its name, as `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command = importlib.import_module(f"whisperd.cli.{name}").command
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="whisperd", message="%(prog)s %(version)s")
def group() -> None:
    """Speech to text on this machine.

    \b
    whisperd transcribe interview.flac              text of one file
    whisperd transcribe *.m4a --format srt --output-dir subtitles
    whisperd serve                                  a daemon for every program of yours
    whisperd ctl status                             what the daemon is doing
    """


def main() -> None:
    group(prog_name="whisperd")

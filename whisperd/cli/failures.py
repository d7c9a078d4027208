"""How a command fails: one line on stderr that says what and why, and an exit code that says whose fault it is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

import click

from whisperd.errors import WhisperdError

EXIT_FAILED = 1
EXIT_USAGE = 2  # click's
EXIT_LOST = 70  # no daemon answers, or it went away
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def complain(message: str) -> None:
    """One line on stderr."""
    click.echo(f"whisperd: {message}", err=True)


def give_up(message: str, code: int) -> NoReturn:
    complain(message)
    sys.exit(code)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turns the errors of client and library into a line and an exit code."""
    from whisperd.client.errors import ConnectionLost, RequestFailed, Timeout

    try:
        yield
    except (RequestFailed, WhisperdError) as error:
        give_up(f"{error.kind}: {error.message}", EXIT_FAILED)
    except ConnectionLost as error:
        give_up(f"{error}", EXIT_LOST)
    except Timeout as error:
        give_up(f"{error}", EXIT_FAILED)
    except KeyboardInterrupt:
        give_up("interrupted", EXIT_INTERRUPTED)

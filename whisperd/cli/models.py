"""`whisperd models`: what models are on this machine, and how to get more."""

from __future__ import annotations

import sys

import click

from whisperd.cli.failures import EXIT_FAILED, complain, told
from whisperd.cli.output import emit, format_option


@click.group("models")
def command() -> None:
    """List, fetch and check models. No daemon is needed.

    \b
    whisperd models list
    whisperd models pull small
    """


@command.command("list")
@format_option()
def list_command(format_name: str | None) -> None:
    """Show every model that can be named, and whether its files are here.

    \b
    whisperd models list --format json
    """
    from whisperd.models.names import list_models

    with told():
        emit({"models": [model.to_wire() for model in list_models()]}, format_name)


@command.command("pull")
@click.argument("name")
@format_option()
def pull_command(name: str, format_name: str | None) -> None:
    """Fetch the model NAME if it is missing, and check it.

    NAME is one of the list, or a repository of the hub with a CTranslate2 model.

    \b
    whisperd models pull base
    """
    from whisperd.models.names import pull

    with told():
        emit(pull(name).to_wire(), format_name)


@command.command("verify")
@click.argument("name")
@format_option()
def verify_command(name: str, format_name: str | None) -> None:
    """Hash every file of the model NAME and compare with what is known.

    The exit code is 1 when a file differs.

    \b
    whisperd models verify tiny.en
    """
    from whisperd.models.names import verify

    with told():
        report = verify(name)
        files = [
            {"file": str(check.path), "ok": check.ok, "sha256": check.actual, "expected": check.expected}
            for check in report.files
        ]
        emit({"model": report.model.name, "ok": report.ok, "files": files}, format_name)
    if report.ok is False:
        complain(f"{name}: the files are not what they should be; `whisperd models pull {name}` fetches them")
        sys.exit(EXIT_FAILED)

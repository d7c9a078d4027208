"""`whisperd schema`: the contract itself, for people and for code generators."""

from __future__ import annotations

from typing import Any

import click
import orjson

from whisperd.cli.ctl import complete_method
from whisperd.cli.failures import EXIT_FAILED, give_up
from whisperd.cli.output import emit, format_option


@click.command("schema")
@click.argument("name", required=False, metavar="[METHOD]", shell_complete=complete_method)
@format_option()
def command(name: str | None, format_name: str | None) -> None:
    """Print the JSON Schema of a METHOD, or of everything.

    Without METHOD a terminal gets the list of methods and a pipe all schemas by name. The parts that methods
    share have names too: envelope, reply, error, notification, common.

    \b
    whisperd schema transcribe
    whisperd schema > contract.json
    """
    from whisperd.protocol import load_schemas

    schemas = {key.removeprefix("methods/"): schema for key, schema in load_schemas().items()}
    if name is None:
        emit(schemas if _wants_json(format_name) else _overview(load_schemas()), format_name)
    elif name in schemas:
        click.echo(orjson.dumps(schemas[name], option=orjson.OPT_INDENT_2))
    else:
        give_up(f"not_found: there is no schema {name!r}; known are {', '.join(schemas)}", EXIT_FAILED)


def _wants_json(format_name: str | None) -> bool:
    import sys

    return format_name == "json" or (format_name is None and not sys.stdout.isatty())


def _overview(schemas: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "method": key.removeprefix("methods/"),
            "role": schema["x-role"],
            "what it does": schema["description"],
        }
        for key, schema in schemas.items()
        if key.startswith("methods/")
    ]

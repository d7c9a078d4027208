"""What commands print: a table for people on a terminal, JSON for programs; `--format` overrides.

Tables are made from the JSON itself, so that a field that the daemon adds is shown without a change here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
import orjson

Command = TypeVar("Command", bound=Callable[..., Any])


def format_option(*more: str) -> Callable[[Command], Command]:
    """`--format`, with table, json and what else the command knows."""
    return click.option(
        "--format",
        "format_name",
        type=click.Choice(["table", "json", *more]),
        help="[default: table on a terminal, json otherwise]",
    )


def emit(value: Any, format_name: str | None) -> None:
    """Prints a result in the format asked for, or the one that fits stdout."""
    if (format_name or ("table" if sys.stdout.isatty() else "json")) == "json":
        click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))
    else:
        _print_table(value)


def _print_table(value: Any) -> None:
    if isinstance(value, dict) and list(value) == ["text"]:  # a document, such as the metrics for Prometheus
        click.echo(value["text"])
        return
    from rich.console import Console

    console = Console(highlight=False)
    if isinstance(value, dict):
        plain = {name: item for name, item in value.items() if not _is_rows(item)}
        if plain:
            console.print(_pairs(plain))
        for name, rows in value.items():
            if _is_rows(rows):
                console.print(_rows(name, rows))
    elif _is_rows(value):
        console.print(_rows(None, value))
    else:
        click.echo(_cell(value))


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _pairs(value: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, item in _flat(value):
        table.add_row(Text(name), Text(_cell(item)))
    return table


def _rows(title: str | None, rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(box=None, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(name))) for name in names))
    return table


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, item in value.items():
        pairs += _flat(item, f"{prefix}{name}.") if isinstance(item, dict) and item else [(prefix + name, item)]
    return pairs


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    return orjson.dumps(value).decode()

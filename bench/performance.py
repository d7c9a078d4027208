"""Figures of a run as a block of docs/PERFORMANCE.md.

    python bench/performance.py run.json                       prints the block
    python bench/performance.py run.json --into docs/PERFORMANCE.md --name "tiny.en, two cores"

A block stands between two comments that carry its name. One of the same name is replaced, a new one goes to the end;
what is written around the blocks stays as it is, so that figures are never copied by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from report import MEMORY_NOTE, Results, Table, failure_lines, machine_lines, tables


def block(results: Results, name: str) -> str:
    """Markdown: the machine, the targets, and a table for each workload."""
    shown = tables(results)
    parts = [f"<!-- measured: {name} -->", f"## {name}", "\n".join(f"- {line}" for line in machine_lines(results))]
    parts += [f"**{line}**" for line in failure_lines(results)]
    for table in (shown[-1], *shown[:-1]):
        parts += [f"### {table.title}", _markdown(table)]
        parts += ["\n".join(f"- {note}" for note in table.notes)] if table.notes else []
    parts += [_legend(), f"<!-- end of: {name} -->"]
    return "\n\n".join(parts) + "\n"


def _markdown(table: Table) -> str:
    """Without the columns in which nobody has anything."""
    used = [column for column in range(len(table.header)) if column == 0 or any(row[column] for row in table.rows)]
    rows = [[row[column].replace("|", "\\|") for column in used] for row in (table.header, *table.rows)]
    rule = "|" + "---|" + "---:|" * (len(used) - 1)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], rule, *lines[1:]])


def _legend() -> str:
    return f"S/D/I: words substituted, deleted, inserted. {MEMORY_NOTE} The sides are described in bench/README.md."


def put(document: str, name: str, text: str) -> str:
    """The document with this block in the place of the one of the same name, or at its end."""
    begin, end = f"<!-- measured: {name} -->", f"<!-- end of: {name} -->"
    if begin in document and end in document:
        before, rest = document.split(begin, 1)
        return before + text.rstrip("\n") + rest.split(end, 1)[1]
    return document.rstrip("\n") + "\n\n" + text if document else text


def named_after(results: Results) -> str:
    """Such as "tiny.en, 2 cores, AMD EPYC, AVX-512"."""
    machine, options = results["machine"], results["options"]
    cpu = f"{machine['cores']} cores, {machine['cpu']}"
    return f"{options['model']}, {cpu if options['device'] == 'cpu' else machine['gpu'] or options['device']}"


def main(words: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(description="Figures of a run as a block of Markdown.")
    made.add_argument("run", type=Path, help="what bench/compare.py wrote with --json")
    made.add_argument("--into", type=Path, metavar="FILE", help="put the block into this document")
    made.add_argument("--name", help="of the block; left out: the model and the machine")
    arguments = made.parse_args(words)
    results = json.loads(arguments.run.read_text(encoding="utf-8"))
    name = arguments.name or named_after(results)
    text = block(results, name)
    if arguments.into is None:
        sys.stdout.write(text)
        return 0
    document = arguments.into.read_text(encoding="utf-8") if arguments.into.exists() else "# Performance\n"
    arguments.into.write_text(put(document, name, text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The results as one HTML page with charts: plain inline SVG, no script, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import log10
from typing import Any

from report import LABELS, MEMORY_NOTE, Results, Table, failure_lines, machine_lines, tables

_COLOURS = {
    "whisperd": "#0b6e4f",
    "serial": "#a8b3bd",
    "threads": "#7d8b99",
    "batched": "#566573",
    "wyoming": "#c77d3a",
    "sketch": "#9fc9b8",
    "script": "#a8b3bd",
}
_OTHER = "#4a7fb0"
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1c2730;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.1rem;margin:2.2rem 0 .4rem}table{border-collapse:collapse;font-size:13px}
td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #e3e8ec;white-space:nowrap}
td:first-child,th:first-child{text-align:left}.no{color:#b3261e;font-weight:600}.yes,.aim{color:#0b6e4f}
.wide{overflow-x:auto}.note{color:#566573;font-size:13px;margin:.2rem 0}.charts{display:flex;flex-wrap:wrap;gap:1.5rem}
svg text{font:12px system-ui,sans-serif;fill:#1c2730}figure{margin:0}figcaption{font-size:13px;font-weight:600}
"""


def page(results: Results) -> str:
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>whisperd, measured</title>"]
    parts += [f"<style>{_STYLE}</style>", "<h1>whisperd, measured beside its peers</h1>"]
    parts += [f"<p class=note>{escape(line)}</p>" for line in machine_lines(results)]
    parts += [f"<p class=no>{escape(line)}</p>" for line in failure_lines(results)]
    shown = tables(results)
    parts.append(_html_table(shown[-1]))
    parts.append("<div class=charts>" + "".join(_charts(results)) + "</div>")
    parts += [_html_table(table) for table in shown[:-1]]
    parts.append(f"<p class=note>{escape(MEMORY_NOTE)}</p>")
    return "\n".join(parts) + "\n"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    body = "".join(
        "<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in table.rows
    )
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in table.notes)
    return f"<h2>{escape(table.title)}</h2><div class=wide><table><tr>{head}</tr>{body}</table></div>{notes}"


def _cell(cell: str) -> str:
    mark = f" class={cell}" if cell in ("yes", "no", "aim") else ""
    return f"<td{mark}>{escape(cell)}</td>"


def _charts(results: Results) -> list[str]:
    """Speed of each case with several sides, then latencies by load."""
    charts = []
    for name, case in results["cases"].items():
        if name.startswith(("burst", "long", "closed")):
            charts.append(_bars(f"× realtime: {case['title']}", _values(case, "x_realtime")))
        elif name in ("idle", "cold_start", "beside"):
            charts.append(_bars(f"p95 in seconds: {case['title']}", _values(case, "p95_s")))
    opened = [(name, case) for name, case in results["cases"].items() if name.startswith("open_")]
    if opened:
        charts.append(_lines("p95 in seconds by share of the burst's throughput", opened))
    return charts


def _values(case: dict[str, Any], figure: str) -> list[tuple[str, float]]:
    found = [(name, side.get("median", {}).get(figure)) for name, side in case["sides"].items()]
    return [(name, value) for name, value in found if value is not None and not name.startswith("the file")]


def _bars(caption: str, values: Sequence[tuple[str, float]]) -> str:
    width, label_width, row = 540, 235, 24
    most = max((value for _, value in values), default=1.0) or 1.0
    shapes = []
    for number, (name, value) in enumerate(values):
        y, long = number * row, (width - label_width - 60) * value / most
        shapes.append(
            f'<text x="{label_width - 8}" y="{y + 16}" text-anchor="end">{escape(LABELS.get(name, name))}</text>'
            f'<rect x="{label_width}" y="{y + 4}" width="{max(long, 1):.1f}" height="16" '
            f'fill="{_COLOURS.get(name, _OTHER)}"/>'
            f'<text x="{label_width + long + 6:.1f}" y="{y + 16}">{value:.3g}</text>'
        )
    return _figure(caption, width, row * len(values), "".join(shapes))


def _lines(caption: str, cases: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """One line for each side, on a logarithmic scale of seconds: the sides differ by orders of magnitude."""
    width, height, left, bottom = 500, 240, 50, 30
    points: dict[str, list[tuple[float, float]]] = {}
    for name, case in cases:
        for side, value in _values(case, "p95_s"):
            points.setdefault(side, []).append((float(name.removeprefix("open_")), value))
    everything = [value for line in points.values() for _, value in line]
    low, high = log10(min(everything)) - 0.1, log10(max(everything)) + 0.1

    def place(share: float, value: float) -> tuple[float, float]:
        x = left + share * (width - left - 110)
        return x, (height - bottom) * (1 - (log10(value) - low) / (high - low))

    shapes = []
    for side, line in points.items():
        spots = [place(share, value) for share, value in line]
        colour = _COLOURS.get(side, _OTHER)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (x, y), (_, value) in zip(spots, line, strict=True):
            shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
            shapes.append(f'<text x="{x + 5:.1f}" y="{y - 5:.1f}">{value:.3g}</text>')
        shapes.append(f'<text x="{spots[-1][0] + 36:.1f}" y="{spots[-1][1] + 4:.1f}">{escape(side)}</text>')
    for name, _ in cases:
        share = float(name.removeprefix("open_"))
        shapes.append(f'<text x="{place(share, 1)[0]:.1f}" y="{height - 8}" text-anchor="middle">{share:g}</text>')
    return _figure(caption, width, height, "".join(shapes))


def _figure(caption: str, width: int, height: int, shapes: str) -> str:
    svg = f'<svg role="img" width="{width}" height="{height + 8}" viewBox="0 -4 {width} {height + 8}">{shapes}</svg>'
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"

"""Results as tables: cells of text that the terminal, the page and the document all show alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MB = 1e6
Results = dict[str, Any]
LABELS = {
    "whisperd": "whisperd",
    "serial": "faster-whisper, serial",
    "threads": "faster-whisper, threads",
    "batched": "BatchedInferencePipeline(8)",
    "wyoming": "wyoming-faster-whisper",
    "sketch": "sketch, all known in advance",
    "script": "Python script with faster-whisper",
}


@dataclass(frozen=True)
class Table:
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


HEADER = ("", "s", "× realtime", "p50 s", "p95 s", "p99 s", "WER %", "S/D/I", "CPU s per audio hour", "peak RSS MB",
          "together", "batch fill", "retried %", "failed")  # fmt: skip


def tables(results: Results) -> list[Table]:
    """One for each case, and the targets."""
    return [*(case_table(case) for case in results["cases"].values()), targets_table(results)]


def case_table(case: dict[str, Any]) -> Table:
    rows = [_side_row(LABELS.get(name, name), side.get("median", {})) for name, side in case["sides"].items()]
    notes = [f"{_named(label)}: {spread_text(found)}" for label, found in case["ratios"].items() if found]
    reasons = case["sides"].get("whisperd", {}).get("median", {}).get("rows_retried")
    if reasons:
        notes.append("rows decoded again, all repetitions: " + ", ".join(f"{k} {n}" for k, n in reasons.items()))
    return Table(case["title"], HEADER, rows, notes)


def _named(label: str) -> str:
    for name, written in LABELS.items():
        label = label.replace(f"/ {name}", f"/ {written}")
    return label.replace("x_realtime, ", "× realtime, ").replace("p95_s, ", "p95, ").replace("p50_s, ", "p50, ")


def spread_text(found: dict[str, Any]) -> str:
    if found["of"] == 1:
        return f"{found['median']:.2f}"
    return f"{found['median']:.2f} ({found['lowest']:.2f} … {found['highest']:.2f}, {found['of']} times)"


def _side_row(label: str, figures: dict[str, Any]) -> list[str]:
    sdi = ""
    if figures.get("words"):
        sdi = "/".join(f"{figures[name]:g}" for name in ("substituted", "deleted", "inserted"))
    share, together = figures.get("rows_retried_share"), figures.get("together_rss_bytes")
    return [
        label,
        _digits(figures.get("seconds"), 2),
        _digits(figures.get("x_realtime"), 1),
        *(_digits(figures.get(name), 3) for name in ("p50_s", "p95_s", "p99_s")),
        _digits(figures.get("wer_percent"), 2),
        sdi,
        _digits(figures.get("cpu_s_per_audio_hour"), 0),
        memory_text(figures.get("peak_rss_bytes", {})),
        _digits(together / MB if together else None, 0),
        _digits(figures.get("batch_fill"), 2),
        "" if share is None else f"{100 * share:.1f}",
        str(figures.get("failed") or ""),
    ]


def _digits(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def memory_text(peaks: dict[str, int]) -> str:
    """One process: its figure. Several: each with its letter, as "S 41 M 98 98 I 352"."""
    if len(peaks) == 1:
        return f"{next(iter(peaks.values())) / MB:.0f}"
    parts: dict[str, list[str]] = {}
    for name, peak in sorted(peaks.items(), key=lambda item: ("smi".find(item[0][0]), item[0])):
        parts.setdefault(name[0].upper(), []).append(f"{peak / MB:.0f}")
    return " ".join(f"{letter} {' '.join(figures)}" for letter, figures in parts.items())


def targets_table(results: Results) -> Table:
    rows = [
        [row["name"], row["at_least"], row["aim"], row["measured"] or "", row["met"]]
        for row in results.get("targets", ())
    ]
    return Table("Targets", ("", "at least", "aim", "measured", "met"), rows)


def machine_lines(results: Results) -> list[str]:
    machine, options = results["machine"], results["options"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB, {machine['system']}, "
        f"kernel {machine['kernel']}, Python {machine['python']}",
        packages,
        f"model {options['model']}, {options['compute_type']} on {options['device']}, "
        f"{options['repeats']} repetition{'s' if options['repeats'] != 1 else ''}"
        f"{', quick' if options['quick'] else ''}, {machine['date']}, load before {machine['load_before']:g}",
    ]
    if machine.get("gpu"):
        lines.insert(1, machine["gpu"])
    return lines


def failure_lines(results: Results) -> list[str]:
    return [f"FAILED {one['where']}, {one['side']}: {one['reason']}" for one in results["failures"]]


MEMORY_NOTE = (
    "peak RSS: S the supervisor, M the media workers, I the inference worker; together: all of them at one time. "
    "Processor time is that of the side, without its clients."
)

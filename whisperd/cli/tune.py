"""`whisperd tune`: finds the settings that are fastest on this host with the user's model, and writes them down."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whisperd.cli.failures import told
from whisperd.cli.output import emit, format_option
from whisperd.cli.settings import load

if TYPE_CHECKING:
    from whisperd.cli.tuner import Gain, Task
    from whisperd.config import Loaded
    from whisperd.tuning import Observed

# Besides those that are tuned: what changes how fast a daemon is. Sockets, store and log must not be taken over.
_PASSED_ON = (
    "model", "device", "express_lanes", "batch_s", "window_s", "media_workers",
    "hang_timeout_s", "media_hang_timeout_s", "worker_rss_max_bytes",
)  # fmt: skip
_NOTE = "measured on this machine by `whisperd tune`"


@click.command("tune")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file with settings, to be read and changed.  [default: whisperd/whisperd.toml in $XDG_CONFIG_HOME]",
)
@click.option("--model", metavar="NAME|PATH", help="The model to tune for.  [default: the daemon's]")
@click.option("--minutes", type=click.FloatRange(min=0.1), default=4.0, show_default=True, help="Time to spend.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@format_option()
def command(
    config_file: Path | None, model: str | None, minutes: float, dry_run: bool, format_name: str | None
) -> None:
    """Find the settings that are fastest on this host, and write them to the settings file.

    Daemons with different settings transcribe packaged speech in turn: how many batches side by side with how many
    threads, the compute type, rows in a batch, and for models that whisperd has not been measured with the silence
    behind the speech. A setting is changed only where that is faster in every round, by 3 % or more, and not a
    word gets worse; the defaults are good, so that the answer is often to leave them. Nothing else should run
    meanwhile. Start the daemon with the file: `whisperd serve --config FILE`.

    \b
    whisperd tune
    whisperd tune --config whisperd.toml --model base --minutes 8
    whisperd tune --dry-run --format json
    """
    from whisperd.cli.settings_file import change_file, check_writable
    from whisperd.cli.tuner import Tuner
    from whisperd.paths import default_settings_path

    file = config_file or default_settings_path()
    loaded = load(file if file.exists() else Path(os.devnull), {"model": model})
    with told(), tempfile.TemporaryDirectory(prefix="whisperd-tune-") as folder:
        if not dry_run:
            check_writable(file)
        _forget_environment()
        tuner = Tuner(_task(loaded, Path(folder), 60 * minutes), _say)
        try:
            gain = tuner.run()
        finally:
            tuner.close()
        rows = _changed_rows(gain, loaded)
        for line in _replaced(rows):
            _say(f"{file} says {line}")
        if rows and not dry_run:
            change_file(file, gain.changes, _NOTE)
        _conclude(gain, file, model, dry_run)
        emit(_report(gain, rows, loaded, file, dry_run), format_name)


def _say(line: str) -> None:
    click.echo(f"tune: {line}", err=True)


def _forget_environment() -> None:
    """The daemons get their settings as flags; a socket that the environment names is not theirs to take."""
    for name in [name for name in os.environ if name.startswith("WHISPERD_")]:
        del os.environ[name]


def _task(loaded: Loaded, folder: Path, budget_s: float) -> Task:
    from whisperd.cli.tuner import Task
    from whisperd.inference.placement import usable_cores
    from whisperd.models.names import default_model
    from whisperd.tails import CAUTIOUS_S, tail_of
    from whisperd.tuning import TUNABLE

    config = loaded.config
    defaults = type(config)()
    values = {name: getattr(config, name) for name in (*_PASSED_ON, *TUNABLE)}
    model = config.model or default_model() or ""
    return Task(
        folder,
        settings={name: value for name, value in values.items() if value != getattr(defaults, name)},
        start={name: values[name] for name in TUNABLE},
        fixed={name: loaded.sources[name] for name in TUNABLE if loaded.sources[name].startswith("WHISPERD_")},
        cores=usable_cores(),
        tail_s=tail_of(model, config.tail_s),
        tail_is_measured=tail_of(model, 0.0) != CAUTIOUS_S,
        budget_s=budget_s,
    )


def _changed_rows(gain: Gain, loaded: Loaded) -> list[dict[str, Any]]:
    """The settings to be written: in effect before (with the daemon's own choice), in the file before, and after."""
    values = dataclasses.asdict(loaded.config)
    return [
        {
            "setting": name,
            "before": gain.start[name],
            "in_file": values[name] if loaded.sources[name].startswith("file ") else None,
            "after": value,
        }
        for name, value in gain.changes.items()
    ]


def _replaced(rows: list[dict[str, Any]]) -> list[str]:
    """What the user once wrote and loses."""
    return [
        f"{row['setting']} = {row['in_file']!r}; that becomes {row['after']!r}"
        for row in rows
        if row["in_file"] not in (None, row["after"])
    ]


def _conclude(gain: Gain, file: Path, model: str | None, dry_run: bool) -> None:
    if any(reason == "out of time" for _what, reason in gain.not_tried):
        _say("there was no time to try everything; --minutes gives more")
    if not gain.changes:
        _say("nothing is clearly better than the settings in effect; nothing is written")
    elif dry_run:
        _say(f"{file} is left as it is")
    else:
        named = f" --model {model}" if model else ""
        _say(f"{file} is written; start the daemon with: whisperd serve --config {file}{named}")


def _report(gain: Gain, rows: list[dict[str, Any]], loaded: Loaded, file: Path, dry_run: bool) -> dict[str, Any]:
    from whisperd.models.names import default_model

    return {
        "model": loaded.config.model or default_model(),
        "device": gain.device,
        "file": os.fsencode(file).decode("utf-8", "replace"),
        "gained": bool(rows),
        "written": bool(rows) and not dry_run,
        "in_effect": dict(gain.start),
        "settings": rows,
        "figures": _figures(gain.before, gain.after),
        "tried": [
            {
                "settings": " ".join(f"{name}={value}" for name, value in outcome.changes.items()),
                "speed_ratio": None if outcome.ratio is None else round(outcome.ratio, 3),
                "kept": outcome.kept,
                "reason": outcome.reason,
            }
            for outcome in gain.outcomes
        ],
        "not_tried": [{"settings": what, "reason": why} for what, why in gain.not_tried],
    }


def _figures(before: Observed, after: Observed | None) -> list[dict[str, Any]]:
    """Speed, latency and memory, before and after; after is null where nothing is better."""

    def row(figure: str, was: float | None, now: float | None) -> dict[str, Any]:
        change = None if not was or now is None else f"{100 * (now / was - 1):+.0f} %"
        return {"figure": figure, "before": was, "after": now, "change": change}

    def megabytes(observed: Observed | None) -> float | None:
        return round(observed.rss_bytes / 1e6) if observed and observed.rss_bytes is not None else None

    return [
        row("burst, × realtime", round(before.speed, 1), round(after.speed, 1) if after else None),
        row("one clip, ms", round(1000 * before.latency_s, 1), round(1000 * after.latency_s, 1) if after else None),
        row("engine's peak memory, MB", megabytes(before), megabytes(after)),
    ]

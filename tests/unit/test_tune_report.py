"""What `whisperd tune` says of a gain, from figures made up here."""

from __future__ import annotations

from pathlib import Path

import pytest

from whisperd.cli.tune import _changed_rows, _conclude, _replaced, _report
from whisperd.cli.tuner import Gain
from whisperd.config import Loaded, load_config
from whisperd.tuning import Observed, Outcome

BEFORE = Observed((20.0, 21.0, 19.0), (0.2,), frozenset(), rss_bytes=200_000_000)
AFTER = Observed((30.0, 31.0, 29.0), (0.21,), frozenset(), rss_bytes=210_000_000)
START = {"lanes": 1, "threads": 1, "compute_type": "int8", "batch_rows": 8, "tail_s": 6.0}
CHANGES = {"lanes": 2, "threads": 1, "batch_rows": 16}
OUTCOMES = [Outcome(CHANGES, True, "better", 1.5), Outcome({"compute_type": "bfloat16"}, False, "does not work here")]
GAIN = Gain("cpu", START, BEFORE, AFTER, CHANGES, OUTCOMES, [("tail_s=3", "out of time")])


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    """A file with settings of the user's own."""
    file = tmp_path / "whisperd.toml"
    file.write_text('model = "tiny.en"\nlanes = 1\nthreads = 1\n', encoding="utf-8")
    return load_config({}, file, {})


def test_values_of_the_users_own_are_named_before_they_are_replaced(loaded: Loaded) -> None:
    """Those that the file did not have, or that stay, need no word."""
    assert _replaced(_changed_rows(GAIN, loaded)) == ["lanes = 1; that becomes 2"]


def test_the_report_tells_what_was_gained(loaded: Loaded) -> None:
    """Before and after, with the change; what was tried, and what was not."""
    report = _report(GAIN, _changed_rows(GAIN, loaded), loaded, Path("/x/whisperd.toml"), dry_run=False)
    assert (report["model"], report["gained"], report["written"]) == ("tiny.en", True, True)
    assert [row["change"] for row in report["figures"]] == ["+50 %", "+5 %", "+5 %"]
    assert report["settings"][2] == {"setting": "batch_rows", "before": 8, "in_file": None, "after": 16}
    assert report["tried"][0]["settings"] == "lanes=2 threads=1 batch_rows=16"
    assert report["tried"][1]["speed_ratio"] is None
    assert report["not_tried"] == [{"settings": "tail_s=3", "reason": "out of time"}]


def test_a_dry_run_says_that_nothing_is_written(loaded: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    """In both places."""
    file = Path("/x/whisperd.toml")
    report = _report(GAIN, _changed_rows(GAIN, loaded), loaded, file, dry_run=True)
    assert (report["gained"], report["written"]) == (True, False)
    _conclude(GAIN, file, None, dry_run=True)
    assert "left as it is" in capsys.readouterr().err


def test_how_to_start_the_daemon_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """With the model that was tuned for."""
    _conclude(GAIN, Path("/x/whisperd.toml"), "base", dry_run=False)
    assert "whisperd serve --config /x/whisperd.toml --model base\n" in capsys.readouterr().err

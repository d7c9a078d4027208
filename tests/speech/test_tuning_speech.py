"""`whisperd tune` with the real model: the packaged speech is understood, and a run ends with a sound file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from running_daemon import Launch

from whisperd.cli.trials import SPEECH, packaged_clips
from whisperd.config import load_config
from whisperd.tuning import words_wrong

pytestmark = pytest.mark.speech


@pytest.mark.parametrize("model", ["tiny.en", "base"])
def test_the_packaged_speech_is_written_down_word_for_word(launch: Launch, model: str) -> None:
    """With default options, so that a wrong word means that the settings did it."""
    with launch("--model", model).connect() as client:
        pending = [(clip, client.submit(SPEECH / clip.file)) for clip in packaged_clips()]
        texts = [(clip, each.result().text) for clip, each in pending]
    assert [text for clip, text in texts if words_wrong(clip.text, text)] == []


def test_a_short_run_says_what_it_did_and_keeps_the_rest_of_the_file(tmp_path: Path) -> None:
    """Whatever was gained on this machine: the file says so, and its other lines are as they were."""
    file = tmp_path / "whisperd.toml"
    before = "# mine\nlanes = 1 # half\nthreads = 1\nqueue_max = 99\n"
    file.write_text(before, encoding="utf-8")
    environ = {name: text for name, text in os.environ.items() if not name.startswith("WHISPERD_")}
    command = ["tune", "--config", str(file), "--model", "tiny.en", "--minutes", "0.6", "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-m", "whisperd", *command],
        env={**environ, "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "0 words wrong" in done.stderr
    report = json.loads(done.stdout)
    assert report["device"] in ("cpu", "cuda")
    assert report["in_effect"]["lanes"] == 1
    assert all(row["before"] > 0 for row in report["figures"])
    settings = load_config({}, file, {}).config
    for row in report["settings"]:
        assert getattr(settings, row["setting"]) == row["after"]
        assert row["setting"] in done.stderr
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# mine\n")
    assert "# half\n" in text
    assert "queue_max = 99\n" in text
    assert report["written"] == (text != before)

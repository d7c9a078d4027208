"""`whisperd tune` from outside: what it prints, writes and leaves behind. With the fake engine, which no setting makes
faster; tests/speech has the real one."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from whisperd.tuning import TUNABLE

pytestmark = pytest.mark.integration
_MARK = "TEST_TUNE_MARK"


class User:
    """Somebody with settings and temporary files of their own."""

    def __init__(self, folder: Path) -> None:
        self.settings = folder / "config" / "whisperd" / "whisperd.toml"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.mark = secrets.token_hex(8)
        self.environ = {name: text for name, text in os.environ.items() if not name.startswith("WHISPERD_")}
        self.environ |= {"HOME": str(folder), "TMPDIR": str(self.temporary), _MARK: self.mark}
        self.environ |= {f"XDG_{name}_HOME": str(folder / name.lower()) for name in ("CONFIG", "STATE", "CACHE")}

    def tune(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env={**self.environ, **variables},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "whisperd", "tune", *map(str, arguments)]

    def processes(self) -> list[psutil.Process]:
        """What is alive of all that came from this user's commands."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(_MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


def left_of(user: User) -> tuple[list[psutil.Process], list[Path]]:
    """Processes and temporary files that a command left behind."""
    return user.processes(), list(user.temporary.iterdir())


def test_settings_of_the_environment_are_not_tried(user: User) -> None:
    """They would win over the file. Nothing is tried, gained or written, and that is no failure."""
    values = {"lanes": "2", "threads": "1", "compute_type": "int8", "batch_rows": "8", "tail_s": "6"}
    variables = {f"WHISPERD_{name.upper()}": value for name, value in values.items()}
    done = user.tune("--model", "fake", "--minutes", 1, **variables)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert (report["model"], report["gained"], report["written"], report["settings"]) == ("fake", False, False, [])
    assert report["tried"] == []
    assert {row["settings"] for row in report["not_tried"]} == set(TUNABLE)
    assert report["figures"][0]["before"] > 0
    assert "nothing is clearly better" in done.stderr
    assert not user.settings.parent.exists()
    assert left_of(user) == ([], [])


def test_a_model_that_no_setting_makes_faster_is_left_as_it_is(user: User) -> None:
    """What is said, and what is in the file, agree; with the fake engine only chance could gain something."""
    done = user.tune("--model", "fake", "--minutes", 0.5)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {row["settings"] for row in report["tried"]} | {row["settings"] for row in report["not_tried"]} >= {
        "compute_type", "tail_s", "batch_rows=4", "batch_rows=16"
    }  # fmt: skip
    assert report["written"] == report["gained"] == bool(report["settings"]) == user.settings.exists()
    assert left_of(user) == ([], [])


def test_the_daemons_of_a_run_keep_away_from_the_users_own(user: User, tmp_path: Path) -> None:
    """Their sockets and store are not taken over from the file or the environment."""
    file = tmp_path / "whisperd.toml"
    file.write_text(f'model = "fake"\nstore = "{tmp_path}/own.db"\nsocket = "{tmp_path}/own.sock"\n', encoding="utf-8")
    fixed = {f"WHISPERD_{name}": "1" for name in ("LANES", "BATCH_ROWS")}
    done = user.tune("--config", file, "--dry-run", "--minutes", 0.5, WHISPERD_CONTROL_SOCKET=f"{tmp_path}/c", **fixed)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["file"] == str(file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tmp", "whisperd.toml"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--model", "nosuch"], 1, "whisperd: model_not_found: "),
        (["--model", "fake", "--config", "/proc/none/whisperd.toml"], 1, "whisperd: forbidden: cannot write /proc"),
        (["--minutes", "soon"], 2, "Error: "),
    ],
)
def test_what_cannot_work_is_told_at_once(user: User, arguments: list[str], code: int, told: str) -> None:
    """One line, nothing on stdout, and the exit codes of the other commands."""
    done = user.tune(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert left_of(user) == ([], [])


def test_settings_that_do_not_exist_are_wrong_usage(user: User, tmp_path: Path) -> None:
    """As for `serve` with the same file."""
    file = tmp_path / "whisperd.toml"
    file.write_text("lane = 2\n", encoding="utf-8")
    done = user.tune("--config", file)
    assert done.returncode == 2
    assert "did you mean 'lanes'" in done.stderr


def test_an_interrupt_leaves_no_process_and_no_file(user: User) -> None:
    """Ctrl-C while daemons are up."""
    command = subprocess.Popen(
        user.command("--model", "fake", "--minutes", 2), env=user.environ, stderr=subprocess.PIPE, text=True
    )
    assert command.stderr is not None
    with command.stderr as stderr:
        assert "with the settings in effect" in stderr.readline()
        assert len(user.processes()) >= 2
        command.send_signal(signal.SIGINT)
        said = stderr.read()
    assert command.wait(60) == 130
    assert said.endswith("whisperd: interrupted\n")
    assert "Traceback" not in said
    assert left_of(user) == ([], [])
    assert not user.settings.exists()

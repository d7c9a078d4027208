"""A user's TOML file after `whisperd tune`: the values changed, everything else as it was."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisperd.cli.settings_file import change_file, changed, check_writable
from whisperd.config import load_config
from whisperd.errors import WhisperdError

FILE = """# my daemon
model = "base"   # the good one
lanes = 1 # half of the machine
"threads"=2
allow_root = [
  "/srv/lanes = 5",
]

compute_type = 'float32'
"""


def test_values_change_in_place_and_the_rest_stays() -> None:
    """Comments, order, spaces, quoted keys."""
    changes = {"lanes": 4, "threads": 1, "compute_type": "int8"}
    after = changed(FILE, changes, "note")
    expected = FILE.replace("lanes = 1 #", "lanes = 4 #").replace('"threads"=2', '"threads"=1')
    assert after == expected.replace("'float32'", '"int8"')


def test_new_settings_go_to_the_end_under_a_note() -> None:
    """Also where the last line has no end."""
    assert changed("lanes = 1", {"tail_s": 3.0, "lanes": 2}, "why") == "lanes = 2\n# why\ntail_s = 3.0\n"
    assert changed("", {"compute_type": "int8"}, "why") == '# why\ncompute_type = "int8"\n'


def test_lines_that_end_as_on_windows_keep_their_ends() -> None:
    """Nothing else is a reason to touch a line."""
    assert changed("lanes = 1\r\nthreads = 1 # x\r\n", {"threads": 2}, "") == "lanes = 1\r\nthreads = 2 # x\r\n"


@pytest.mark.parametrize("text", ['log_level = """\nlanes = 1\n"""\n', 'model = """\nlanes = 1"""\nlanes = 2\n'])
def test_a_layout_that_misleads_is_refused(text: str) -> None:
    """What looks like the setting is inside a string."""
    with pytest.raises(ValueError, match="layout"):
        changed(text, {"lanes": 4}, "note")


@given(
    st.dictionaries(
        st.sampled_from(["lanes", "threads", "batch_rows", "queue_max", "model"]), st.integers(0, 99), max_size=5
    ),
    st.dictionaries(st.sampled_from(["lanes", "threads", "batch_rows"]), st.integers(0, 99), min_size=1),
)
def test_any_file_says_what_it_said_but_for_the_changes(before: dict[str, int], changes: dict[str, int]) -> None:
    """Whatever was there already."""
    text = "".join(f"{name} = {value}  # {name} = 7\n" for name, value in before.items())
    assert tomllib.loads(changed(text, changes, "note")) == {**before, **changes}


def test_a_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    """A link stays one; the file that it names has the new values and its old mode."""
    file, link = tmp_path / "real.toml", tmp_path / "link.toml"
    file.write_text(FILE, encoding="utf-8")
    file.chmod(0o640)
    link.symlink_to(file)
    change_file(link, {"lanes": 3}, "note")
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert load_config({}, link, {}).config.lanes == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.toml", "real.toml"]


def test_a_missing_file_is_made_with_its_folder(tmp_path: Path) -> None:
    """As at the first run; to look whether that is possible makes nothing."""
    file = tmp_path / "config" / "whisperd" / "whisperd.toml"
    check_writable(file)
    assert list(tmp_path.iterdir()) == []
    change_file(file, {"batch_rows": 16}, "note")
    assert load_config({}, file, {}).config.batch_rows == 16


def test_a_place_that_cannot_be_written_is_told() -> None:
    """Before anything is measured, with the path."""
    for path in (Path("/proc/whisperd/whisperd.toml"), Path("/dev/null/whisperd.toml")):
        with pytest.raises(WhisperdError, match="cannot write") as caught:
            check_writable(path)
        assert caught.value.kind == "forbidden"


def test_a_file_that_cannot_be_changed_safely_stays_and_the_lines_are_told(tmp_path: Path) -> None:
    """So that minutes of measuring are not in vain."""
    file = tmp_path / "whisperd.toml"
    file.write_text('model = """\nlanes = 1"""\nlanes = 2\n', encoding="utf-8")
    before = file.read_bytes()
    with pytest.raises(WhisperdError, match="set by hand: lanes = 4"):
        change_file(file, {"lanes": 4}, "note")
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]

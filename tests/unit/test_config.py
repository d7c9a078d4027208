"""Settings from four layers: which one wins, and what is refused in each."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisperd.config import FIELDS, Config, ConfigError, Loaded, flag_name, load_config


def toml(folder: Path, text: str) -> Path:
    """A configuration file with this text."""
    file = folder / "whisperd.toml"
    file.write_text(text, encoding="utf-8")
    return file


def from_file(folder: Path, text: str) -> Loaded:
    """The settings of a file alone."""
    return load_config({}, toml(folder, text), {})


def from_environ(**variables: str) -> Loaded:
    """The settings of the environment alone, without the prefix."""
    return load_config({}, None, {f"WHISPERD_{name}": value for name, value in variables.items()})


def test_without_layers_the_defaults_hold() -> None:
    """And each says so."""
    loaded = load_config({}, None, {"PATH": "/bin", "HOME": "/"})
    assert loaded.config == Config()
    assert loaded.sources == dict.fromkeys(FIELDS, "default")


def test_later_layers_win_one_by_one(tmp_path: Path) -> None:
    """Default, file, environment, flag; each setting remembers the layer that it came from."""
    file = toml(tmp_path, "lanes = 1\nthreads = 1\nbatch_rows = 1\n")
    environ = {"WHISPERD_THREADS": "2", "WHISPERD_BATCH_ROWS": "2"}
    loaded = load_config({"batch_rows": 3, "model": None}, file, environ)
    config = loaded.config
    assert (config.lanes, config.threads, config.batch_rows, config.queue_max) == (1, 2, 3, Config().queue_max)
    assert loaded.sources["lanes"] == f"file {file}"
    assert loaded.sources["threads"] == "WHISPERD_THREADS"
    assert loaded.sources["batch_rows"] == "flag"
    assert loaded.sources["queue_max"] == loaded.sources["model"] == "default"


def test_a_flag_that_was_not_given_says_nothing() -> None:
    """None in the flags does not undo the environment."""
    loaded = load_config({"lanes": None}, None, {"WHISPERD_LANES": "5"})
    assert loaded.config.lanes == 5


def test_a_flag_set_back_to_the_default_still_wins() -> None:
    """What was said expressly counts, and the source tells it."""
    loaded = load_config({"ordered": False}, None, {"WHISPERD_ORDERED": "yes"})
    assert loaded.config.ordered is False
    assert loaded.sources["ordered"] == "flag"


# -- unknown names -----------------------------------------------------------------------------------------------


def test_an_unknown_name_in_the_file_is_refused_with_the_nearest(tmp_path: Path) -> None:
    """The message names the file."""
    with pytest.raises(ConfigError, match=r"whisperd\.toml: there is no setting 'lane'; did you mean 'lanes'\?"):
        from_file(tmp_path, "lane = 2")


def test_a_table_in_the_file_is_an_unknown_name(tmp_path: Path) -> None:
    """The settings are flat."""
    with pytest.raises(ConfigError, match="no setting 'server'"):
        from_file(tmp_path, "[server]\nlanes = 2")


def test_an_unknown_variable_is_refused_with_the_nearest() -> None:
    """The message names the variable, so that it can be found."""
    with pytest.raises(ConfigError, match=r"WHISPERD_MODLE: there is no setting 'modle'; did you mean 'model'\?"):
        from_environ(MODLE="base")


def test_an_unknown_flag_is_refused_with_the_nearest() -> None:
    """A flag that only the command line knows would otherwise vanish."""
    with pytest.raises(ConfigError, match=r"flag: there is no setting 'que_max'; did you mean 'queue_max'\?"):
        load_config({"que_max": 1}, None, {})


def test_a_name_like_no_other_is_refused_without_a_guess() -> None:
    """A wrong guess is worse than none."""
    with pytest.raises(ConfigError, match=r"there is no setting 'zzzzzzzz'$"):
        from_environ(ZZZZZZZZ="1")


def test_variables_of_others_are_left_alone() -> None:
    """Only the prefix is ours."""
    assert load_config({}, None, {"MYWHISPERD_LANES": "x", "WHISPER_LANES": "x"}).config == Config()


# -- the environment's text --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1", "true", "TRUE", "yes", "on", " On "])
def test_true_has_several_spellings_in_the_environment(text: str) -> None:
    """Those that people use."""
    assert from_environ(STDIO=text).config.stdio is True


@pytest.mark.parametrize("text", ["0", "false", "No", "off", ""])
def test_false_has_several_spellings_in_the_environment(text: str) -> None:
    """An empty variable is false, as in a shell."""
    assert from_environ(STDIO=text).config.stdio is False


def test_what_is_neither_true_nor_false_is_refused() -> None:
    """Guessing would be worse."""
    with pytest.raises(ConfigError, match="WHISPERD_STDIO: 'maybe' is neither true nor false"):
        from_environ(STDIO="maybe")


def test_numbers_are_read_as_the_setting_s_type() -> None:
    """Whole numbers for counts, any number for seconds."""
    config = from_environ(LANES="3", WINDOW_S="12.5", IDLE_UNLOAD_S="60").config
    assert (config.lanes, config.window_s, config.idle_unload_s) == (3, 12.5, 60.0)
    assert type(config.idle_unload_s) is float


@pytest.mark.parametrize(("name", "text"), [("LANES", "two"), ("LANES", "2.5"), ("WINDOW_S", "long"), ("LANES", "")])
def test_what_is_no_number_is_refused(name: str, text: str) -> None:
    """The message names the variable."""
    with pytest.raises(ConfigError, match=f"WHISPERD_{name}: '{text}' is not a number"):
        from_environ(**{name: text})


def test_directories_are_parted_by_colons_in_the_environment() -> None:
    """As in PATH; empty parts are nothing."""
    assert from_environ(ALLOW_ROOT="/a:/b c::").config.allow_root == ("/a", "/b c")
    assert from_environ(ALLOW_ROOT="").config.allow_root == ()


def test_text_is_taken_as_it_is() -> None:
    """Also where it looks like something else."""
    assert from_environ(MODEL="7", SOCKET="/run/w.sock").config.model == "7"


# -- types and ranges --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('lanes = "2"', "lanes wants int, not '2'"),
        ("lanes = 2.0", "lanes wants int, not 2.0"),
        ("lanes = true", "lanes wants int, not True"),
        ("stdio = 1", "stdio wants bool, not 1"),
        ("model = 7", "model wants str, not 7"),
        ("window_s = true", "window_s wants float, not True"),
        ('allow_root = "/a"', "allow_root wants a list of strings, not '/a'"),
        ("allow_root = [1]", "allow_root wants a list of strings"),
        ("lanes = 2024-01-01", "lanes wants int"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """A file has types, so nothing is guessed from text in it."""
    with pytest.raises(ConfigError, match=said) as caught:
        from_file(tmp_path, text)
    assert "whisperd.toml" in str(caught.value)


def test_a_list_in_the_file_becomes_a_tuple(tmp_path: Path) -> None:
    """The settings are frozen through and through."""
    assert from_file(tmp_path, 'allow_root = ["/a", "/b"]').config.allow_root == ("/a", "/b")


def test_a_whole_number_will_do_for_seconds(tmp_path: Path) -> None:
    """`30` means `30.0`."""
    config = from_file(tmp_path, "window_s = 20").config
    assert config.window_s == 20.0
    assert type(config.window_s) is float


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("window_s", 31.0, "between 1 and 30"),
        ("window_s", 0.5, "between 1 and 30"),
        ("window_s", float("nan"), "between 1 and 30"),
        ("lanes", -1, "between 0 and 256"),
        ("batch_rows", 65, "between 0 and 64"),
        ("express_lanes", -2, "between -1 and 16"),
        ("drain_timeout_s", -1.0, "between 0 and inf"),
        ("idle_unload_s", float("nan"), "between 0 and inf"),
        ("max_line_bytes", 100, "between 1024 and"),
        ("device", "gpu", "auto, cpu, cuda"),
        ("log_level", "INFO", "debug, info, warning, error"),
        ("log_format", "xml", "text, json"),
    ],
)
def test_a_value_out_of_range_is_refused_in_every_layer(tmp_path: Path, name: str, value: Any, said: str) -> None:
    """The message names the layer's own word for the setting."""
    with pytest.raises(ConfigError, match=f"{flag_name(name)}: .*{said}"):
        load_config({name: value}, None, {})
    with pytest.raises(ConfigError, match=f"WHISPERD_{name.upper()}: .*{said}"):
        from_environ(**{name.upper(): str(value)})
    with pytest.raises(ConfigError, match=rf"whisperd\.toml: .*{said}"):
        from_file(tmp_path, f"{name} = {value!r}" if isinstance(value, str) else f"{name} = {value}")


@pytest.mark.parametrize(("name", "value"), [("window_s", 1.0), ("window_s", 30.0), ("batch_rows", 64), ("lanes", 0)])
def test_the_ends_of_a_range_are_in_it(name: str, value: float) -> None:
    """Between means with both ends."""
    assert getattr(load_config({name: value}, None, {}).config, name) == value


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["lanes =", "lanes = 1\nlanes = 2", "= 3", '"'])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    """With the parser's word on where."""
    with pytest.raises(ConfigError, match=r"whisperd\.toml: .*\(at "):
        from_file(tmp_path, text)


def test_a_file_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    """TOML is UTF-8."""
    file = tmp_path / "whisperd.toml"
    file.write_bytes(b'model = "\xff"')
    with pytest.raises(ConfigError, match=r"whisperd\.toml: .*utf-8"):
        load_config({}, file, {})


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """It was named, so its absence is a mistake; a folder is no file."""
    with pytest.raises(ConfigError, match="No such file"):
        load_config({}, tmp_path / "missing.toml", {})
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config({}, tmp_path, {})


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    """Neither do comments."""
    assert from_file(tmp_path, "# lanes = 2\n").config == Config()


# -- the settings themselves -------------------------------------------------------------------------------------


def test_every_default_passes_its_own_check() -> None:
    """A default that could not be written down would be a trap for whoever writes the file from `config show`."""
    defaults = {name: getattr(Config(), name) for name in FIELDS}
    assert load_config(defaults, None, {}).config == Config()


def test_every_setting_says_what_it_is_for() -> None:
    """The reason stands beside the default."""
    for field in FIELDS.values():
        assert len(field.metadata["doc"]) > 10


def test_settings_cannot_be_changed() -> None:
    """Who holds them may keep them."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().lanes = 3  # type: ignore[misc]


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=12), max_size=4))
def test_any_environment_gives_settings_or_an_error_of_ours(variables: dict[str, str]) -> None:
    """Names and values of any text."""
    known = {f"WHISPERD_{name.upper()}" for name in FIELDS}
    environ = {f"WHISPERD_{name}": value for name, value in variables.items()}
    if any(name not in known for name in (variable.upper() for variable in environ)):
        with pytest.raises(ConfigError):
            load_config({}, None, environ)


@given(st.sampled_from(sorted(FIELDS)), st.text(max_size=12) | st.integers().map(str) | st.floats().map(str))
def test_any_value_of_a_variable_is_taken_or_refused(name: str, text: str) -> None:
    """Nothing but ConfigError comes out, and what is taken has the setting's type."""
    try:
        loaded = from_environ(**{name.upper(): text})
    except ConfigError as error:
        assert f"WHISPERD_{name.upper()}" in str(error)  # noqa: PT017 - both outcomes are right
    else:
        default = getattr(Config(), name)
        assert default is None or type(getattr(loaded.config, name)) is type(default)

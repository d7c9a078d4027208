"""The command line as its users meet it: real processes, a real daemon with the fake engine."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pysubs2
import pytest
from click import Command, Context, Group

from whisperd.cli import group
from whisperd.cli.ctl import MAIN_SOCKET_METHODS
from whisperd.config import FIELDS
from whisperd.protocol import methods
from whisperd.testing import digest_of

pytestmark = pytest.mark.integration
SPEECH = Path(__file__).resolve().parents[2].parent / "shared" / "speech"
WHISPERD = [sys.executable, "-m", "whisperd"]


class Home:
    """A user's environment of its own: runtime directory, state, and no daemon yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WHISPERD_")}
        kept.pop("RUNTIME_DIRECTORY", None)
        self.environ = {
            **kept,
            "XDG_RUNTIME_DIR": str(root),
            "XDG_STATE_HOME": str(root / "state"),
            "XDG_CONFIG_HOME": str(root / "config"),
            "WHISPERD_MODEL": "fake",
        }

    def run(self, *arguments: object, input: bytes | None = b"", cwd: Path | None = None) -> Finished:
        done = subprocess.run(
            [*WHISPERD, *map(str, arguments)],
            input=input,
            capture_output=True,
            env=self.environ,
            cwd=cwd,
            timeout=120,
            check=False,
        )
        return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        """A daemon on the runtime directory's sockets, once it serves."""
        daemon = subprocess.Popen([*WHISPERD, "serve", *map(str, arguments)], stderr=subprocess.PIPE, env=self.environ)
        assert daemon.stderr is not None
        for line in daemon.stderr:
            if b"serving" in line:
                return daemon
        raise AssertionError(f"the daemon ended with {daemon.wait()}")


class Finished:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def objects(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def home() -> Iterator[Home]:
    """Without a daemon. The path is short, because a socket's path may have 107 characters."""
    with tempfile.TemporaryDirectory() as root:
        yield Home(Path(root))


@pytest.fixture(scope="module")
def served() -> Iterator[Home]:
    """With a running daemon, shared by the tests that leave it as it is."""
    with tempfile.TemporaryDirectory() as root:
        home = Home(Path(root))
        daemon = home.start()
        yield home
        daemon.terminate()
        assert daemon.wait(30) == 0
        assert daemon.stderr is not None
        daemon.stderr.close()


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder with inputs whose text the fake engine derives from their bytes."""
    for name, content in (("a.wav", b"first"), ("b.wav", b"second"), ("bad.wav", b"BAD")):
        (tmp_path / name).write_bytes(content)
    return tmp_path


def text_of(content: bytes) -> str:
    """What the fake engine hears in an input."""
    return f"{digest_of(content)} 0"


# --- transcribe


def test_transcribe_starts_a_daemon_of_its_own_where_none_runs(home: Home, clips: Path) -> None:
    """And it is gone afterwards, with nothing left in the runtime directory."""
    done = home.run("transcribe", clips / "a.wav")
    assert (done.code, done.out, done.err) == (0, text_of(b"first") + "\n", "")
    assert not (home.root / "whisperd").exists()


def test_transcribe_uses_the_daemon_that_runs(served: Home, clips: Path) -> None:
    """Its counters tell; a relative path is the caller's."""
    before = json.loads(served.run("ctl", "metrics.current").out)["requests"]["succeeded"]
    assert served.run("transcribe", "a.wav", cwd=clips).out == text_of(b"first") + "\n"
    assert json.loads(served.run("ctl", "metrics.current").out)["requests"]["succeeded"] == before + 1


def test_jsonl_prints_one_result_per_line_in_the_order_of_the_arguments(served: Home, clips: Path) -> None:
    """A file that fails is named on stderr with its error kind; the rest is done; the exit code says so."""
    names = [str(clips / name) for name in ("b.wav", "missing.wav", "a.wav", "bad.wav", "b.wav")]
    done = served.run("transcribe", *names, "--format", "jsonl", "--jobs", 2)
    assert done.code == 1
    assert [result["file"] for result in done.objects()] == [names[0], names[2], names[4]]
    assert [result["text"] for result in done.objects()] == [text_of(b"second"), text_of(b"first"), text_of(b"second")]
    assert done.err.splitlines()[0] == f"whisperd: {names[1]}: audio_not_found: No such file or directory"
    assert done.err.splitlines()[1].startswith(f"whisperd: {names[3]}: audio_unreadable: ")


def test_more_inputs_than_are_under_way_keep_their_order(served: Home, clips: Path) -> None:
    """Hundreds of inputs, four at a time."""
    listed = []
    for number in range(300):
        (clips / f"{number}.raw").write_bytes(b"clip %d" % number)
        listed.append(str(clips / f"{number}.raw"))
    done = served.run("transcribe", "--files-from", "-", "--jobs", 4, input="\n".join(listed).encode())
    assert done.out.splitlines() == [text_of(b"clip %d" % number) for number in range(300)]


def test_json_is_an_object_for_one_file_and_an_array_for_more(served: Home, clips: Path) -> None:
    """The array is valid also when files of it fail, or all."""
    a, bad = clips / "a.wav", clips / "bad.wav"
    assert json.loads(served.run("transcribe", a, "--format", "json").out)["file"] == str(a)
    both = json.loads(served.run("transcribe", a, bad, a, "--format", "json").out)
    assert [result["file"] for result in both] == [str(a), str(a)]
    assert json.loads(served.run("transcribe", bad, bad, "--format", "json").out) == []


def test_a_folder_is_searched_through_for_media_in_sorted_order(served: Home, tmp_path: Path) -> None:
    """Hidden files and other suffixes are left alone; a folder without media is a failure of its own."""
    for name in ("z.mp3", "sub/b.flac", "sub/a.OGG", ".hidden.wav", ".git/c.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "empty").mkdir()
    done = served.run("transcribe", tmp_path, tmp_path / "empty", "--format", "jsonl")
    assert [Path(str(result["file"])).name for result in done.objects()] == ["z.mp3", "a.OGG", "b.flac"]
    assert done.err == f"whisperd: {tmp_path / 'empty'}: audio_not_found: no media files in this folder\n"
    assert done.code == 1


def test_standard_input_is_audio_or_a_list_of_names(served: Home, home: Home, clips: Path) -> None:
    """Audio also for a daemon of one's own, and with names that are not UTF-8 on the list."""
    assert served.run("transcribe", "-", input=b"from a pipe").out == text_of(b"from a pipe") + "\n"
    assert home.run("transcribe", "-", input=b"from a pipe").out == text_of(b"from a pipe") + "\n"
    odd = os.fsencode(clips) + b"/\xff.wav"
    with open(odd, "wb") as file:
        file.write(b"odd")
    listed = b"\n".join([os.fsencode(clips / "a.wav"), b"", odd]) + b"\n"
    done = served.run("transcribe", "--files-from", "-", "--format", "jsonl", input=listed)
    assert [result["text"] for result in done.objects()] == [text_of(b"first"), text_of(b"odd")]
    assert str(done.objects()[1]["file"]).endswith("/\ufffd.wav")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-", "-"],
        ["-", "--files-from", "-"],
        ["a.wav", "--format", "doc"],
        ["a.wav", "--format", "srt", "--timestamps", "none"],
        ["a.wav", "--temperature", "hot"],
        ["--files-from", "missing.txt"],
    ],
)
def test_wrong_usage_ends_with_2(home: Home, arguments: list[str]) -> None:
    """Before anything is started or read, with a line that says what is wrong."""
    done = home.run("transcribe", *arguments)
    assert (done.code, done.out) == (2, "")
    assert "Error: " in done.err


def test_options_reach_the_daemon(served: Home, clips: Path) -> None:
    """Each under its name of the contract; the result tells of those that show."""
    done = served.run(
        *("transcribe", clips / "a.wav", "--format", "json", "--language", "de", "--task", "translate"),
        *("--timestamps", "word", "--model", "fake", "--beam-size", 2, "--temperature", "0.2,0.4"),
        *("--initial-prompt", "p", "--hotwords", "h", "--no-vad", "--priority", "bulk", "--encoder-context", "full"),
    )
    result = json.loads(done.out)
    assert (result["language"], result["task"], result["model"]) == ("de", "translate", "fake")
    assert result["segments"][0]["temperature"] == 0.2
    assert len(result["segments"][0]["words"]) == 2


def test_an_option_that_the_daemon_refuses_is_each_file_s_failure(served: Home, clips: Path) -> None:
    """With the daemon's own words."""
    done = served.run("transcribe", clips / "a.wav", "--language", "English")
    assert done.code == 1
    assert "a.wav: invalid_params: /language: " in done.err


@pytest.mark.parametrize("format_name", ["txt", "json", "jsonl", "srt", "vtt", "tsv", "lrc"])
def test_output_dir_gets_one_whole_file_per_input(served: Home, clips: Path, format_name: str) -> None:
    """Nothing is printed, nothing else is left behind, and an older result is replaced."""
    out = clips / "new" / "out"
    for _ in range(2):
        inputs = (clips / "a.wav", clips / "bad.wav")
        done = served.run("transcribe", *inputs, "--format", format_name, "--output-dir", out)
        assert (done.code, done.out) == (1, "")
    assert [path.name for path in out.iterdir()] == [f"a.{format_name}"]
    assert digest_of(b"first") in (out / f"a.{format_name}").read_text()


def test_inputs_of_one_name_do_not_overwrite_each_other(served: Home, tmp_path: Path) -> None:
    """The suffix tells them apart, then a number; folders keep their shape."""
    for name in ("x/a.wav", "x/a.mp3", "y/a.wav", "y/deep/a.wav", "y/b.v1.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    x, y, out = tmp_path / "x", tmp_path / "y", tmp_path / "out"
    assert served.run("transcribe", x / "a.wav", x / "a.mp3", y, y / "a.wav", "--output-dir", out).code == 0
    written = {str(path.relative_to(out)): path.read_text().strip() for path in out.rglob("*.txt")}
    assert written == {
        "a.wav.txt": text_of(b"x/a.wav"),
        "a.mp3.txt": text_of(b"x/a.mp3"),
        "a.wav-2.txt": text_of(b"y/a.wav"),
        "a.wav-3.txt": text_of(b"y/a.wav"),
        "deep/a.txt": text_of(b"y/deep/a.wav"),
        "b.v1.txt": text_of(b"y/b.v1.wav"),
    }


def test_a_folder_that_cannot_be_written_to_is_a_failure(served: Home, clips: Path) -> None:
    """Named per input; here a file is in the way."""
    done = served.run("transcribe", clips / "a.wav", "--output-dir", clips / "b.wav")
    assert done.code == 1
    assert "a.wav: cannot write: " in done.err


def test_subtitles_of_a_long_input_read_back(served: Home, tmp_path: Path) -> None:
    """A parser that is not ours finds a cue for each window."""
    (tmp_path / "long.wav").write_bytes(bytes(32_000 * 70))
    done = served.run("transcribe", tmp_path / "long.wav", "--format", "srt")
    cues = pysubs2.SSAFile.from_string(done.out, format_="srt")
    assert [event.start for event in cues] == [0, 18_000, 36_000, 54_000]


def test_a_reader_that_goes_away_ends_the_command_quietly(served: Home, clips: Path) -> None:
    """As in `whisperd transcribe … | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*WHISPERD, "transcribe", *[str(clips / "a.wav")] * 3],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=served.environ,
        timeout=120,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def on_a_terminal(home: Home, *arguments: object) -> str:
    """What a terminal would show, with stdout and stderr on it."""
    leader, follower = pty.openpty()
    command = subprocess.Popen(
        [*WHISPERD, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
        env={**home.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(follower)
    shown = b""
    while chunk := _read_terminal(leader):
        shown += chunk
    os.close(leader)
    command.wait(60)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())


def _read_terminal(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:  # EIO: the last one on the other side has closed it
        return b""


def test_a_terminal_gets_a_progress_bar_and_a_pipe_does_not(served: Home, clips: Path) -> None:
    """The bar counts files; the results are printed all the same."""
    shown = on_a_terminal(served, "transcribe", clips / "a.wav", clips / "b.wav")
    assert "2/2 files" in shown
    assert text_of(b"first") in shown
    assert text_of(b"second") in shown
    assert "files" not in on_a_terminal(served, "transcribe", clips / "a.wav", "--quiet")
    assert served.run("transcribe", clips / "a.wav").err == ""


def test_an_interrupt_cancels_and_a_lost_daemon_is_told(home: Home, clips: Path) -> None:
    """Exit codes 130 and 70, while a daemon that never answers holds two requests."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home.root / "silent.sock"))
        listener.listen()
        arguments = ["transcribe", str(clips / "a.wav"), str(clips / "b.wav"), "--socket", listener.getsockname()]
        for how, code in (("interrupt", 130), ("loss", 70)):
            command = subprocess.Popen([*WHISPERD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            daemon, _ = listener.accept()
            with daemon:
                received = b""
                while received.count(b"\n") < 2:
                    received += daemon.recv(65536)
                if how == "interrupt":
                    command.send_signal(signal.SIGINT)
                    while chunk := daemon.recv(65536):
                        received += chunk
                    assert received.count(b'"method":"cancel"') == 2
            out, err = command.communicate(timeout=60)
            assert (command.returncode, out) == (code, b"")
            assert err.decode().strip() == {
                "interrupt": "whisperd: interrupted",
                "loss": "whisperd: the daemon closed the connection; 2 of 2 files are not done",
            }[how]


def test_an_interrupt_while_audio_comes_on_standard_input_ends_the_command(home: Home) -> None:
    """Also before there is anything to cancel."""
    command = subprocess.Popen(
        [*WHISPERD, "transcribe", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=home.environ
    )
    assert command.stdin is not None
    assert command.stderr is not None
    with command.stdin, command.stderr:
        command.stdin.write(bytes(1_000_000))  # more than a pipe holds: when this is done, it is being read
        command.stdin.flush()
        command.send_signal(signal.SIGINT)
        assert command.wait(60) == 130
        assert command.stderr.read() == b"whisperd: interrupted\n"


# --- ctl, health and the rest


def test_ctl_sends_json_values_and_strings(served: Home) -> None:
    """A value that is JSON goes as such; errors are on stderr with exit code 1."""
    assert json.loads(served.run("ctl", "ping").out)["pong"] is True
    assert json.loads(served.run("ctl", "cancel", "id=7").out) == {"cancelled": False}
    assert json.loads(served.run("ctl", "cancel", "job=none").out) == {"cancelled": False}
    refused = served.run("ctl", "cancel", "id=7.5")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("whisperd: invalid_params: /id")
    unknown = served.run("ctl", "pin")
    assert (unknown.code, unknown.err.split(": ")[1]) == (1, "method_not_found")
    assert served.run("ctl", "ping", "novalue").code == 2


def test_ctl_transcribes_over_the_main_socket(served: Home, clips: Path) -> None:
    """The control socket carries no audio."""
    audio = json.dumps({"path": str(clips / "a.wav")})
    assert json.loads(served.run("ctl", "transcribe", f"audio={audio}").out)["text"] == text_of(b"first")


def test_ctl_knows_which_methods_are_for_the_main_socket_only() -> None:
    """The list in the code is the one in the schemas."""
    assert {name for name, method in methods().items() if method.main_only} == MAIN_SOCKET_METHODS


def test_ctl_takes_a_socket_by_option_or_environment(served: Home, home: Home) -> None:
    """Both win over the runtime directory."""
    path = served.root / "whisperd" / "whisperd.sock"
    assert home.run("ctl", "ping", "--socket", path).code == 0
    home.environ["WHISPERD_SOCKET"] = str(path)
    assert home.run("ctl", "ping").code == 0


def test_without_a_daemon_ctl_says_so(home: Home) -> None:
    """It starts none."""
    done = home.run("ctl", "ping")
    assert (done.code, done.out) == (70, "")
    assert "no daemon answers on" in done.err


def test_a_terminal_gets_tables_and_a_pipe_gets_json(served: Home) -> None:
    """`--format` overrides both ways."""
    table = on_a_terminal(served, "ctl", "status")
    assert "queue.depth" in table
    assert "media" in table
    assert json.loads(on_a_terminal(served, "ctl", "status", "--format", "json"))["queue"]["depth"] == 0
    assert "queue.depth" in served.run("ctl", "status", "--format", "table").out


def test_ctl_ping_loads_nothing_heavy(served: Home) -> None:
    """Its start is what people wait for: no numpy, no rich, no asyncio, no schemas."""
    script = (
        "import sys, atexit; from whisperd.cli import main;"
        "heavy = ('numpy', 'rich', 'asyncio', 'jsonschema', 'loguru', 'faster_whisper', 'sqlite_utils');"
        "atexit.register(lambda: sys.stderr.write(str([m for m in heavy if m in sys.modules])));"
        "sys.argv[1:] = ['ctl', 'ping']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env=served.environ, text=True, timeout=60, check=True
    )
    assert done.stderr == "[]"


def test_health_has_the_exit_codes_of_a_monitoring_plugin(home: Home) -> None:
    """2 without a daemon, 0 with one, 2 while it drains; one line on demand."""
    assert home.run("health").code == 2
    daemon = home.start()
    assert daemon.stderr is not None
    with daemon.stderr:
        fine = home.run("health")
        assert (fine.code, json.loads(fine.out)["status"]) == (0, "healthy")
        assert home.run("health", "--format", "line").out == "WHISPERD OK - healthy\n"
        home.run("ctl", "drain")
        draining = home.run("health", "--format", "line")
        assert draining.code == 2
        assert draining.out.startswith("WHISPERD CRITICAL - unhealthy: ")
        home.run("ctl", "shutdown")
        assert daemon.wait(30) == 0


def test_models_are_listed_and_checked_without_a_daemon(home: Home) -> None:
    """A name that means nothing is an error with its kind."""
    listed = json.loads(home.run("models", "list").out)["models"]
    assert {"tiny.en", "base", "small"} <= {model["name"] for model in listed}
    if any(model["name"] == "tiny.en" and model["state"] == "available" for model in listed):
        report = json.loads(home.run("models", "verify", "tiny.en").out)
        assert report["ok"] is True
    unknown = home.run("models", "verify", "no-such-model")
    assert unknown.code == 1
    assert unknown.err.startswith("whisperd: model_not_found: ")


def test_config_show_says_where_each_value_came_from(home: Home, tmp_path: Path) -> None:
    """Defaults, file, environment, flags; and a setting that is unknown is wrong usage."""
    file = tmp_path / "w.toml"
    file.write_text("lanes = 3\nqueue_max = 7\n")
    done = home.run("config", "show", "--config", file, "--queue-max", 9, "--drain-timeout", 1.5, "--no-ordered")
    rows = {row["setting"]: (row["value"], row["from"]) for row in json.loads(done.out)["settings"]}
    assert rows["lanes"] == (3, f"file {file}")
    assert rows["queue_max"] == (9, "flag")
    assert rows["drain_timeout_s"] == (1.5, "flag")
    assert rows["ordered"] == (False, "flag")
    assert rows["model"] == ("fake", "WHISPERD_MODEL")
    assert rows["device"] == ("auto", "default")
    assert set(rows) == set(FIELDS)
    file.write_text("lane = 3\n")
    wrong = home.run("config", "show", "--config", file)
    assert (wrong.code, "lanes" in wrong.err) == (2, True)


def test_the_users_own_settings_are_read_without_being_named(home: Home, tmp_path: Path) -> None:
    """What `whisperd tune` writes is in effect from then on; `--config` names another file in its place."""
    own = home.root / "config" / "whisperd" / "whisperd.toml"
    own.parent.mkdir(parents=True)
    own.write_text("queue_max = 7\n")
    shown = [home.run("config", "show", *flags) for flags in ((), ("--config", os.devnull))]
    rows = [{row["setting"]: row for row in json.loads(done.out)["settings"]} for done in shown]
    assert [each["queue_max"]["from"] for each in rows] == [f"file {own}", "default"]
    own.write_text("lane = 3\n")
    assert home.run("serve").code == 2


def test_serve_takes_every_flag_of_the_contract(home: Home) -> None:
    """As the protocol page writes them."""
    help = home.run("serve", "--help").out
    for flag in (
        *("--stdio", "--socket", "--control-socket", "--model", "--device", "--compute-type", "--ordered"),
        *("--drain-timeout", "--max-line-bytes", "--allow-root", "--store", "--config", "--socket-group"),
    ):
        assert re.search(rf"^  {flag}\b", help, re.MULTILINE), flag
    assert home.run("serve", "--device", "abacus").code == 2


def test_serve_speaks_the_protocol_on_stdio(home: Home) -> None:
    """One line in, one line out, and the end of input ends it."""
    done = home.run("serve", "--stdio", input=b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
    assert done.code == 0
    assert [reply["id"] for reply in done.objects()] == [1]


def test_schemas_are_printed_whole_and_by_method(home: Home) -> None:
    """For people and for code generators."""
    everything = json.loads(home.run("schema").out)
    assert everything["transcribe"] == json.loads(home.run("schema", "transcribe").out)
    assert "envelope" in everything
    assert home.run("schema", "transcrib").code == 1
    assert "role" in home.run("schema", "--format", "table").out


def test_version_is_told(home: Home) -> None:
    """Both ways of asking."""
    assert set(json.loads(home.run("version").out)) == {"version", "protocol"}
    assert home.run("--version").out.startswith("whisperd ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_valid_and_complete_methods(home: Home, shell: str) -> None:
    """The shell itself checks the script where it is installed; method names come from the schemas."""
    script = home.run("completion", shell).out
    assert "_WHISPERD_COMPLETE" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script.encode(), check=True, timeout=30)
    if shell == "bash":
        home.environ |= {"_WHISPERD_COMPLETE": "bash_complete", "COMP_WORDS": "whisperd ctl mod", "COMP_CWORD": "2"}
        assert "models.list" in home.run().out


def commands(command: Command, path: str = "whisperd") -> Iterator[tuple[str, Command]]:
    """Every command below, with how it is called."""
    yield path, command
    if isinstance(command, Group):
        context = Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, f"{path} {name}")


def test_every_help_text_teaches_by_example() -> None:
    """Each command's help holds a command that can be copied."""
    for path, command in commands(group):
        assert path in (command.help or ""), path


# --- with the real model


@pytest.mark.speech
def test_real_speech_becomes_subtitles(home: Home) -> None:
    """From a clip to cues in a folder, through a daemon of the command's own."""
    clip = SPEECH / "librispeech" / "4088-158077-0004.flac"
    if not clip.exists():
        pytest.skip("the shared speech clips are not on this machine")
    home.environ["WHISPERD_MODEL"] = "tiny.en"
    done = home.run("transcribe", clip, "--format", "srt", "--timestamps", "word", "--output-dir", home.root)
    assert (done.code, done.err) == (0, "")
    cues = pysubs2.SSAFile.from_string((home.root / f"{clip.stem}.srt").read_text(), format_="srt")
    words = re.sub(r"[^a-z ]", "", " ".join(event.plaintext for event in cues).lower().replace("\n", " "))
    assert "turn this imperialistic war into a crusade for democracy" in words
    assert all(event.end - event.start <= 7000 for event in cues)

"""However the daemon ends, nothing of it stays: no process, no file in the temporary directory, no memory file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from running_daemon import Launch, RunningDaemon, until, workers
from speech_clips import SPEECH, belongs, clips, needs_speech

from whisperd.client import AudioUnreadable, Cancelled, Client, ConnectionLost

pytestmark = [pytest.mark.integration, pytest.mark.speech, needs_speech]

SHORT = [each for each in clips("asterisk_en_8k") if each.seconds < 3.5]
GONE_WITHIN_S = 10.0  # for what the kernel does by itself, on a machine that is busy with other things
PROCESSES = 4  # the supervisor, two media workers, one engine


def expect_nobody_left(family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, GONE_WITHIN_S)
    assert [process.cmdline() for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def memory_files(pid: int) -> list[str]:
    """Memory files that a process holds open, the samples of audio among them."""
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue  # the one that lists the folder
    return [link for link in links if link.startswith("/memfd:")]


@pytest.mark.parametrize("moment", ["idle", "busy", "stopped"])
def test_no_worker_outlives_a_supervisor_that_is_killed(launch: Launch, moment: str) -> None:
    """Whether they wait, work, or cannot even be scheduled."""
    daemon = launch("--model", "tiny.en")
    with daemon.connect() as client:
        until(lambda: client.health()["ready"], "the daemon is ready")
        until(lambda: {worker["state"] for worker in client.status()["workers"]} == {"ready"}, "all workers are")
        if moment == "busy":
            replies = [client.submit(each.path) for each in SHORT * 2]
            replies[0].result()
        family = daemon.family()
        assert len(family) == PROCESSES
        if moment == "stopped":
            for worker in workers(client, "media") + workers(client, "inference"):
                os.kill(worker["pid"], signal.SIGSTOP)
        daemon.signal(signal.SIGKILL)
        assert daemon.wait() == -signal.SIGKILL
        expect_nobody_left(family)
        assert daemon.family() == []
        if moment == "busy":
            with pytest.raises(ConnectionLost):
                replies[-1].result()
    assert list(daemon.temporary.iterdir()) == []


def test_no_worker_outlives_a_supervisor_that_is_killed_while_they_start(launch: Launch) -> None:
    """The moment in which a worker does not know yet whose child it is."""
    daemon = launch("--model", "tiny.en")
    until(lambda: len(daemon.family()) == PROCESSES, "all processes are there")
    family = daemon.family()
    daemon.signal(signal.SIGKILL)
    expect_nobody_left(family)
    daemon.wait()


@pytest.mark.parametrize("ending", ["SIGTERM", "shutdown"])
def test_a_daemon_that_ends_takes_everything_with_it(launch: Launch, ending: str) -> None:
    """Accepted work is finished first; then no process is left, no socket, nothing in the temporary directory."""
    daemon = launch("--model", "tiny.en")
    with daemon.connect() as client:
        replies = [(each, client.submit(each.path)) for each in SHORT[:6]]
        replies[0][1].result()
        family = daemon.family()
        if ending == "shutdown":
            client.call("shutdown")
        else:
            daemon.signal(signal.SIGTERM)
        for each, reply in replies:
            assert belongs(reply.result().text, each)
    assert daemon.wait() == 0
    expect_nobody_left(family)
    assert daemon.family() == []
    assert list(daemon.temporary.iterdir()) == []
    assert list(daemon.folder.glob("*.sock")) == []


def test_a_spawned_daemon_does_not_outlive_its_parent(tmp_path: Path) -> None:
    """The parent is killed in the middle of its requests: end of input, end of daemon, end of workers."""
    program = (
        "import sys; from whisperd.client import Client; client = Client(spawn=True, model='tiny.en'); "
        "asked = [client.submit(file) for file in sys.argv[1:]]; asked[0].result(); "
        "print('asked', flush=True); sys.stdin.read()"
    )
    environ = {**os.environ, "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", program, *(str(each.path) for each in SHORT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environ,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"asked\n"
        family = psutil.Process(parent.pid).children(recursive=True)
        assert len(family) == PROCESSES
        parent.kill()
    expect_nobody_left(family)


def test_nothing_is_held_when_everything_is_answered(launch: Launch) -> None:
    """Answered, refused, cancelled, abandoned by its client: no process keeps a memory file, no file is spooled."""
    daemon = launch("--model", "tiny.en")
    with daemon.connect() as client:
        replies = [client.submit(each.path) for each in SHORT[:8]]
        spooled = client.submit(SHORT[0].path.read_bytes())
        broken = client.submit(SPEECH / "malformed" / "random_64k.wav")
        long = client.submit(SPEECH / "librispeech" / "4088-158077-0019.flac")
        leave_in_the_middle(daemon)
        assert long.cancel()
        for reply in [*replies, spooled]:
            assert reply.result().text
        with pytest.raises(AudioUnreadable):
            broken.result()
        with pytest.raises(Cancelled):
            long.result()
        pids = [process.pid for process in daemon.family()]
        # what the cancelled ones were in the middle of is still being finished for nobody
        until(lambda: [file for pid in pids for file in memory_files(pid)] == [], "no memory file is open")
        assert client.status()["jobs"] == []
    assert list(daemon.temporary.iterdir()) == []


def leave_in_the_middle(daemon: RunningDaemon) -> None:
    """A client that asks and goes away."""
    client: Client = daemon.connect()
    client.submit(SHORT[0].path)
    client.submit(SHORT[1].path.read_bytes())
    client.close()

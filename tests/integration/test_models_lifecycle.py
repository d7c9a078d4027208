"""Models come and go: side by side, replaced while they work, let go when idle, back when wanted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from running_daemon import WAIT_S, Launch, RunningDaemon, until, workers
from speech_clips import belongs, clip, clips, needs_speech

from whisperd.client import Client, Conflict, ModelNotFound, NotFound, Overloaded

pytestmark = [pytest.mark.integration, pytest.mark.speech, needs_speech]

MODELS = ("tiny.en", "base")
# but for one that the base model takes for something else, whoever runs it
SHORT = [each for each in clips("asterisk_en_8k") if each.seconds < 3.5 and "userwilljoin" not in each.file]
LONG = clip("longform/libri_4088-158079_4m.mp3")
MODEL_BYTES = 75_000_000  # what tiny.en takes at the least


def states(client: Client) -> dict[str, str]:
    """By name, of the models that are loaded or loading."""
    found = {model["name"]: model["state"] for model in client.models()}
    return {name: state for name, state in found.items() if state in ("loaded", "loading", "failed")}


def tree_rss_bytes(daemon: RunningDaemon) -> int:
    return sum(process.memory_info().rss for process in daemon.family())


def engines(client: Client) -> dict[str, int]:
    """The inference workers: model and pid."""
    return {worker["model"]: worker["pid"] for worker in workers(client, "inference")}


def wait_until_ready(client: Client) -> None:
    until(lambda: client.health()["ready"], "the daemon is ready")


def test_models_are_listed_loaded_and_unloaded(launch: Launch) -> None:
    """A name is known, loaded, used, unloaded, and then its process is gone."""
    daemon = launch("--model", "tiny.en")
    with daemon.connect() as client:
        wait_until_ready(client)
        listed = {model["name"]: model for model in client.models()}
        assert (listed["tiny.en"]["state"], listed["base"]["state"]) == ("loaded", "available")
        assert (listed["tiny.en"]["multilingual"], listed["base"]["multilingual"]) == (False, True)
        assert (listed["tiny.en"]["default"], listed["base"]["default"]) == (True, False)
        assert client.call("models.load", model="base") == {"model": "base", "state": "loaded"}
        assert states(client) == {"tiny.en": "loaded", "base": "loaded"}
        process = psutil.Process(engines(client)["base"])
        assert client.call("models.unload", model="base") == {"model": "base", "state": "available"}
        assert states(client) == {"tiny.en": "loaded"}
        assert not process.is_running()
        with pytest.raises(NotFound):
            client.call("models.unload", model="base")
        with pytest.raises(ModelNotFound):
            client.call("models.load", model="nonesuch")


def test_two_models_work_at_the_same_time(launch: Launch) -> None:
    """One burst for both, the second loaded on demand: each reply names its model and is right."""
    daemon = launch("--model", "tiny.en")
    with daemon.connect() as client:
        replies = [(each, name, client.submit(each.path, model=name)) for each in SHORT[:8] for name in MODELS]
        for each, name, reply in replies:
            result = reply.result()
            assert result.model == name
            assert belongs(result.text, each)
        assert set(engines(client)) == set(MODELS)


def test_a_model_is_replaced_without_a_gap(launch: Launch) -> None:
    """Four clients ask all the time while the model is loaded again: the old process serves until the new one is
    ready, no reply is lost or wrong, and then the old one is gone."""
    daemon = launch("--model", "tiny.en")
    with daemon.connect() as client:
        wait_until_ready(client)
        old = psutil.Process(engines(client)["tiny.en"])
        replaced = False

        def keep_asking(number: int) -> int:
            count = 0
            with daemon.connect() as own:
                while not replaced or count < 3:
                    each = SHORT[(4 * count + number) % len(SHORT)]
                    assert belongs(own.transcribe(each.path).text, each)
                    count += 1
            return count

        with ThreadPoolExecutor(4) as threads:
            askers = [threads.submit(keep_asking, number) for number in range(4)]
            until(lambda: workers(client, "inference")[0]["state"] == "busy", "they ask")
            try:
                client.call("models.load", model="tiny.en")
            finally:
                replaced = True
            counts = [asker.result() for asker in askers]
        assert min(counts) >= 3
        assert engines(client)["tiny.en"] != old.pid
        assert not old.is_running()
        assert len(daemon.family()) == 4


def test_a_successor_that_cannot_be_had_leaves_the_model_as_it_is(launch: Launch) -> None:
    """A name that is unknown changes nothing."""
    daemon = launch("--model", "tiny.en")
    with daemon.connect() as client:
        wait_until_ready(client)
        before = engines(client)
        with pytest.raises(ModelNotFound):
            client.call("models.load", model="nonesuch")
        assert engines(client) == before
        assert belongs(client.transcribe(SHORT[0].path).text, SHORT[0])


def test_a_model_with_work_is_not_unloaded(launch: Launch) -> None:
    """It says so, and the work goes on."""
    daemon = launch("--model", "tiny.en")
    with daemon.connect() as client:
        wait_until_ready(client)
        replies = [(each, client.submit(each.path)) for each in SHORT[:10]]
        until(lambda: workers(client, "inference")[0]["state"] == "busy", "the engine works")
        with pytest.raises(Conflict):
            client.call("models.unload", model="tiny.en")
        for each, reply in replies:
            assert belongs(reply.result().text, each)


def test_an_idle_model_gives_its_memory_back_and_comes_again_when_wanted(launch: Launch) -> None:
    """Its process ends, and with it all the memory it had; the next request waits for a new one."""
    daemon = launch("--model", "tiny.en", idle_unload_s=1.5)
    with daemon.connect() as client:
        assert belongs(client.transcribe(SHORT[0].path).text, SHORT[0])
        loaded_bytes = tree_rss_bytes(daemon)
        process = psutil.Process(engines(client)["tiny.en"])
        daemon.wait_for_log("unloading model")
        until(lambda: not process.is_running(), "the process is gone")
        assert states(client) == {}
        assert engines(client) == {}
        assert tree_rss_bytes(daemon) < loaded_bytes - MODEL_BYTES
        assert client.health()["ready"]  # a model that comes when it is wanted is nothing to worry about
        assert belongs(client.transcribe(SHORT[1].path).text, SHORT[1])
        assert engines(client)["tiny.en"] != process.pid


def test_at_most_models_max_are_in_memory(launch: Launch) -> None:
    """The one that is idle longest makes room; where all are busy, who asks for another is told to come again."""
    daemon = launch("--model", "tiny.en", models_max=1)
    daemon.wait_for_log("serving")
    with Client(daemon.socket, timeout=WAIT_S, overload_retries=0) as client:
        wait_until_ready(client)
        assert belongs(client.transcribe(SHORT[0].path, model="base").text, SHORT[0])
        assert set(engines(client)) == {"base"}
        busy = client.submit(LONG.path, model="base", encoder_context="full")
        until(lambda: states_of_jobs(client) == ["running"], "the engine works")
        with pytest.raises(Overloaded) as caught:
            client.call("models.load", model="tiny.en")
        assert (caught.value.retry_after_ms or 0) > 0
        assert busy.cancel()


def states_of_jobs(client: Client) -> list[Any]:
    return [job["state"] for job in client.status()["jobs"]]

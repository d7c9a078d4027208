"""Models come when they are wanted, go when they are not, and are replaced without anybody waiting in vain."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from house import House, audio, run, settle

from whisperd.errors import WhisperdError
from whisperd.inference.process import ModelTraits
from whisperd.jobs import Window
from whisperd.media.pool import Prepared
from whisperd.messages import WindowResult
from whisperd.testing import FakeEngine, FakeMedia, digest_of
from whisperd.worker import WorkerLost


class SlowEngine(FakeEngine):
    """Loads until it is told the outcome."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.started = asyncio.Event()
        self.drained = asyncio.Event()
        self.error: WhisperdError | None = None

    def start(self) -> None:
        self.started.set()

    def become_ready(self) -> None:
        """Loading is done."""
        self.traits = ModelTraits(True, frozenset({"en", "de"}))
        self.changed()

    def become_failed(self) -> None:
        """It does not load."""
        self.traits = None
        self.error = WhisperdError("model_load_failed", "the file is damaged")
        self.changed()

    def health(self) -> tuple[str, WhisperdError | None]:
        if self.error:
            return "failed", self.error
        return super().health()

    async def drain(self) -> None:
        await super().drain()
        self.drained.set()


class QuickEngine(SlowEngine):
    """Ready at once, like FakeEngine, with the events of SlowEngine."""

    def start(self) -> None:
        super().start()
        self.become_ready()


class HeldMedia(FakeMedia):
    """Media workers that begin when they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.held = asyncio.Event()

    async def prepare(self, *given: Any) -> Prepared:
        await self.held.wait()
        return await super().prepare(*given)


class Nursery:
    """Makes slow engines and says when one has started."""

    def __init__(self) -> None:
        self.engines: list[SlowEngine] = []

    def __call__(self, name: str) -> SlowEngine:
        self.engines.append(SlowEngine(name))
        return self.engines[-1]

    async def started(self, number: int) -> SlowEngine:
        """The engine with this number, once it is loading."""
        while len(self.engines) <= number:
            await asyncio.sleep(0)
        await self.engines[number].started.wait()
        return self.engines[number]


# -- loading -----------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_once_however_many_want_it() -> None:
    """All wait for the one, and all are served."""

    async def test() -> None:
        nursery = Nursery()
        async with House(nursery) as house:
            client = house.client()
            ids = [client.transcribe(audio(1.0, str(n))) for n in range(20)]
            engine = await nursery.started(0)
            await settle(50)
            assert client.replies == []
            engine.become_ready()
            for id in ids:
                await client.result(id)
            assert len(nursery.engines) == 1
            house.in_order()

    run(test)


def test_requests_for_different_models_go_to_their_own_engines() -> None:
    """And say so in the result."""

    async def test() -> None:
        async with House() as house:
            client = house.client()
            ids = {name: client.transcribe(model=name) for name in ("a", "b")}
            for name, id in ids.items():
                assert (await client.result(id))["model"] == name
            assert {name: len(engines[0].batches) for name, engines in house.engines.items()} == {"a": 1, "b": 1}

    run(test)


def test_a_model_that_does_not_exist_fails_its_own_requests() -> None:
    """Every time that it is asked for; the reason is kept for `health`."""

    def make(name: str) -> FakeEngine:
        if name == "none":
            raise WhisperdError("model_not_found", "there is no model 'none'")
        return FakeEngine(name)

    async def test() -> None:
        async with House(make) as house:
            client = house.client()
            bad = [client.transcribe(model="none") for _ in range(3)]
            good = client.transcribe()
            for id in bad:
                assert (await client.error(id))["kind"] == "model_not_found"
            await client.result(good)
            assert list(house.service.fleet.start_errors) == ["none"]
            house.in_order()

    run(test)


def test_a_model_whose_files_cannot_be_read_does_not_load() -> None:
    """And does not stand in the way of the next try."""
    tries = 0

    def make(name: str) -> FakeEngine:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError(5, "Input/output error")
        return FakeEngine(name)

    async def test() -> None:
        async with House(make) as house:
            client = house.client()
            assert (await client.error(client.transcribe()))["kind"] == "model_load_failed"
            await client.result(client.transcribe())
            house.in_order()

    run(test)


def test_a_model_that_does_not_load_fails_all_that_wait_for_it() -> None:
    """Nobody waits in vain; for a while others are refused without another try, an operator may try at once."""

    async def test() -> None:
        nursery = Nursery()
        async with House(nursery) as house:
            client = house.client()
            ids = [client.transcribe() for _ in range(5)]
            engine = await nursery.started(0)
            await settle(50)
            engine.become_failed()
            for id in ids:
                assert (await client.error(id))["kind"] == "model_load_failed"
            assert (await client.error(client.transcribe()))["kind"] == "model_load_failed"
            assert len(nursery.engines) == 1
            load = client.send("models.load", model="fake")
            (await nursery.started(1)).become_ready()
            assert await client.result(load) == {"model": "fake", "state": "loaded"}
            await client.result(client.transcribe())
            house.in_order()

    run(test)


def test_a_model_that_stops_working_for_good_fails_what_waits_for_it() -> None:
    """It was ready once, its worker died, and the next one does not start."""

    async def test() -> None:
        nursery = Nursery()
        async with House(nursery) as house:
            client = house.client()
            ids = [client.transcribe(audio(1.0, str(n)), beam_size=n + 1) for n in range(6)]
            engine = await nursery.started(0)
            engine.gate.clear()
            engine.become_ready()
            await settle(50)
            engine.fail_next = [WorkerLost("SIGKILL"), WorkerLost("SIGKILL")]
            engine.error = WhisperdError("model_load_failed", "no memory")
            engine.gate.set()
            for id in ids:
                assert (await client.error(id))["kind"] == "model_load_failed"
            house.in_order()

    run(test)


def test_the_same_error_is_not_raised_twice() -> None:
    """A traceback grows with every raise, and holds what the frames hold."""

    async def test() -> None:
        nursery = Nursery()
        async with House(nursery) as house:
            client = house.client()
            first = client.transcribe()
            (await nursery.started(0)).become_failed()
            await client.error(first)
            for _ in range(20):
                await client.error(client.transcribe())
            error, depth = nursery.engines[0].error, 0
            trace = error.__traceback__ if error else None
            while trace:
                depth, trace = depth + 1, trace.tb_next
            assert depth < 12

    run(test)


# -- making room -------------------------------------------------------------------------------------------------


def test_the_model_that_was_idle_longest_makes_room() -> None:
    """And is loaded again when it is wanted again."""

    async def test() -> None:
        async with House(QuickEngine, models_max=2) as house:
            client = house.client()
            for name in ("a", "b", "a", "c"):
                await client.result(client.transcribe(model=name))
            assert {loaded.name for loaded in house.service.fleet.loaded()} == {"a", "c"}
            assert house.engines["b"][0].drained.is_set()  # type: ignore[attr-defined]
            await client.result(client.transcribe(model="b"))
            assert len(house.engines["b"]) == 2
            house.in_order()

    run(test)


def test_models_at_work_do_not_make_room() -> None:
    """The request for one too many is told to come back."""

    async def test() -> None:
        async with House(models_max=1) as house:
            engine = await house.loaded()
            engine.gate.clear()
            client = house.client()
            id = client.transcribe()
            await settle(50)
            error = await client.error(client.transcribe(model="other"))
            assert (error["kind"], error["retry_after_ms"]) == ("overloaded", 5000)
            engine.gate.set()
            await client.result(id)
            await client.result(client.transcribe(model="other"))
            house.in_order()

    run(test)


def test_a_model_that_is_loading_does_not_make_room() -> None:
    """Requests wait for it, though none of their windows does yet."""

    async def test() -> None:
        nursery = Nursery()
        async with House(nursery, models_max=1) as house:
            client = house.client()
            first = client.transcribe(model="a")
            engine = await nursery.started(0)
            await settle(50)
            assert (await client.error(client.transcribe(model="b")))["kind"] == "overloaded"
            engine.become_ready()
            await client.result(first)
            house.in_order()

    run(test)


def test_a_model_that_is_unloaded_while_audio_is_decoded_for_it_is_loaded_again() -> None:
    """The job found it ready before its audio was read, and gone afterwards."""

    async def test() -> None:
        async with House(QuickEngine) as house:
            await house.loaded()
            client = house.client()
            media = house.service.pipeline._media = HeldMedia()  # the audio takes its time
            id = client.transcribe(audio(1.0, "patient"))
            await settle(50)
            await client.call("models.unload", model="fake")
            media.held.set()
            assert (await client.result(id))["text"].startswith(digest_of(audio(1.0, "patient")))
            assert len(house.engines["fake"]) == 2
            house.in_order()

    run(test)


def test_two_models_that_take_turns_in_one_place_serve_everybody() -> None:
    """Slowly, but nobody is lost or hangs; who is refused is told to come back."""

    async def test() -> None:
        async with House(QuickEngine, models_max=1) as house:
            client = house.client()
            for round_ in range(10):
                ids = [client.transcribe(model=name) for name in ("a", "b", "a")]
                for id in ids:
                    reply = await client.reply(id)
                    assert "result" in reply or reply["error"]["data"]["kind"] == "overloaded", round_
            house.in_order()

    run(test)


def test_models_that_push_each_other_out_at_once_do_not_stop_the_loop() -> None:
    """What was just loaded may be gone before those who waited go on; at every turn of the loop somebody asks."""

    async def test() -> None:
        for _ in range(20):
            together, made = threading.Barrier(2), itertools.count()

            def make(name: str, together: threading.Barrier = together, made: Iterator[int] = made) -> FakeEngine:
                if next(made) < 2:
                    together.wait()  # the first two are made at the same moment
                return QuickEngine(name)

            async with House(make, models_max=1) as house:
                fleet = house.service.fleet
                asking = [asyncio.create_task(fleet.ready(name)) for name in "ab"]
                while not all(task.done() for task in asking[:2]):
                    asking += [asyncio.create_task(fleet.ready(name)) for name in "ab" if name in fleet._loading]
                    await asyncio.sleep(0)
                await asyncio.gather(*asking, return_exceptions=True)

    run(test)


# -- unloading ---------------------------------------------------------------------------------------------------


def test_a_model_is_unloaded_when_it_is_idle_and_not_before() -> None:
    """While it loads or works, that is a conflict; one that is not loaded is not found."""

    async def test() -> None:
        nursery = Nursery()
        async with House(nursery) as house:
            client = house.client()
            assert (await client.refusal("models.unload", model="fake"))["kind"] == "not_found"
            id = client.transcribe()
            engine = await nursery.started(0)
            await settle()
            error = await client.refusal("models.unload", model="fake")
            assert (error["kind"], "is loading" in error["message"]) == ("conflict", True)
            engine.gate.clear()
            engine.become_ready()
            await settle(50)
            error = await client.refusal("models.unload", model="fake")
            assert (error["kind"], "has work" in error["message"]) == ("conflict", True)
            engine.gate.set()
            await client.result(id)
            assert (await client.call("models.unload", model="fake"))["model"] == "fake"
            assert engine.drained.is_set()
            assert house.service.fleet.loaded() == []
            house.in_order()

    run(test)


def test_an_idle_model_is_unloaded_by_itself() -> None:
    """After the configured time without work, counted from the last; and comes back when it is wanted."""

    async def test() -> None:
        async with House(QuickEngine, idle_unload_s=0.02) as house:
            client = house.client()
            await client.result(client.transcribe())
            engine = house.engine
            assert isinstance(engine, QuickEngine)
            await engine.drained.wait()
            assert house.service.fleet.loaded() == []
            await client.result(client.transcribe())
            assert len(house.engines["fake"]) == 2
            house.in_order()

    run(test)


def test_a_model_at_work_is_not_unloaded_by_itself() -> None:
    """However long its work takes: another one goes meanwhile."""

    async def test() -> None:
        async with House(QuickEngine, idle_unload_s=0.02) as house:
            client = house.client()
            busy = await house.loaded("busy")
            busy.gate.clear()
            id = client.transcribe(model="busy")
            idle = await house.loaded("idle")
            assert isinstance(idle, QuickEngine)
            await idle.drained.wait()
            assert [loaded.name for loaded in house.service.fleet.loaded()] == ["busy"]
            busy.gate.set()
            await client.result(id)
            house.in_order()

    run(test)


# -- replacing ---------------------------------------------------------------------------------------------------


def test_a_model_serves_on_until_its_successor_is_ready_and_no_work_is_lost() -> None:
    """What is in the old engine lands, what waits goes to the new one, and then the old one ends."""

    async def test() -> None:
        nursery = Nursery()
        async with House(nursery) as house:
            client = house.client()
            first = [client.transcribe(audio(1.0, str(n)), beam_size=n + 1) for n in range(5)]
            old = await nursery.started(0)
            old.gate.clear()
            old.become_ready()
            await settle(50)
            assert old.in_flight() == 2
            load = client.send("models.load", model="fake")
            new = await nursery.started(1)
            during = client.transcribe(audio(1.0, "during"), beam_size=9)
            await settle(50)
            new.become_ready()
            await settle(50)
            assert not old.drained.is_set()
            old.gate.set()
            for id in [*first, during]:
                await client.result(id)
            assert await client.result(load) == {"model": "fake", "state": "loaded"}
            assert old.drained.is_set()
            assert sum(len(batch) for batch in old.batches) == 2
            assert sum(len(batch) for batch in new.batches) == 4
            house.in_order()

    run(test)


def test_an_old_engine_that_dies_on_leaving_hands_its_work_to_the_successor() -> None:
    """As after any death."""

    async def test() -> None:
        nursery = Nursery()
        async with House(nursery) as house:
            client = house.client()
            ids = [client.transcribe(audio(1.0, str(n))) for n in range(3)]
            old = await nursery.started(0)
            old.gate.clear()
            old.become_ready()
            await settle(50)
            load = client.send("models.load", model="fake")
            (await nursery.started(1)).become_ready()
            await settle()
            old.fail_next = [WorkerLost("SIGKILL")] * 3
            old.gate.set()
            for id in [*ids, load]:
                await client.result(id)
            house.in_order()

    run(test)


def test_a_successor_that_does_not_load_leaves_the_old_engine_in_place() -> None:
    """The operator is told, the clients notice nothing."""

    async def test() -> None:
        nursery = Nursery()
        async with House(nursery) as house:
            client = house.client()
            id = client.transcribe()
            (await nursery.started(0)).become_ready()
            await client.result(id)
            load = client.send("models.load", model="fake")
            (await nursery.started(1)).become_failed()
            assert (await client.error(load))["kind"] == "model_load_failed"
            assert nursery.engines[1].drained.is_set()
            await client.result(client.transcribe())
            assert len(nursery.engines[0].batches) == 2

    run(test)


def test_loading_a_model_that_is_loading_waits_for_it() -> None:
    """No second engine is started beside it, and who waits for the first is served."""

    async def test() -> None:
        nursery = Nursery()
        async with House(nursery) as house:
            client = house.client()
            id = client.transcribe()
            engine = await nursery.started(0)
            load = client.send("models.load", model="fake")
            await settle(50)
            engine.become_ready()
            await client.result(id)
            await client.result(load)
            assert len(nursery.engines) == 1

    run(test)


def test_a_model_that_is_unloaded_while_its_successor_loads_stays_unloaded() -> None:
    """The one who loads is told of the conflict, and the successor ends."""

    async def test() -> None:
        nursery = Nursery()
        async with House(nursery) as house:
            client = house.client()
            load = client.send("models.load", model="fake")
            (await nursery.started(0)).become_ready()
            await client.result(load)
            again = client.send("models.load", model="fake")
            successor = await nursery.started(1)
            await client.call("models.unload", model="fake")
            successor.become_ready()
            assert (await client.error(again))["kind"] == "conflict"
            assert successor.drained.is_set()
            assert house.service.fleet.loaded() == []

    run(test)


# -- what is told of them ----------------------------------------------------------------------------------------


def test_the_list_of_models_tells_their_state() -> None:
    """Loading, loaded and failed, beside what could be loaded."""

    async def test() -> None:
        nursery = Nursery()
        async with House(nursery) as house:
            client = house.client()
            loads = [client.send("models.load", model=name) for name in ("one", "two")]
            engines = [await nursery.started(n) for n in range(2)]
            names = {engine.name: engine for engine in engines}

            async def states() -> dict[str, str]:
                rows = (await client.call("models.list"))["models"]
                return {row["name"]: row["state"] for row in rows if row["name"] in names}

            assert await states() == {"one": "loading", "two": "loading"}
            names["one"].become_ready()
            names["two"].become_failed()
            for id in loads:
                await client.reply(id)
            assert await states() == {"one": "loaded", "two": "failed"}

    run(test)


def test_stopping_ends_every_engine() -> None:
    """Loaded, loading and leaving."""

    async def test() -> None:
        nursery = Nursery()
        async with House(nursery) as house:
            client = house.client()
            load = client.send("models.load", model="one")
            (await nursery.started(0)).become_ready()
            await client.result(load)
            client.send("models.load", model="two")
            await nursery.started(1)
            await settle()
        assert all(engine.drained.is_set() for engine in nursery.engines)

    run(test)


@pytest.mark.parametrize("models_max", [1, 2])
def test_models_that_come_and_go_under_load_lose_nobody(models_max: int) -> None:
    """Requests for three models in turn, with unloading and reloading in between: one reply each, or `overloaded`."""

    class Lazy(QuickEngine):
        async def submit(self, windows: Sequence[Window]) -> list[WindowResult]:
            results = await super().submit(windows)
            await settle(3)
            return results

    async def test() -> None:
        async with House(Lazy, models_max=models_max) as house:
            client, operator = house.client(), house.client(control=True)
            ids, orders = [], []
            for number in range(60):
                name = "abc"[number * 7 % 3]
                ids.append(client.transcribe(audio(1.0, str(number)), model=name))
                if number % 5 == 0:
                    orders.append(operator.send("models.unload", model=name))
                if number % 7 == 0:
                    orders.append(operator.send("models.load", model=name))
                await settle(number % 4)
            for number, id in enumerate(ids):
                reply = await client.reply(id)
                if "result" in reply:
                    assert reply["result"]["text"] == f"{digest_of(audio(1.0, str(number)))} 0"
                else:
                    assert reply["error"]["data"]["kind"] == "overloaded"
            for id in orders:
                await operator.reply(id)
            assert len(client.replies) == 60
            house.in_order()

    run(test)

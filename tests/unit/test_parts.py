"""Long audio whose windows come in parts: the engine begins with the first ones, and all else is as if they had come
together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from house import Client, House, as_data, audio, run, settle

from whisperd.jobs import Job, State, Window
from whisperd.lanes import Lanes
from whisperd.log import log
from whisperd.media.answers import Slice
from whisperd.media.pool import Part, Prepared
from whisperd.messages import WindowResult
from whisperd.testing import FakeEngine, FakeMedia, _tell, digest_of
from whisperd.worker import WorkerLost

AUDIO = audio(5.0, "long")  # five windows


class Dealer(FakeMedia):
    """A media worker that finds one window whenever it is told to. `dies_after`: of each try, after how many windows;
    `second_sight`: what the second try finds instead."""

    def __init__(
        self, dies_after: Sequence[int | None] = (), second_sight: Callable[[Slice], Slice] | None = None
    ) -> None:
        super().__init__()
        self.dealt = asyncio.Semaphore(0)
        self.tries = 0
        self._dies_after = list(dies_after)
        self._second_sight = second_sight

    def deal(self, count: int = 1) -> None:
        for _ in range(count):
            self.dealt.release()

    async def prepare(self, message: dict[str, Any], fd: int, *more: Any) -> Prepared:
        *_, on_part = more
        self.tries += 1
        found = await super().prepare({**message, "first_only": True}, fd, *more)
        if message["first_only"]:
            return found
        part = Part(found.samples, [])
        dies_after = self._dies_after.pop(0) if self._dies_after else None
        for number, window in enumerate(found.windows):
            if number == dies_after:
                part.close()
                raise WorkerLost("SIGKILL")
            await self.dealt.acquire()
            seen = self._second_sight(window) if self._second_sight and self.tries > 1 else window
            await _tell(on_part, replace(part, windows=[seen]))
            part = Part(None, [])
        return replace(found, samples=part.samples, windows=[])


class Opening:
    """A house with a dealer, and a client who has sent long audio."""

    def __init__(self, house: House, dealer: Dealer) -> None:
        self.house, self.dealer = house, dealer
        house.service.pipeline._media = dealer
        self.client: Client = house.client()

    @property
    def job(self) -> Job:
        return next(iter(self.house.service.jobs.values()))

    def decoded(self) -> list[int]:
        """The windows that the engine had, in the order of their batches."""
        return [window.index for batch in self.house.engine.batches for window in batch]


def text(windows: int = 5) -> str:
    return " ".join(f"{digest_of(AUDIO)} {index}" for index in range(windows))


def opening(test: Callable[[Opening], Any], dealer: Callable[[], Dealer] = Dealer, make: Any = None) -> None:
    """Runs a test with everything in its place; afterwards nothing is held."""

    async def main() -> None:
        async with House(make) as house:
            await house.loaded()
            await test(Opening(house, dealer()))
            await settle()
            house.in_order()

    run(main)


def test_the_engine_begins_before_the_last_window_is_found() -> None:
    """Progress too; but the reply needs all of them."""

    async def test(at: Opening) -> None:
        id = at.client.transcribe(AUDIO, language="en", progress=True)
        at.dealer.deal(2)
        while len(at.client.notifications("transcribe.segment")) < 2:
            await settle(1)
        assert at.decoded() == [0, 1]
        assert (at.job.state, at.job.more_to_come) == (State.RUNNING, True)
        assert at.client.notifications("transcribe.progress")[-1]["done_s"] == 2.0
        assert at.client.replies == []
        at.dealer.deal(3)
        result = await at.client.result(id)
        assert (result["text"], result["windows"], result["duration_s"]) == (text(), 5, 5.0)
        assert at.client.notifications("transcribe.progress")[-1]["done_s"] == 5.0
        assert min(result["timing"].values()) >= 0.0

    opening(test)


def test_windows_found_later_wait_for_the_language_of_the_first() -> None:
    """And are queued as they are found when it is known."""

    class Listener(FakeEngine):
        async def submit(self, windows: Sequence[Window]) -> list[WindowResult]:
            results = await super().submit(windows)
            return [replace(result, language="fr") for result in results]

    async def test(at: Opening) -> None:
        at.house.engine.gate.clear()
        id = at.client.transcribe(AUDIO)
        at.dealer.deal(3)
        await settle(50)
        assert at.decoded() == [0]
        at.house.engine.gate.set()
        while at.job.finished < 3:
            await settle(1)
        assert at.job.language == "fr"
        at.dealer.deal(2)
        result = await at.client.result(id)
        assert (result["text"], result["language"]) == (text(), "fr")

    opening(test, make=Listener)


def test_a_worker_that_dies_half_way_costs_no_window_twice() -> None:
    """Its successor finds the same, and only what is new goes to the engine."""

    async def test(at: Opening) -> None:
        id = at.client.transcribe(AUDIO, language="en")
        at.dealer.deal(8)
        assert (await at.client.result(id))["text"] == text()
        assert sorted(at.decoded()) == [0, 1, 2, 3, 4]
        assert at.dealer.tries == 2

    opening(test, lambda: Dealer(dies_after=[3]))


@pytest.mark.parametrize(
    "second_sight",
    [
        lambda one: replace(one, stop=one.stop - 1, speech_stop=one.start),
        lambda one: replace(one, sure_speech_s=0.1),
    ],
)
def test_a_successor_that_finds_other_windows_is_not_believed(second_sight: Callable[[Slice], Slice]) -> None:
    """Half of the text is of the old ones; the client may try again."""

    async def test(at: Opening) -> None:
        id = at.client.transcribe(AUDIO, language="en")
        at.dealer.deal(8)
        error = await at.client.error(id)
        assert (error["kind"], error["retryable"]) == ("worker_lost", True)

    opening(test, lambda: Dealer(dies_after=[2], second_sight=second_sight))


def test_audio_that_ends_two_workers_half_way_is_poison() -> None:
    """However much of it was decoded."""

    async def test(at: Opening) -> None:
        id = at.client.transcribe(AUDIO, language="en")
        at.dealer.deal(6)
        assert (await at.client.error(id))["kind"] == "poison_input"

    opening(test, lambda: Dealer(dies_after=[2, 4]))


def test_a_job_is_cancelled_between_two_parts() -> None:
    """Its samples go, and what was queued; the worker's next part is nobody's."""

    async def test(at: Opening) -> None:
        id = at.client.transcribe(AUDIO, language="en")
        at.dealer.deal(2)
        while at.job.finished < 2:
            await settle(1)
        at.client.notify("cancel", id=id)
        assert (await at.client.error(id))["kind"] == "cancelled"
        at.dealer.deal(3)

    opening(test)


def test_a_deadline_ends_work_whose_end_is_not_found_yet() -> None:
    """Although the engine has all that is known of it."""

    async def test(at: Opening) -> None:
        at.house.engine.gate.clear()
        id = at.client.transcribe(AUDIO, language="en", deadline_ms=100)
        at.dealer.deal(2)
        assert (await at.client.error(id))["kind"] == "deadline_exceeded"
        at.house.engine.gate.set()

    opening(test)


def test_a_model_is_not_unloaded_between_two_parts() -> None:
    """The engine has done all that is known, and the media worker is still looking."""

    async def test(at: Opening) -> None:
        id = at.client.transcribe(AUDIO, language="en")
        at.dealer.deal(2)
        while at.job.finished < 2:
            await settle(1)
        await settle()
        refusal = await at.client.refusal("models.unload", model="fake")
        assert refusal["kind"] == "conflict"
        at.dealer.deal(3)
        assert (await at.client.result(id))["text"] == text()
        await at.client.call("models.unload", model="fake")

    opening(test)


def test_last_windows_that_come_to_a_hopeless_line_end_the_job_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is over when they are queued: there is nothing left to complete."""

    async def main() -> None:
        async with House() as house:
            (await house.loaded()).gate.clear()
            stumbles: list[str] = []
            monkeypatch.setattr(log, "exception", lambda message, **_: stumbles.append(message))
            monkeypatch.setattr(Lanes, "late_s", lambda _, job, *_more: 90.0 if len(job.windows) == 5 else None)
            client = house.client()
            id = client.transcribe(AUDIO, language="en", deadline_ms=60_000)
            assert (await client.error(id))["kind"] == "deadline_exceeded"
            house.engine.gate.set()
            await settle()
            assert stumbles == []
            house.in_order()

    run(main)


def test_parts_wait_for_the_model() -> None:
    """It is still loading when the first ones come."""

    class Late(FakeEngine):
        def start(self) -> None:
            self.begin = super().start

    async def test() -> None:
        async with House(Late) as house:
            at = Opening(house, Dealer())
            id = at.client.transcribe(AUDIO, language="en")
            at.dealer.deal(3)
            await settle(50)
            assert (at.job.state, len(at.job.windows)) == (State.PREPARING, 3)
            engine = house.engine
            assert isinstance(engine, Late)
            engine.begin()
            at.dealer.deal(2)
            assert (await at.client.result(id))["text"] == text()
            await settle()
            house.in_order()

    run(test)


def test_the_language_is_heard_in_the_first_window_alone() -> None:
    """No more than that is asked of the media worker."""

    async def test(at: Opening) -> None:
        id = at.client.send("detect_language", audio=as_data(AUDIO))
        assert (await at.client.result(id))["language"] == "en"
        assert at.decoded() == [0]

    opening(test)

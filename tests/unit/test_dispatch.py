"""From the line to the engine and back: what a death costs, and that every window gets exactly one outcome."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import pytest
from house import make_job, run, settle
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperd.batching import Batcher
from whisperd.cost import CostModel
from whisperd.dispatch import ALONE_TRIES, Dispatcher, Limits
from whisperd.errors import WhisperdError
from whisperd.inference.process import BatchFailed, ModelTraits
from whisperd.jobs import Job, State, Window
from whisperd.messages import DecodeOptions, WindowResult
from whisperd.worker import NotSent, Worker, WorkerLost

HEARD = WindowResult((), "en", 0.9)


class Flight:
    """One batch in the steered engine's hands."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = list(windows)
        self.landing: asyncio.Future[list[WindowResult]] = asyncio.get_running_loop().create_future()

    @property
    def names(self) -> list[str]:
        """The jobs in it."""
        return [window.job.id for window in self.windows]

    def land(self, results: list[WindowResult] | None = None) -> None:
        """It went well."""
        self.landing.set_result([HEARD] * len(self.windows) if results is None else results)

    def fail(self, error: Exception) -> None:
        """It did not."""
        self.landing.set_exception(error)


class SteeredEngine:
    """An engine whose every batch waits for the test's word."""

    def __init__(self, lanes: int = 1) -> None:
        self.traits: ModelTraits | None = ModelTraits(True, frozenset({"en"}))
        self.changed: Callable[[], None] = lambda: None
        self.lanes = lanes
        self.express_lanes = 0
        self.usual_rows = 8
        self.cost = CostModel()
        self.error: WhisperdError | None = None
        self.flights: list[Flight] = []
        self.lives = 0

    def start(self) -> None:
        """It is ready at once."""

    def capacity(self) -> int:
        return self.lanes

    def in_flight(self) -> int:
        return len(self.flights)

    def health(self) -> tuple[str, WhisperdError | None]:
        return ("failed" if self.error else "ready"), self.error

    def workers(self) -> list[Worker]:
        return []

    async def drain(self) -> None:
        """Nothing to end."""

    async def submit(self, windows: Sequence[Window]) -> list[WindowResult]:
        flight = Flight(windows)
        self.flights.append(flight)
        try:
            return await flight.landing
        finally:
            self.flights.remove(flight)

    async def die(self) -> None:
        """The process is gone, and all batches with it; a successor takes its place."""
        self.lives += 1
        for flight in list(self.flights):
            flight.fail(WorkerLost("SIGSEGV"))
        await settle()


class Ledger:
    """Hears what became of windows, and ends their jobs as the pipeline does."""

    def __init__(self) -> None:
        self.done: list[Window] = []
        self.failed: list[tuple[Window, str]] = []
        self.started: list[tuple[Window, int]] = []
        self.returned: list[Window] = []
        self.batches: list[int] = []
        self.unusable: set[str] = set()  # jobs whose results raise
        self.dispatcher: Dispatcher

    def window_started(self, window: Window, batch_rows: int) -> None:
        assert not window.job.over
        self.started.append((window, batch_rows))

    def window_returned(self, window: Window) -> None:
        assert not window.job.over
        assert window in [started for started, _ in self.started]
        self.returned.append(window)

    def window_done(self, window: Window, result: WindowResult) -> None:
        assert not window.job.over
        if window.job.id in self.unusable:
            raise TypeError("no such result")
        self.done.append(window)
        window.job.results[window.index] = result
        if all(window.job.results):
            self.end(window.job, State.DONE)

    def window_failed(self, window: Window, error: WhisperdError) -> None:
        assert not window.job.over
        self.failed.append((window, error.kind))
        self.end(window.job, State.FAILED)

    def batch_done(self, rows: int, busy_s: float) -> None:
        assert busy_s >= 0
        self.batches.append(rows)

    def end(self, job: Job, state: State) -> None:
        """The job is over."""
        job.move(state)
        self.dispatcher.discard(job)

    @property
    def kinds(self) -> dict[str, str]:
        """By job: the kind of error it ended with."""
        return {window.job.id: kind for window, kind in self.failed}

    @property
    def names(self) -> list[str]:
        """The jobs of the windows that were done, sorted."""
        return sorted(window.job.id for window in self.done)


class Stage:
    """A dispatcher between its neighbours."""

    def __init__(self, lanes: int = 1, rows: int = 8) -> None:
        self.engine, self.ledger = SteeredEngine(lanes), Ledger()
        self.dispatcher = Dispatcher(self.engine, Batcher(), self.ledger, Limits(rows))
        self.ledger.dispatcher = self.dispatcher

    def add(self, *jobs: Job) -> None:
        """Queues the jobs."""
        for job in jobs:
            job.state = State.RUNNING
            self.dispatcher.add(job.windows)

    async def together(self, *names: str) -> list[Job]:
        """Single-window jobs that fly in one batch."""
        plug = make_job("plug")
        self.add(plug)
        jobs = [make_job(name) for name in names]
        self.add(*jobs)
        await settle()
        (flight,) = self.engine.flights
        assert flight.names == ["plug"]
        await self.land()
        assert [flight.names for flight in self.engine.flights] == [list(names)]
        return jobs

    async def land(self, *names: str) -> None:
        """All batches (or those with these jobs) go well."""
        for flight in list(self.engine.flights):
            if not names or flight.names == list(names):
                flight.land()
        await settle()

    async def not_sent(self) -> None:
        """Nothing that was handed out could be sent."""
        for flight in list(self.engine.flights):
            flight.fail(NotSent("out of descriptors"))
        await settle()

    async def go_on(self) -> None:
        """The pause after that is over, without waiting for it."""
        pause = self.dispatcher._pause
        assert pause is not None
        pause.cancel()
        self.dispatcher._go_on()
        await settle()

    def in_air(self) -> list[list[str]]:
        """The jobs of each batch in the engine."""
        return [flight.names for flight in self.engine.flights]

    async def finish(self) -> None:
        """Everything goes well from here on."""
        await settle()
        while self.engine.flights:
            await self.land()
        assert self.dispatcher.idle


# -- in good weather ---------------------------------------------------------------------------------------------


def test_an_idle_engine_gets_work_at_once_and_what_queues_up_meanwhile_together() -> None:
    """No batch is held back to grow."""

    async def test() -> None:
        stage = Stage()
        stage.add(make_job("first"))
        await settle()
        assert stage.in_air() == [["first"]]
        stage.add(*(make_job(name) for name in "abc"))
        await settle()
        assert stage.in_air() == [["first"]]
        await stage.land()
        assert stage.in_air() == [["a", "b", "c"]]
        await stage.finish()
        assert stage.ledger.batches == [1, 3]
        assert [rows for _, rows in stage.ledger.started] == [1, 3, 3, 3]

    run(test)


def test_as_many_batches_fly_as_the_engine_has_lanes() -> None:
    """And no more, also when it says that something changed."""

    async def test() -> None:
        stage = Stage(lanes=2, rows=1)
        stage.add(*(make_job(name) for name in "abc"))
        for _ in range(3):
            stage.dispatcher.pump()
            await settle()
        assert stage.in_air() == [["a"], ["b"]]
        await stage.land("b")
        assert stage.in_air() == [["a"], ["c"]]
        await stage.finish()

    run(test)


def test_a_clip_beside_long_work_goes_on_the_express_lane() -> None:
    """One more batch than the engine's lanes, and only for that."""

    async def test() -> None:
        stage = Stage(lanes=1)
        stage.engine.express_lanes = 1
        stage.add(make_job("long", (3.0,) * 40))
        await settle()
        stage.add(make_job("other long", (3.0,) * 40, client="b"), make_job("clip"))
        await settle()
        assert [set(names) for names in stage.in_air()] == [{"long"}, {"clip"}]
        await stage.finish()

    run(test)


def test_a_deadline_that_cannot_be_met_is_answered_when_the_job_is_queued() -> None:
    """With the wait to be expected; nothing of the job goes to the engine, not even where a lane is free."""

    async def test() -> None:
        stage = Stage(lanes=2, rows=1)
        batch = make_job("past", (3.0,) * 2).windows
        for _ in range(3):
            stage.engine.cost.learn(batch, 60.0)
        now = asyncio.get_running_loop().time()
        stage.add(make_job("other", priority="bulk"))
        doomed, modest = make_job("doomed", (3.0,) * 9, deadline_ms=5000), make_job("modest", deadline_ms=5000)
        doomed.arrived = modest.arrived = now
        stage.add(doomed, modest)
        await settle()
        assert stage.ledger.kinds == {"doomed": "deadline_exceeded"}
        assert stage.in_air() == [["other"], ["modest"]]
        await stage.finish()

    run(test)


def test_a_deadline_is_judged_again_when_somebody_asks() -> None:
    """What came between may have taken its turn."""

    async def test() -> None:
        stage = Stage(lanes=1, rows=1)
        for _ in range(3):
            stage.engine.cost.learn(make_job("past").windows, 10.0)
        job = make_job("late", priority="normal", deadline_ms=25_000)
        job.arrived = asyncio.get_running_loop().time()
        stage.add(make_job("first"), job)
        stage.dispatcher.judge(job)
        assert stage.ledger.kinds == {}
        stage.add(*(make_job(f"urgent {n}", client=n, priority="interactive") for n in range(20)))
        stage.dispatcher.judge(job)
        assert stage.ledger.kinds == {"late": "deadline_exceeded"}
        await stage.finish()

    run(test)


def test_nothing_is_handed_to_an_engine_that_is_not_there() -> None:
    """It comes back, says so, and gets what waited."""

    async def test() -> None:
        stage = Stage(lanes=0)
        stage.add(make_job("a"))
        await settle()
        assert stage.in_air() == []
        assert not stage.dispatcher.idle
        stage.engine.lanes = 1
        stage.dispatcher.pump()
        await stage.finish()
        assert stage.ledger.names == ["a"]

    run(test)


def test_a_result_for_a_job_that_is_over_reaches_nobody() -> None:
    """It was cancelled while its window was in the engine; its neighbours are served."""

    async def test() -> None:
        stage = Stage()
        one, _ = await stage.together("one", "two")
        stage.ledger.end(one, State.CANCELLED)
        await stage.finish()
        assert stage.ledger.names == ["plug", "two"]

    run(test)


def test_a_job_that_ends_in_the_moment_of_its_launch_costs_its_neighbours_nothing() -> None:
    """Its samples are gone, so the engine must not be asked for them. Where nobody is left it is not asked at all."""

    async def test() -> None:
        stage = Stage()
        plug, one, two = make_job("plug"), make_job("one"), make_job("two")
        stage.add(plug)
        stage.ledger.end(plug, State.CANCELLED)
        stage.add(one, two)
        await asyncio.sleep(0)  # the launch of both is due at the loop's next turn
        assert stage.in_air() == []
        stage.ledger.end(one, State.CANCELLED)
        await settle()
        assert stage.in_air() == [["two"]]
        await stage.finish()
        assert (stage.ledger.names, stage.ledger.returned) == (["two"], [])

    run(test)


def test_a_job_of_which_more_will_come_keeps_the_engine() -> None:
    """Although nothing waits or flies, its model must not be unloaded before the job is over."""

    async def test() -> None:
        stage = Stage()
        job, other = make_job("long", (3.0, 3.0)), make_job("other")
        job.state, job.more_to_come = State.RUNNING, True
        stage.dispatcher.add(job.windows[:1])
        stage.add(other)
        await settle()
        while stage.engine.flights:
            await stage.land()
        assert stage.ledger.names == ["long", "other"]
        assert not stage.dispatcher.idle
        job.more_to_come = False
        stage.dispatcher.add(job.windows[1:])
        await stage.finish()
        assert stage.ledger.names == ["long", "long", "other"]

    run(test)


def test_idle_begins_with_the_last_landing() -> None:
    """The time of the last use is what idle unloading goes by."""

    async def test() -> None:
        stage = Stage()
        before = stage.dispatcher.last_used
        stage.add(make_job("a"))
        await settle()
        assert not stage.dispatcher.idle
        await stage.finish()
        assert stage.dispatcher.last_used > before

    run(test)


def test_a_successor_gets_what_waits_while_the_old_engine_finishes() -> None:
    """Nothing is lost between the two."""

    async def test() -> None:
        stage = Stage()
        stage.add(make_job("old"))
        await settle()
        stage.add(make_job("new"))
        successor = SteeredEngine(lanes=2)
        assert stage.dispatcher.replace_engine(successor) is stage.engine
        successor.changed()
        await settle()
        assert [flight.names for flight in successor.flights] == [["new"]]
        stage.engine.flights[0].land()
        successor.flights[0].land()
        await settle()
        assert stage.ledger.names == ["new", "old"]
        assert stage.dispatcher.idle

    run(test)


# -- deaths ------------------------------------------------------------------------------------------------------


def test_a_death_blames_nobody_and_each_window_is_tried_again_alone() -> None:
    """Three were in flight: none fails, and they go one by one."""

    async def test() -> None:
        stage = Stage()
        await stage.together("a", "b", "c")
        await stage.engine.die()
        alone = []
        while stage.engine.flights:
            alone += stage.in_air()
            await stage.land()
        assert alone == [["a"], ["b"], ["c"]]
        assert stage.ledger.names == ["a", "b", "c", "plug"]
        assert stage.ledger.failed == []

    run(test)


def test_only_what_dies_alone_twice_is_poison_and_its_neighbours_live() -> None:
    """One of four kills the engine each time that it is in it."""

    async def test() -> None:
        stage = Stage()
        await stage.together("a", "poison", "b", "c")
        while stage.engine.flights:
            if any("poison" in names for names in stage.in_air()):
                await stage.engine.die()
            else:
                await stage.land()
        assert stage.ledger.names == ["a", "b", "c", "plug"]
        assert stage.ledger.kinds == {"poison": "poison_input"}
        assert stage.engine.lives == 1 + ALONE_TRIES

    run(test)


def test_a_window_that_was_alone_from_the_start_has_one_more_try() -> None:
    """Nothing else was in the engine, so the first death counts."""

    async def test() -> None:
        stage = Stage()
        stage.add(make_job("a"))
        await settle()
        await stage.engine.die()
        assert stage.in_air() == [["a"]]
        assert stage.ledger.failed == []
        await stage.engine.die()
        assert stage.ledger.kinds == {"a": "poison_input"}
        assert stage.dispatcher.idle

    run(test)


def test_a_window_beside_another_lane_s_batch_was_not_alone() -> None:
    """Whoever shared the engine with it, in the same batch or not, before or after it came, may be to blame."""

    async def test() -> None:
        stage = Stage(lanes=2, rows=1)
        stage.add(make_job("first"), make_job("second"))
        await settle()
        assert stage.in_air() == [["first"], ["second"]]
        await stage.land("second")  # alone now, but not from start to end
        for lives in range(1, 1 + ALONE_TRIES + 1):
            assert stage.in_air() == [["first"]]
            assert stage.ledger.failed == []
            assert stage.engine.lives == lives - 1
            await stage.engine.die()
        assert stage.ledger.kinds == {"first": "poison_input"}

    run(test)


def test_a_suspect_runs_only_when_nothing_else_flies_and_nothing_else_starts_meanwhile() -> None:
    """Also with more lanes, and with urgent work waiting."""

    async def test() -> None:
        stage = Stage(lanes=3, rows=1)
        stage.add(*(make_job(name) for name in "abc"))
        await settle()
        stage.engine.flights[0].fail(BatchFailed("out of memory"))
        await settle()
        stage.add(make_job("urgent", priority="interactive"), make_job("d"))
        await settle()
        assert stage.in_air() == [["b"], ["c"]]
        await stage.land("b")
        assert stage.in_air() == [["c"]]
        await stage.land("c")
        assert stage.in_air() == [["a"]]
        await stage.land("a")
        assert stage.in_air() == [["urgent"], ["d"]]
        await stage.finish()

    run(test)


def test_windows_of_a_cancelled_job_are_not_tried_again() -> None:
    """Nobody wants them, whether they were in the air at the death or waited for their try."""

    async def test() -> None:
        stage = Stage()
        one, two, _ = await stage.together("one", "two", "three")
        stage.ledger.end(one, State.CANCELLED)
        await stage.engine.die()
        assert stage.in_air() == [["two"]]
        stage.ledger.end(two, State.CANCELLED)
        await stage.engine.die()
        assert stage.in_air() == [["three"]]
        await stage.finish()
        assert stage.ledger.names == ["plug", "three"]

    run(test)


def test_one_bad_window_ends_its_job_once() -> None:
    """Its other windows, waiting or in the air, come back to nobody."""

    async def test() -> None:
        stage = Stage(rows=2)
        job = make_job("long", (3.0,) * 6)
        stage.add(job)
        await settle()
        while stage.engine.flights:
            await stage.engine.die()
        assert stage.engine.lives <= 1 + 2 * ALONE_TRIES
        assert [kind for _, kind in stage.ledger.failed] == ["poison_input"]
        assert stage.dispatcher.idle

    run(test)


# -- batches that were never sent --------------------------------------------------------------------------------


def test_a_batch_that_was_not_sent_goes_back_into_the_line_and_counts_as_no_death() -> None:
    """However often: its windows wait as what they were, together, and are handed out again."""

    async def test() -> None:
        stage = Stage()
        jobs = await stage.together("a", "b", "c")
        for times in range(1, ALONE_TRIES + 3):
            await stage.not_sent()
            assert stage.in_air() == []
            assert [window.job.id for window in stage.ledger.returned] == ["a", "b", "c"] * times
            assert not any(window.suspect or window.deaths_alone for job in jobs for window in job.windows)
            await stage.go_on()
            assert stage.in_air() == [["a", "b", "c"]]
        await stage.finish()
        assert stage.ledger.names == ["a", "b", "c", "plug"]
        assert stage.ledger.failed == []

    run(test)


def test_what_could_not_be_sent_waits_once() -> None:
    """Where it waited before, nothing is left of it: plans of the line would count it twice."""

    async def test() -> None:
        stage = Stage()
        await stage.together("a", "b", "c")
        await stage.not_sent()
        assert [window.job.id for window in stage.dispatcher.batcher.in_order(10)] == ["a", "b", "c"]
        await stage.go_on()
        await stage.finish()
        assert stage.ledger.names == ["a", "b", "c", "plug"]

    run(test)


def test_what_could_not_be_sent_is_not_tried_again_in_a_busy_loop() -> None:
    """Other news do not cut the pause short, and a cancelled job does not come back from it."""

    async def test() -> None:
        stage = Stage()
        (job,) = await stage.together("a")
        await stage.not_sent()
        for name in "bc":
            stage.add(make_job(name))
            stage.dispatcher.pump()
            await settle()
        assert stage.in_air() == []
        assert not stage.dispatcher.idle
        stage.ledger.end(job, State.CANCELLED)
        await stage.go_on()
        assert stage.in_air() == [["b", "c"]]
        await stage.finish()

    run(test)


def test_a_suspect_that_was_not_sent_is_still_tried_alone() -> None:
    """And is given up only after its own deaths."""

    async def test() -> None:
        stage = Stage()
        await stage.together("a", "b")
        await stage.engine.die()
        for _ in range(ALONE_TRIES + 1):
            assert [len(names) for names in stage.in_air()] == [1]
            await stage.not_sent()
            await stage.go_on()
        await stage.finish()
        assert stage.ledger.names == ["a", "b", "plug"]

    run(test)


def test_a_window_that_waits_again_after_a_death_is_said_to_wait() -> None:
    """As often as it is started again: its deadline counts while it waits."""

    async def test() -> None:
        stage = Stage()
        stage.add(make_job("a"))
        await settle()
        await stage.engine.die()
        assert (len(stage.ledger.started), len(stage.ledger.returned)) == (2, 1)
        await stage.engine.die()
        assert stage.ledger.kinds == {"a": "poison_input"}
        assert len(stage.ledger.returned) == 1, "it is over, not waiting"

    run(test)


# -- failures without a death ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [BatchFailed("CUDA out of memory"), RuntimeError("boom"), OSError(24, "no files")])
def test_a_batch_that_fails_is_tried_window_by_window_and_then_given_up_as_internal(error: Exception) -> None:
    """The engine lives on; the neighbours of the bad window are served."""

    async def test() -> None:
        stage = Stage()
        await stage.together("a", "bad", "b")
        while stage.engine.flights:
            for flight in list(stage.engine.flights):
                if "bad" in flight.names:
                    flight.fail(error)
                else:
                    flight.land()
            await settle()
        assert stage.ledger.names == ["a", "b", "plug"]
        assert stage.ledger.kinds == {"bad": "internal"}

    run(test)


def test_results_that_are_too_few_are_a_failed_batch() -> None:
    """Whose result is missing cannot be known, and nobody may wait for ever."""

    async def test() -> None:
        stage = Stage()
        await stage.together("a", "b")
        stage.engine.flights[0].land([HEARD])
        await settle()
        await stage.finish()
        assert stage.ledger.names == ["a", "b", "plug"]

    run(test)


def test_a_result_that_cannot_be_used_fails_its_own_job_only() -> None:
    """The neighbours get theirs, and the engine its next batch."""

    async def test() -> None:
        stage = Stage()
        stage.ledger.unusable.add("odd")
        await stage.together("a", "odd", "b")
        stage.add(make_job("next"))
        await stage.finish()
        assert stage.ledger.names == ["a", "b", "next", "plug"]
        assert stage.ledger.kinds == {"odd": "internal"}

    run(test)


def test_everything_that_waits_fails_when_the_engine_will_not_come() -> None:
    """With the engine's own word on why: the line, the suspects, and what comes later."""

    async def test() -> None:
        stage = Stage()
        await stage.together("a", "b")
        stage.add(make_job("c", (3.0, 3.0)), make_job("d"))
        stage.engine.error = WhisperdError("model_load_failed", "the file is damaged")
        await stage.engine.die()
        assert stage.ledger.kinds == dict.fromkeys("abcd", "model_load_failed")
        assert len(stage.ledger.failed) == 4
        assert stage.dispatcher.idle
        stage.add(make_job("e"))
        assert stage.ledger.kinds["e"] == "model_load_failed"

    run(test)


def test_a_job_of_which_more_will_come_fails_with_the_engine() -> None:
    """Nothing of it waits now, but what comes later would wait for ever."""

    async def test() -> None:
        stage = Stage()
        job = make_job("long", (3.0, 3.0))
        job.state, job.more_to_come = State.RUNNING, True
        stage.dispatcher.add(job.windows[:1])
        await settle()
        await stage.land()
        stage.engine.error = WhisperdError("model_load_failed", "the file is damaged")
        stage.dispatcher.pump()
        assert stage.ledger.kinds == {"long": "model_load_failed"}
        assert stage.dispatcher.idle

    run(test)


# -- any weather -------------------------------------------------------------------------------------------------


EVENTS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "land", "land", "fail", "die", "cancel"]), st.integers(0, 1000)),
    max_size=60,
)


@settings(max_examples=150)
@given(EVENTS, st.integers(1, 3), st.integers(1, 4))
def test_every_window_gets_one_outcome_whatever_happens(
    events: list[tuple[str, int]], lanes: int, rows: int
) -> None:
    """Jobs come and go, batches land, fail and die in any order: nothing is lost, nothing comes twice."""

    async def test() -> None:
        stage, jobs = Stage(lanes, rows), list[Job]()
        for event, number in events:
            flying = stage.engine.flights
            if event == "add":
                jobs.append(
                    make_job(
                        f"j{len(jobs)}",
                        (3.0,) * (number % 4 + 1),
                        client=number % 3,
                        priority=("interactive", "normal", "bulk")[number % 3],
                        options=DecodeOptions(beam_size=number % 2 + 1),
                    )
                )
                stage.add(jobs[-1])
            elif event == "land" and flying:
                flying[number % len(flying)].land()
            elif event == "fail" and flying:
                flying[number % len(flying)].fail(BatchFailed("no"))
            elif event == "die":
                await stage.engine.die()
            elif event == "cancel" and jobs and not (job := jobs[number % len(jobs)]).over:
                stage.ledger.end(job, State.CANCELLED)
            await settle(6)
            check_flights(stage.engine.flights, lanes)
        await stage.finish()
        check_outcomes(stage.ledger, jobs)

    run(test)


def check_flights(flights: Iterable[Flight], lanes: int) -> None:
    """What is in the engine now is allowed to be there together."""
    flights = list(flights)
    assert len(flights) <= lanes
    windows = [window for flight in flights for window in flight.windows]
    assert len(set(windows)) == len(windows)
    if any(window.suspect and not window.job.over for window in windows):
        assert len(windows) == 1, "a suspect runs alone"


def check_outcomes(ledger: Ledger, jobs: list[Job]) -> None:
    """Each job is over, and each window of a job that is done was done once."""
    assert all(job.over for job in jobs)
    assert max(Counter(ledger.done).values(), default=1) == 1
    assert max(Counter(window.job for window, _ in ledger.failed).values(), default=1) == 1
    for job in jobs:
        if job.state is State.DONE:
            assert {window for window in ledger.done if window.job is job} == set(job.windows)
    for window, kind in ledger.failed:
        assert kind in {"poison_input", "internal"}
        assert window.deaths_alone == ALONE_TRIES


def test_a_killer_among_many_ends_alone_in_any_order() -> None:
    """Forty jobs, three of them deadly, several lanes, random landings: thirty-seven right outcomes, three poisons."""

    async def test() -> None:
        for seed in range(5):
            chance, stage = random.Random(seed), Stage(lanes=2, rows=6)
            jobs = [make_job(f"{'killer' if n in (7, 20, 33) else 'job'} {n}") for n in range(40)]
            stage.add(*jobs)
            await settle()
            while stage.engine.flights:
                deadly = any(name.startswith("killer") for names in stage.in_air() for name in names)
                if deadly and chance.random() < 0.8:
                    await stage.engine.die()
                elif harmless := [f for f in stage.engine.flights if not any("killer" in n for n in f.names)]:
                    chance.choice(harmless).land()
                    await settle()
            assert set(stage.ledger.kinds.items()) == {(f"killer {n}", "poison_input") for n in (7, 20, 33)}
            assert len(stage.ledger.done) == 37

    run(test)

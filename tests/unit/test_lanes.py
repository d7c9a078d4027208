"""Which batch starts on which lane: the policy alone, told the time and what landed."""

from __future__ import annotations

import pytest
from house import make_job
from hypothesis import given
from hypothesis import strategies as st

from whisperd.batching import Batcher
from whisperd.cost import CPU, CostModel
from whisperd.jobs import Job
from whisperd.lanes import Flight, Lanes, Room, water_level
from whisperd.messages import FRAMES_MAX, DecodeOptions

ROOM = Room(lanes=2, express=1, rows=8)


def long_file(name: str = "long", **more: object) -> Job:
    """Twelve minutes of speech."""
    return make_job(name, (30.0,) * 24, frames=FRAMES_MAX, **more)  # type: ignore[arg-type]


class Stage:
    """The policy with a line, at time 0 unless it is told otherwise."""

    def __init__(self, room: Room = ROOM, slow_s: float = 3.0) -> None:
        self.batcher, self.room, self.cost = Batcher(), room, CostModel()
        self.lanes = Lanes(self.batcher, slow_s)

    def add(self, *jobs: Job) -> None:
        """Queues the jobs."""
        for job in jobs:
            self.batcher.add(job.windows)

    def start(self, now: float = 0.0) -> list[Flight]:
        """All that starts now."""
        flights = []
        while flight := self.lanes.next(now, self.room, self.cost):
            flights.append(flight)
        return flights

    def names(self, now: float = 0.0) -> list[list[str]]:
        """The jobs of the batches that start now."""
        return [sorted({window.job.id for window in flight.windows}) for flight in self.start(now)]


# -- the express lane --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_file", ["bulk", "normal"])
@pytest.mark.parametrize("of_clip", ["normal", "interactive"])
def test_a_clip_that_comes_while_long_work_has_the_lanes_starts_at_once(of_file: str, of_clip: str) -> None:
    """On the express lane, whatever of the file waits before it."""
    stage = Stage()
    stage.add(long_file(priority=of_file))
    assert len(stage.start()) == 2
    stage.add(make_job("clip", priority=of_clip))
    (flight,) = stage.start()
    assert flight.express
    assert [window.job.id for window in flight.windows] == ["clip"]


def test_there_is_one_express_lane_and_the_next_clip_waits_for_it() -> None:
    """Two more batches than cores would slow everybody."""
    stage = Stage()
    stage.add(long_file())
    stage.start()
    stage.add(make_job("one"), make_job("two", client="other"))
    assert stage.names() == [["one", "two"]]
    stage.add(make_job("three"))
    assert stage.start() == []


def test_no_long_work_and_no_bulk_ever_takes_the_express_lane() -> None:
    """Nobody waits for it."""
    stage = Stage()
    stage.add(long_file())
    stage.start()
    stage.add(long_file("other", client="other"), make_job("archive", priority="bulk"))
    assert stage.start() == []


def test_a_burst_of_clips_never_sees_the_express_lane() -> None:
    """A third batch on two cores gives no throughput."""
    stage = Stage()
    stage.add(*(make_job(str(n), client=n) for n in range(100)))
    assert [flight.express for flight in stage.start()] == [False, False]


def test_urgent_clips_overtake_a_burst_of_plain_ones_and_not_the_other_way_round() -> None:
    """Less urgent work gives way, more urgent never."""
    for flying, waiting, express in (("normal", "interactive", 1), ("bulk", "normal", 1), ("interactive", "normal", 0)):
        stage = Stage()
        stage.add(*(make_job(str(n), priority=flying) for n in range(16)))
        stage.start()
        stage.add(make_job("clip", priority=waiting))
        assert len(stage.start()) == express


def test_where_a_lane_is_about_to_be_free_the_clip_waits_for_it() -> None:
    """The wait would be little of what it takes itself."""
    stage = Stage()
    stage.add(make_job("tiny", (1.0,), frames=200, priority="bulk"), make_job("tiny 2", (1.0,), frames=200))
    stage.start()
    stage.add(make_job("clip", (30.0,), frames=FRAMES_MAX))
    assert stage.start() == []


def test_the_express_lane_is_for_lanes_that_are_busy() -> None:
    """While one is free the clip takes that."""
    stage = Stage()
    stage.add(make_job("file", (30.0,) * 4, frames=FRAMES_MAX, options=DecodeOptions(beam_size=1)))
    (first, second) = stage.start()
    stage.lanes.land(second)
    stage.add(make_job("clip"))
    (flight,) = stage.start()
    assert not flight.express
    assert not first.express


# -- sharing out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waiting", "batches"), [(1, [1]), (2, [1, 1]), (8, [4, 4]), (12, [6, 6]), (16, [8, 8]), (50, [8, 8])]
)
def test_what_waits_is_shared_out_among_free_lanes(waiting: int, batches: list[int]) -> None:
    """Two batches of four on two cores beat one of eight; where much waits, batches are full."""
    stage = Stage()
    stage.add(make_job("many", (3.0,) * waiting) if waiting > 8 else make_job("few", (3.0,) * waiting))
    assert [len(flight.windows) for flight in stage.start()] == batches


def test_a_free_lane_takes_all_while_the_other_is_busy_for_long() -> None:
    """Sharing with it would only wait."""
    stage = Stage()
    stage.add(make_job("one", (30.0,), frames=FRAMES_MAX))
    stage.start()
    stage.add(make_job("clips", (3.0,) * 4))
    assert [len(flight.windows) for flight in stage.start()] == [4]


def test_batches_of_long_work_are_bounded_in_seconds_of_this_engine() -> None:
    """As it was measured; a fast one gets more rows, a slow one not less than decode well together."""
    for rate, rows in ((0.1, 8), (3.8, 6), (50.0, 4)):
        stage = Stage()
        stage.cost.rate = rate
        stage.add(make_job("file", (7.0,) * 16, frames=1000))
        (flight, _) = stage.start()
        assert len(flight.windows) == rows
        assert rows == 4 or rate * CPU.batch_s(flight.windows) <= 3.0


@given(st.floats(0.0, 100.0), st.lists(st.floats(0.0, 50.0), min_size=1, max_size=8))
def test_the_water_level_holds_the_work(work: float, ends: list[float]) -> None:
    """Up to it there is exactly as much room as there is work."""
    level = water_level(work, ends)
    assert level >= min(ends) - 1e-9
    assert sum(max(0.0, level - end) for end in ends) == pytest.approx(work, abs=1e-6)


# -- suspects ----------------------------------------------------------------------------------------------------


def test_a_suspect_waits_for_the_express_lane_too_and_keeps_it_shut() -> None:
    """It runs alone in the engine."""
    stage = Stage()
    stage.add(long_file())
    flights = stage.start()
    stage.add(make_job("clip"))
    flights += stage.start()
    for flight in flights[:2]:
        stage.lanes.land(flight)
    stage.batcher.add_suspect(flights[0].windows[0])
    assert stage.start() == []
    stage.lanes.land(flights[2])
    (alone,) = stage.start()
    assert alone.suspect
    assert alone.alone
    stage.add(make_job("other", priority="interactive"))
    assert stage.start() == []
    stage.lanes.land(alone)
    assert len(stage.start()) == 2


def test_nothing_starts_in_an_engine_that_is_not_there() -> None:
    """Neither suspects nor express work."""
    stage = Stage(Room(0, 1, 8))
    stage.add(make_job("clip"), long_file())
    assert stage.start() == []
    stage.batcher.add_suspect(make_job("suspect").windows[0])
    assert stage.start() == []


def test_an_engine_that_takes_nothing_more_gets_no_express_work_either() -> None:
    """It is about to be replaced, or just died with what flew: that was alone, and stays so."""
    stage = Stage()
    stage.add(make_job("long", (30.0,), frames=FRAMES_MAX, priority="bulk"))
    (flying,) = stage.start()
    stage.room = Room(0, 1, 8)
    stage.add(make_job("clip", priority="interactive"))
    assert stage.start() == []
    assert flying.alone


# -- deadlines ---------------------------------------------------------------------------------------------------


def late(stage: Stage, deadline_ms: int, measured: bool = True, priority: str = "normal") -> float | None:
    """What is said of a clip with this deadline that is queued now."""
    clip = make_job("clip", priority=priority, client="modest", deadline_ms=deadline_ms)
    stage.cost.measured = measured
    stage.add(clip)
    return stage.lanes.late_s(clip, 0.0, stage.room, stage.cost)


def test_a_deadline_that_cannot_be_met_is_known_with_the_wait() -> None:
    """Half a minute of clips of others is before it."""
    stage = Stage()
    stage.add(*(make_job(str(n), client=n, frames=2000) for n in range(400)))
    stage.start()
    assert late(stage, 60_000) is None
    wait_s = late(stage, 2000)
    assert wait_s is not None
    assert 20 < wait_s < 60


def test_nothing_is_said_of_a_cold_engine() -> None:
    """It was not measured yet."""
    stage = Stage()
    stage.add(*(make_job(str(n), client=n, frames=2000) for n in range(400)))
    assert late(stage, 1, measured=False) is None


def test_a_clip_s_deadline_does_not_mind_who_waits_behind_it_or_does_not_hold_it_up() -> None:
    """A thousand clips of one client come after it in turn, bulk too, and a long file leaves it the express lane."""
    for other in (
        [make_job(str(n), client="greedy", frames=2000) for n in range(1000)],
        [make_job(str(n), client=n, frames=2000, priority="bulk") for n in range(50)],
        [long_file(client="long")],
    ):
        stage = Stage()
        stage.add(*other)
        stage.start()
        assert late(stage, 3000) is None


def test_who_will_have_given_up_is_not_counted() -> None:
    """Their deadlines pass before their turn."""
    stage = Stage()
    stage.add(*(make_job(str(n), client=n, frames=2000, deadline_ms=1500) for n in range(400)))
    assert late(stage, 6000) is None


def test_a_long_job_s_deadline_is_for_its_last_window() -> None:
    """All of it must have gone to the engine by then."""
    stage = Stage()
    stage.cost.measured = True
    job = long_file(deadline_ms=1500)
    stage.add(job)
    assert stage.lanes.late_s(job, 0.0, stage.room, stage.cost) is not None

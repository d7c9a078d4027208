"""The scheduler over simulated days: one reply each, no idle lane beside work, bounded waits, honest refusals."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperd.batching import may_hurry
from whisperd.fairness import HEAD_START_S
from whisperd.lanes import Room
from whisperd.simulator import Machine, Outcome, Request, Simulation

MACHINE = Machine()
PLAIN = replace(MACHINE, room=Room(2, 0, 8))  # without an express lane
ENGINE_ONLY = replace(PLAIN, media_workers=1000, prepare_s=0.0, prepare_rate=0.0, retries=0.0)


REQUESTS = st.lists(
    st.builds(
        Request,
        at=st.floats(0.0, 8.0),
        lengths_s=st.one_of(
            st.tuples(st.floats(0.5, 16.0)),
            st.integers(2, 12).map(lambda windows: (15.0,) * windows),
        ),
        client=st.integers(0, 3),
        priority=st.sampled_from(sorted(HEAD_START_S)),
        deadline_s=st.one_of(st.none(), st.floats(0.01, 8.0)),
        cancel_after_s=st.one_of(st.none(), st.none(), st.floats(0.0, 8.0)),
    ),
    max_size=40,
)
MACHINES = st.builds(
    Machine,
    cores=st.integers(1, 4),
    room=st.builds(Room, lanes=st.integers(1, 4), express=st.integers(0, 2), rows=st.integers(1, 16)),
    slow_s=st.sampled_from([0.5, 3.0, math.inf]),
    rate=st.sampled_from([0.1, 1.0, 5.0]),
    noise=st.sampled_from([0.0, 0.15, 0.6]),
    retries=st.sampled_from([0.0, 0.02, 0.3]),
)


def check_lanes(simulation: Simulation) -> None:
    """What must hold whenever everything that can start has started."""
    lanes, room = simulation.lanes, simulation.machine.room
    express = [flight for flight in lanes.flights if flight.express]
    ordinary = len(lanes.flights) - len(express)
    assert ordinary <= room.lanes
    assert len(express) <= room.express
    assert ordinary == room.lanes or not lanes.batcher, "a lane idles while something waits"
    assert all(may_hurry(window) for flight in express for window in flight.windows)
    assert all(len(flight.windows) <= room.rows for flight in lanes.flights)


@settings(max_examples=150, deadline=None)
@given(REQUESTS, MACHINES, st.integers(0, 100))
def test_every_request_gets_exactly_one_reply_and_no_lane_idles_beside_work(
    requests: Sequence[Request], machine: Machine, seed: int
) -> None:
    """Whatever comes, with whatever deadlines and cancels, on whatever machine."""
    simulation = Simulation(machine, requests, seed, watch=check_lanes).run()
    assert [len(outcome.replies) for outcome in simulation.outcomes] == [1] * len(requests)
    assert not simulation.lanes.batcher
    assert not simulation.lanes.flights
    windows = [id(window) for flight in simulation.flights for window in flight.windows]
    assert len(set(windows)) == len(windows), "a window was decoded twice"
    for outcome in simulation.outcomes:
        wants_end = {"deadline", "refused"} if outcome.request.deadline_s is not None else set()
        wants_end |= {"cancelled"} if outcome.request.cancel_after_s is not None else set()
        assert outcome.replies[0] in {"done"} | wants_end


def closed_loop(
    count: int, made: Callable[[int, float], Request], until: float
) -> tuple[list[Request], Callable[[Outcome], Request | None]]:
    """So many clients that send the next request when they have the reply to the last, up to a time."""
    numbers = itertools.count(count)

    def follow(outcome: Outcome) -> Request | None:
        if outcome.request.name != "loop" or outcome.ended > until:
            return None
        return made(next(numbers), outcome.ended)

    return [made(number, 0.0) for number in range(count)], follow


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.sampled_from(["interactive", "normal"]), st.sampled_from([0, 1]), st.integers(0, 99))
def test_bulk_never_starves(clients: int, priority: str, express: int, seed: int) -> None:
    """Under endless more urgent load of many clients an archive's clip waits for the difference of the head starts,
    times those who compete, shared by two cores; and then goes."""
    chance = random.Random(seed)
    load, follow = closed_loop(
        clients, lambda n, at: Request(at, (chance.uniform(1, 10),), n % clients, priority, name="loop"), until=200.0
    )
    bulk = Request(1.0, (8.0,), "archive", "bulk")
    machine = replace(MACHINE, room=Room(2, express, 8))
    simulation = Simulation(machine, [*load, bulk], seed, follow).run()
    (outcome,) = [outcome for outcome in simulation.outcomes if outcome.request is bulk]
    lag_s = HEAD_START_S[priority] - HEAD_START_S["bulk"]
    assert outcome.latency_s <= 2.0 * lag_s * (clients + 1) / machine.cores + 5.0


@settings(max_examples=15, deadline=None)
@given(st.floats(1.0, 12.0), st.floats(1.0, 12.0), st.integers(0, 99))
def test_clients_with_much_to_do_get_equal_shares_of_the_engine(one_s: float, other_s: float, seed: int) -> None:
    """However long their clips are: by cost, not by count."""
    lengths_s = {"one": one_s, "two": other_s}
    requests = [Request(0.0, (lengths_s[client],), client) for client in lengths_s for _ in range(400)]
    simulation = Simulation(ENGINE_ONLY, requests, seed).run(until=12.0)
    served = dict.fromkeys(lengths_s, 0.0)
    for flight in simulation.flights:
        for window in flight.windows:
            served[window.job.client] += window.cost_s
    a_batch_each = 2 * max(flight.expected_s for flight in simulation.flights)
    assert abs(served["one"] - served["two"]) <= 2 * a_batch_each
    assert len(simulation.lanes.batcher) > 0


# -- the express lane --------------------------------------------------------------------------------------------


def clips_beside(machine: Machine, priority: str, seed: int = 0, of_clips: str = "normal") -> list[float]:
    """Latencies of one clip after the other, while twelve minutes are worked on."""
    file = Request(0.0, (15.0,) * 48, "file", priority, name="file")
    over: list[Outcome] = []

    def follow(outcome: Outcome) -> Request | None:
        if outcome.request is file:
            over.append(outcome)
        return None if over else Request(outcome.ended, (3.0,), "clips", of_clips)

    simulation = Simulation(machine, [file, Request(2.5, (3.0,), "clips", of_clips)], seed, follow).run()
    return [outcome.latency_s for outcome in simulation.outcomes if outcome.request is not file]


def p95(seconds: Sequence[float]) -> float:
    """The 95th percentile."""
    return sorted(seconds)[int(0.95 * len(seconds))]


def idle_s() -> float:
    """What a clip takes on an idle machine."""
    return statistics.median(
        Simulation(MACHINE, [Request(0.0, (3.0,))], seed).run().outcomes[0].latency_s for seed in range(20)
    )


@pytest.mark.parametrize("priority", ["bulk", "normal"])
@pytest.mark.parametrize("of_clips", ["normal", "interactive"])
def test_a_short_clip_hardly_feels_a_long_file(priority: str, of_clips: str) -> None:
    """Its p95 is within three times its idle latency with the express lane, and far beyond that without."""
    express = p95([s for seed in range(8) for s in clips_beside(MACHINE, priority, seed, of_clips)])
    none = p95([s for seed in range(8) for s in clips_beside(PLAIN, priority, seed, of_clips)])
    assert express <= 3.0 * idle_s()
    assert none >= 5.0 * idle_s()


def test_a_burst_is_served_as_if_there_were_no_express_lane() -> None:
    """Clips of one class never use it, so that not even the order differs."""
    chance = random.Random(1)
    burst = [Request(0.0, (chance.uniform(1, 12),), client % 7) for client in range(100)]
    with_it, without = (Simulation(machine, burst, 1).run() for machine in (MACHINE, PLAIN))
    assert [o.ended for o in with_it.outcomes] == [o.ended for o in without.outcomes]


def test_a_lone_long_file_fills_its_batches() -> None:
    """As far as memory allows; the bound in seconds does not cost it much."""
    file = [Request(0.0, (15.0,) * 48)]
    bounded, free = (Simulation(replace(MACHINE, slow_s=s), file).run() for s in (MACHINE.slow_s, math.inf))
    assert statistics.mean(len(flight.windows) for flight in bounded.flights) >= 4
    assert bounded.now <= 1.05 * free.now


# -- deadlines ---------------------------------------------------------------------------------------------------


def crowd(seed: int, load: float) -> list[Request]:
    """Clips and small jobs of six clients at so many a second, most with a deadline, and a long file among them."""
    chance, at, requests = random.Random(seed), 0.0, [Request(0.5, (15.0,) * 20, "long", "bulk")]
    for number in range(250):
        at += chance.expovariate(load)
        lengths_s = (min(16.0, max(1.2, chance.lognormvariate(1.5, 0.6))),) * chance.choice([1, 1, 1, 3])
        deadline_s = chance.uniform(0.3, 4.0) if chance.random() < 0.6 else None
        priority = chance.choice(["normal", "normal", "interactive", "bulk"]) if seed % 2 else "normal"
        requests.append(Request(at, lengths_s, number % 6, priority, deadline_s=deadline_s))
    return requests


def met(outcome: Outcome) -> bool:
    """Whether all of a request went to the engine in time."""
    deadline_s = outcome.request.deadline_s
    return deadline_s is not None and outcome.begun <= outcome.request.at + deadline_s and outcome.replies == ["done"]


@pytest.mark.parametrize(("machine", "part"), [(MACHINE, 0.04), (PLAIN, 0.07)], ids=["express", "plain"])
def test_what_is_refused_early_would_have_missed_its_deadline(machine: Machine, part: float) -> None:
    """In a world where the refusal is only noted, nearly all of those requests are late; and most of all that are
    late were noted, with much of their time left."""
    noted = late = wrong = 0
    leads = []
    for seed, load in itertools.product(range(4), (8.0, 15.0)):
        for outcome in Simulation(replace(machine, refuses=False), crowd(seed, load), seed).run().outcomes:
            late += outcome.replies == ["deadline"]
            if not math.isnan(outcome.refused_at):
                noted += 1
                wrong += met(outcome)
                deadline_s = outcome.request.deadline_s or math.nan
                leads.append((outcome.request.at + deadline_s - outcome.refused_at) / deadline_s)
    assert noted > 200
    assert wrong <= part * noted
    assert noted >= 0.7 * late
    assert statistics.mean(leads) > 0.4


def test_refusing_early_costs_no_deadline_that_could_be_met() -> None:
    """As many requests are begun in time as where all wait to the end."""
    counts = dict.fromkeys((True, False), 0)
    for seed, refuses in itertools.product(range(6), counts):
        outcomes = Simulation(replace(MACHINE, refuses=refuses), crowd(seed, 12.0), seed).run().outcomes
        counts[refuses] += sum(met(outcome) for outcome in outcomes)
    assert counts[True] >= 0.97 * counts[False]


def test_nobody_is_refused_by_a_cold_engine() -> None:
    """Before three batches landed nothing is known of it."""
    burst = [Request(0.0, (5.0,), client, deadline_s=1.0) for client in range(100)]
    simulation = Simulation(replace(MACHINE, rate=50.0), burst).run(until=1.5)
    assert not any(outcome.replies == ["refused"] for outcome in simulation.outcomes)
    assert any(outcome.replies == ["deadline"] for outcome in simulation.outcomes)


def test_the_rate_of_a_machine_is_learned() -> None:
    """Whatever it is, within the noise of batches beside each other."""
    for rate in (0.05, 1.0, 20.0):
        requests = [Request(0.0, (5.0,), client) for client in range(200)]
        simulation = Simulation(replace(ENGINE_ONLY, rate=rate), requests).run()
        assert 0.85 * rate <= simulation.cost.rate <= 1.15 * rate

"""The scheduler's policies side by side, in the simulator: no engine, no audio, some seconds of one core.

    python bench/scheduling.py [--rate 2.1] [--seeds 5]

The shape of costs is that of tiny.en on a CPU (`whisperd/cost.py`); `--rate` is how much slower a model is (base: 2.1).
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from speech_set import table

from whisperd.lanes import Room
from whisperd.simulator import Machine, Outcome, Request, Simulation

FILE_S = 720.0
Run = Callable[[Machine, float, int], Simulation]  # machine, window length of long audio, seed


def clip_s(chance: random.Random) -> float:
    """Lengths like those of the shared clips: 1 to 16 s, half of them under 4.5 s."""
    return min(16.0, max(1.2, chance.lognormvariate(1.5, 0.6)))


def burst(machine: Machine, window_s: float, seed: int) -> Simulation:
    chance = random.Random(seed)
    return Simulation(machine, [Request(0.0, (clip_s(chance),)) for _ in range(80)], seed).run()


def poisson(machine: Machine, window_s: float, seed: int) -> Simulation:
    chance, at, requests = random.Random(seed), 0.0, []
    for number in range(250):
        at += chance.expovariate(8.0 / machine.rate)
        requests.append(Request(at, (clip_s(chance),), number % 5))
    return Simulation(machine, requests, seed).run()


def closed_loop(machine: Machine, window_s: float, seed: int) -> Simulation:
    chance, numbers = random.Random(seed), itertools.count(16)

    def follow(outcome: Outcome) -> Request | None:
        return Request(outcome.ended, (clip_s(chance),), outcome.request.client) if next(numbers) < 200 else None

    return Simulation(machine, [Request(0.0, (clip_s(chance),), n) for n in range(16)], seed, follow).run()


def long_file(machine: Machine, window_s: float, seed: int) -> Simulation:
    return Simulation(machine, [Request(0.0, (window_s,) * int(FILE_S / window_s))], seed).run()


def clips_beside(priority: str) -> Run:
    """One client with one clip of 3 s after the other, while a file of twelve minutes is worked on."""

    def run(machine: Machine, window_s: float, seed: int) -> Simulation:
        file = Request(0.0, (window_s,) * int(FILE_S / window_s), "file", priority, name="file")
        over: list[Outcome] = []

        def follow(outcome: Outcome) -> Request | None:
            if outcome.request is file:
                over.append(outcome)
            return None if over else Request(outcome.ended, (3.0,), outcome.request.client)

        return Simulation(machine, [file, Request(3.0, (3.0,), "clips")], seed, follow).run()

    return run


def idle_s(machine: Machine) -> float:
    """A clip of 3 s on an idle machine."""
    return statistics.median(
        Simulation(machine, [Request(0.0, (3.0,))], seed).run().outcomes[0].latency_s for seed in range(21)
    )


def quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def figures(runs: Sequence[Simulation], idle: float) -> list[str]:
    """× realtime, p50 and p95 of the clips in idle latencies, rows in a batch."""
    speed, fill = [], []
    latencies = [o.latency_s / idle for run in runs for o in run.outcomes if len(o.request.lengths_s) == 1]
    for run in runs:
        audio_s = sum(sum(outcome.request.lengths_s) for outcome in run.outcomes)
        speed.append(audio_s / (max(o.ended for o in run.outcomes) - min(o.request.at for o in run.outcomes)))
        fill.append(sum(len(flight.windows) for flight in run.flights) / len(run.flights))
    parts = [f"{quantile(latencies, part):.1f}" if latencies else "" for part in (0.5, 0.95)]
    return [f"{statistics.mean(speed):.1f}", *parts, f"{statistics.mean(fill):.1f}"]


def main() -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rate", type=float, default=1.0, help="seconds of this model for one of tiny.en")
    made.add_argument("--seeds", type=int, default=5)
    arguments = made.parse_args()
    machine = replace(Machine(), rate=arguments.rate)
    plain = replace(machine, room=Room(2, 0, 8))
    policies = [
        ("shipped", machine, 15.0),
        ("no express lane", plain, 15.0),
        ("no express lane, batches of 1 s", replace(plain, slow_s=1.0), 15.0),
        ("no express lane, batches unbounded", replace(plain, slow_s=math.inf), 15.0),
        ("express, batches of 1 s", replace(machine, slow_s=1.0), 15.0),
        ("express, batches unbounded", replace(machine, slow_s=math.inf), 15.0),
        ("shipped, windows of 30 s", machine, 30.0),
        ("no express lane, unbounded, 30 s", replace(plain, slow_s=math.inf), 30.0),
    ]
    workloads: list[tuple[str, Run]] = [
        ("12 minutes alone", long_file),
        ("a clip after the other beside 12 minutes of bulk", clips_beside("bulk")),
        ("the same beside 12 minutes of normal priority", clips_beside("normal")),
        ("burst of 80 clips", burst),
        ("16 clients in closed loop", closed_loop),
        ("8 clips a second, at random", poisson),
    ]
    idle, rows = idle_s(machine), []
    for workload, run in workloads:
        long = run not in (burst, closed_loop, poisson)  # without long work nothing but the first two could differ
        for name, policy, window_s in policies if long else policies[:2]:
            runs = [run(policy, window_s, seed) for seed in range(arguments.seeds)]
            rows.append([workload, name, *figures(runs, idle)])
    table(["workload", "policy", "x realtime", "clips' p50, x idle", "p95, x idle", "rows in a batch"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

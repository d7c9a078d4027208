"""Workloads of throughput: a burst, long files, clients that wait for their replies, and clients that do not.

Each starts its sides afresh for every repetition, in changing order, with the model loaded and one clip transcribed
before anything is timed.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import plan as plans
from measured import Figures, Stretch, measure, speech_figures, wer_figures
from run import Run
from sides import Answer, Flavour, Server, Side, ask
from speech_set import Clip

SEED = 20_260_101
FASTER_WHISPER = ("serial", "threads", "batched")


def burst(run: Run) -> None:
    """80 or more short clips at once, with each side's defaults and like for like."""
    everything = plans.short_clips(run.plan.burst_step)
    fewer = plans.short_clips(run.plan.burst_step * run.plan.library_step)
    for flavour in run.flavours.values():
        name = f"burst_{flavour.name}"
        title = f"burst of {len(everything)} short clips, {flavour.name.replace('_', ' ')}"
        sides = ["whisperd", "serial", "threads", "sketch"]
        if not flavour.library:
            sides += run.plan.extra_burst_sides

        def work(side: Side, _: int, flavour: Flavour = flavour, name: str = name, title: str = title) -> None:
            chosen = fewer if side.name in FASTER_WHISPER else everything
            run.add(name, title, side.name, burst_figures(side, chosen, flavour))

        run.in_turns(name, sides, work)
        run.finish(name, _by_the_others(sides))
        _wer_points(run.cases.get(name), "serial")


def burst_figures(side: Side, chosen: Sequence[Clip], flavour: Flavour) -> Figures:
    def work() -> Stretch:
        answers, seconds = side.burst(chosen, flavour)
        retried = getattr(side, "retried", None)
        extra = {"rows_retried": {"sketch": retried}, "rows_retried_share": retried / len(chosen)} if retried else {}
        return Stretch(chosen, answers, seconds, extra)

    return measure(side, work)


def _wer_points(case: Figures | None, reference: str) -> None:
    """By how many points each side's error rate is above the reference's, on the clips that both had; the mean of the
    repetitions, as another batch now and then gives another word."""
    if case is None or reference not in case["sides"]:
        return
    known = [repeat["by_clip"] for repeat in case["sides"][reference]["repeats"]]
    for side in case["sides"].values():
        points, words = [], 0
        for own, theirs in zip((repeat["by_clip"] for repeat in side["repeats"]), known, strict=False):
            both = set(own) & set(theirs)
            mine, other = wer_figures(own, both), wer_figures(theirs, both)
            if mine["words"]:
                points.append(mine["wer_percent"] - other["wer_percent"])
                words = mine["words"]
        if points:
            side["median"]["wer_points_above_serial"] = sum(points) / len(points)
            side["median"]["words_compared"] = words


def _by_the_others(sides: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Speed and thrift of the first side by each of the others, for `Run.finish`."""
    first, *others = sides
    ratios = {f"x_realtime, {first} / {other}": ("x_realtime", first, other) for other in others}
    return ratios | {
        f"processor time, {first} / {other}": ("cpu_s_per_audio_hour", first, other) for other in others
    }


def long_files(run: Run) -> None:
    """Each recording by itself; the threads get all of them at once, as nothing else could keep them busy."""
    chosen = plans.long_clips(run.plan.long_files)
    flavour = run.flavours["defaults"]
    title = f"long files, {sum(clip.seconds for clip in chosen) / 60:.0f} minutes in {len(chosen)}"

    def work(side: Side, _: int) -> None:
        def one_by_one() -> Stretch:
            if side.name == "threads":
                return Stretch(chosen, *side.burst(chosen, flavour))
            done = [side.burst([clip], flavour) for clip in chosen]
            took = {clip.file: seconds for clip, (_, seconds) in zip(chosen, done, strict=True)}
            answers = [answers[0] for answers, _ in done]
            return Stretch(chosen, answers, sum(took.values()), {"seconds_by_file": took})

        run.add("long", title, side.name, measure(side, one_by_one))

    run.in_turns("long files", run.plan.long_sides, work)
    run.finish("long", _by_the_others(run.plan.long_sides))
    _wer_points(run.cases.get("long"), "serial")


def closed_loop(run: Run) -> None:
    """So many clients, each of which sends its next clip when it has the text of its last."""
    everything = shuffled(run)

    def work(side: Server, _: int) -> None:
        side.prepare(everything)
        for clients, requests in run.plan.closed.items():
            chosen = list(itertools.islice(itertools.cycle(everything), requests))

            def stretch(clients: int = clients, chosen: list[Clip] = chosen) -> Stretch:
                return _clients(side, clients, chosen)

            figures = measure(side, stretch)
            run.add(f"closed_{clients}", _clients_title(clients), side.name, figures)

    run.in_turns("closed loop", ("whisperd", "wyoming"), work)
    for clients in run.plan.closed:
        p95 = {"p95_s, whisperd / wyoming": ("p95_s", "whisperd", "wyoming")}
        run.finish(f"closed_{clients}", _by_the_others(("whisperd", "wyoming")) | p95)


def _clients_title(clients: int) -> str:
    return f"{clients} closed-loop client{'s' if clients > 1 else ''}"


def _clients(side: Server, clients: int, chosen: Sequence[Clip]) -> Stretch:
    left = iter(enumerate(chosen))
    taking = threading.Lock()
    answers: list[Answer | None] = [None] * len(chosen)

    def client(_: int) -> None:
        asker = side.connect()
        try:
            while True:
                with taking:
                    number, clip = next(left, (None, None))
                if number is None or clip is None:
                    return
                answers[number] = ask(asker, clip, time.perf_counter())
        finally:
            asker.close()

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(client, range(clients)))
    seconds = time.perf_counter() - began
    return Stretch(chosen, [answer for answer in answers if answer], seconds)


def open_loop(run: Run) -> None:
    """Arrivals that do not wait for anybody (Poisson, the same for both sides). A latency counts from when the clip
    was meant to be sent, so that waiting is in it."""
    everything = shuffled(run)
    per_s = _burst_clips_per_s(run, everything)
    if per_s is None:
        return
    chosen = list(itertools.islice(itertools.cycle(everything), run.plan.open_requests))

    def work(side: Server, number: int) -> None:
        side.prepare(chosen)
        for share in run.plan.open_shares:
            rate = share * per_s
            arrivals = _poisson(rate, len(chosen), SEED + number)

            def stretch(arrivals: Sequence[float] = arrivals) -> Stretch:
                return _arriving(side, chosen, arrivals)

            figures = measure(side, stretch)
            figures["offered_per_s"] = rate
            title = f"open loop, {share:g} of the burst's throughput ({rate:.2f} clips/s)"
            run.add(f"open_{share:g}", title, side.name, figures)

    run.in_turns("open loop", ("whisperd", "wyoming"), work)
    for share in run.plan.open_shares:
        run.finish(f"open_{share:g}", {"p95_s, whisperd / wyoming": ("p95_s", "whisperd", "wyoming")})


def _burst_clips_per_s(run: Run, chosen: Sequence[Clip]) -> float | None:
    """As measured in this run; by a burst of its own where that was left out."""
    side = run.cases.get("burst_defaults", {}).get("sides", {}).get("whisperd")
    if side:
        return float(side["median"]["clips"] / side["median"]["seconds"])
    found: list[float] = []

    def work(side: Any) -> None:
        answers, seconds = side.burst(chosen, run.flavours["defaults"])
        found.append(speech_figures(Stretch(chosen, answers, seconds))["clips"] / seconds)

    run.say("open loop: how much the daemon takes in a burst")
    run.with_side("open loop", "whisperd", work)
    return found[0] if found else None


def _poisson(per_s: float, count: int, seed: int) -> list[float]:
    """When each request is meant to be sent, in seconds from the begin."""
    draw = random.Random(seed)
    return list(itertools.accumulate(draw.expovariate(per_s) for _ in range(count)))


def _arriving(side: Server, chosen: Sequence[Clip], arrivals: Sequence[float]) -> Stretch:
    asker = side.connect()
    began = time.perf_counter()

    def one(number: int) -> Answer:
        due = began + arrivals[number]
        time.sleep(max(0.0, due - time.perf_counter()))
        return ask(asker, chosen[number], due)

    try:
        with ThreadPoolExecutor(len(chosen)) as threads:
            answers = list(threads.map(one, range(len(chosen))))
    finally:
        asker.close()
    return Stretch(chosen, answers, time.perf_counter() - began)


def shuffled(run: Run) -> list[Clip]:
    """The burst's clips in an order in which the sets are mixed, the same every time."""
    chosen = plans.short_clips(run.plan.burst_step)
    random.Random(SEED).shuffle(chosen)
    return chosen

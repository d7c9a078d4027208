"""One run of `whisperd tune`: measures the settings in effect, lets candidates meet the best so far, checks the gain.

Two daemons are up at a time, and bursts go to them in turn, so that whatever else the machine does meets both. What
won is measured once more against the settings in effect, because the best of many tries is partly luck; a gain that
does not show again is none. Time is spent only where enough is left for that last check.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from whisperd.cli.trials import Sums, Trial, packaged_clips
from whisperd.client import ConnectionLost, RequestFailed, Timeout
from whisperd.tuning import (
    ROUNDS,
    USUAL_ROWS,
    Clip,
    Host,
    Observed,
    Outcome,
    Rules,
    Search,
    Values,
    burst_of,
    candidates,
    is_beaten,
    judge,
    shown,
    shows_nothing,
)

_START_LIMIT_S = 60.0  # or the whole budget: a large model from a slow disk
_BURSTS_IN_BUDGET = 60  # two for a candidate that is beaten at once, as most are, and eight for what wins and its check
_BURST_S = (0.8, 8.0)  # shorter ones measure the machine's moods, longer ones nothing more
_FIRST_GUESS = 4.0  # a burst's × realtime to that of a clip alone
_PATIENCE = 4.0  # a candidate that takes so many times as long has lost
_FULL_CONTEXT = 6.0  # what a burst with the full context costs, about, to one with a short context
_MEMORY_SPARE = 1.5  # two daemons at a time: room for the other must be there

Say = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """What to tune: `settings` in effect as flags; `start` those of them that are tuned, 0 and "auto" where the daemon
    chooses; `fixed` the ones that a file cannot change."""

    folder: Path
    settings: Values
    start: Values
    fixed: Mapping[str, str]
    cores: int
    tail_s: float  # that the daemon gives this model
    tail_is_measured: bool
    budget_s: float


@dataclass(frozen=True)
class Gain:
    """What came of it. `changes` are to be written; empty: nothing is better, and `after` is None."""

    device: str
    start: Values  # in effect, with the daemon's choice for 0 and "auto"
    before: Observed
    after: Observed | None
    changes: Values
    outcomes: Sequence[Outcome]
    not_tried: Sequence[tuple[str, str]]  # what, and why


class _Dropped(Exception):
    """A candidate is out before there are figures of it; the message says why."""


class Tuner:
    """One run; `close` ends its daemons, at whatever moment."""

    def __init__(self, task: Task, say: Say) -> None:
        self._task = task
        self._say = say
        self._deadline = time.monotonic() + task.budget_s
        self._limit_s = max(_START_LIMIT_S, task.budget_s)
        self._clips: Sequence[Clip] = packaged_clips()
        self._rules = Rules(self._clips)
        self._trials: list[Trial] = []
        self._start_s = self._burst_s = self._single_s = 0.0  # what these take
        self._burst: tuple[int, ...] = ()

    def close(self) -> None:
        for trial in self._trials:
            trial.close()

    def run(self) -> Gain:
        """Raises RequestFailed, ConnectionLost or Timeout where the settings in effect do not work."""
        best = self._begin({}, self._limit_s)
        before = self._calibrate(best)
        wrong_max = self._rules.words_wrong(before.texts)
        self._say(f"with the settings in effect: {_figures(before)}; {wrong_max} words wrong")
        device, start = self._in_effect(best)
        task, judges = self._task, self._rules.can_judge(before.texts)
        wanted, not_tried = candidates(Host(device, task.cores, task.tail_is_measured, task.fixed, judges), start)
        search = Search(start, wanted)
        while (changes := search.next()) is not None:
            if not self._has_time(changes):
                not_tried += [(shown(one), "out of time") for one in search.give_up()]
                break
            if reason := shows_nothing(changes, search.best, len(self._burst)):
                not_tried.append((shown(changes), reason))
                search.skip()
                continue
            challenger, outcome = self._try(best, search.changes, changes, wrong_max)
            search.settle(outcome)
            self._say(_line(outcome))
            if challenger:
                self._end(best)
                best = challenger
        after = None
        if search.changes:
            before, after = self._check(best, search.changes, wrong_max) or (before, None)
        gained = search.changes if after else {}
        return Gain(device, start, before, after, gained, search.outcomes, not_tried)

    def _begin(self, changes: Values, limit_s: float) -> Trial:
        """A daemon with these changes that has answered once. Raises as `run`."""
        began = time.monotonic()
        with _uninterrupted():  # or a daemon that was just started would be nobody's
            trial = Trial(self._task.folder, self._clips, {**self._task.settings, **changes})
            self._trials.append(trial)
        try:
            trial.single(limit_s)
        except (RequestFailed, ConnectionLost, Timeout):
            self._end(trial)
            raise
        self._start_s = max(self._start_s, time.monotonic() - began)
        return trial

    def _end(self, trial: Trial) -> None:
        trial.close()
        self._trials.remove(trial)  # only now: who interrupts the one leaves it to `close`

    def _calibrate(self, trial: Trial) -> Observed:
        """Finds a burst that is long enough to be measured and short enough to be repeated; measures it once."""
        shortest_s, longest_s = _BURST_S
        target_s = min(longest_s, max(shortest_s, self._task.budget_s / _BURSTS_IN_BUDGET))
        self._single_s = min(trial.single(self._limit_s) for _ in range(2))
        speed = _FIRST_GUESS * self._clips[0].seconds / self._single_s
        for _ in range(2):
            self._burst = burst_of(self._clips, speed * target_s, self._task.cores)
            self._burst_s, _texts = trial.burst(self._burst, self._limit_s)
            speed = sum(self._clips[number].seconds for number in self._burst) / self._burst_s
        sums = Sums()
        trial.measure(self._burst, self._limit_s, sums)
        return trial.observed(sums)

    def _in_effect(self, trial: Trial) -> tuple[str, Values]:
        """The device, and the tuned settings with what the daemon chose for 0 and "auto"."""
        settled = trial.settled()
        device = "cuda" if settled.pop("device", "cpu") == "cuda" else "cpu"
        rows = self._task.start["batch_rows"] or USUAL_ROWS[device]
        return device, {**self._task.start, "batch_rows": rows, "tail_s": self._task.tail_s, **settled}

    def _has_time(self, changes: Values) -> bool:
        """For one more candidate, and for the check of what won."""
        duel_s = self._start_s + self._single_s + 2 * ROUNDS * (self._burst_s + 2 * self._single_s)
        full_s = _FULL_CONTEXT * self._burst_s if "tail_s" in changes and self._rules.full is None else 0.0
        return time.monotonic() + full_s + 2 * duel_s < self._deadline

    def _try(self, best: Trial, so_far: Values, changes: Values, wrong_max: int) -> tuple[Trial | None, Outcome]:
        """A candidate against the best so far; returns its daemon if it is better. Only the best so far may fail."""
        if "tail_s" in changes and self._rules.full is None:
            _took_s, full = best.burst(sorted(set(self._burst)), self._limit_s, context="full")
            self._rules = replace(self._rules, full=full)
        try:
            self._check_memory(best)
            challenger = self._challenger({**so_far, **changes})
            observed, tried = self._rounds(best, challenger)
        except _Dropped as reason:
            return None, Outcome(changes, False, str(reason))
        outcome = judge(changes, observed, tried, wrong_max, self._rules)
        if not outcome.kept:
            self._end(challenger)
        return (challenger if outcome.kept else None), outcome

    def _check(self, best: Trial, changes: Values, wrong_max: int) -> tuple[Observed, Observed] | None:
        """The settings in effect, from a new start, against what won. None where the gain does not show again."""
        try:
            before, after = self._rounds(self._begin({}, self._limit_s), best)
        except _Dropped as reason:
            self._say(f"checked again: {reason}")
            return None
        outcome = judge(changes, before, after, wrong_max, self._rules)
        self._say(f"checked again: {_line(outcome)}")
        if not outcome.kept:
            self._say("the gain did not show again; on a machine that does nothing else it may")
        return (before, after) if outcome.kept else None

    def _check_memory(self, best: Trial) -> None:
        """Raises _Dropped."""
        rss_bytes = best.observed(Sums()).rss_bytes
        if rss_bytes and psutil.virtual_memory().available < _MEMORY_SPARE * rss_bytes:
            raise _Dropped("not enough memory for two daemons at a time")

    def _challenger(self, changes: Values) -> Trial:
        """A candidate's daemon, warm. Raises _Dropped."""
        try:
            trial = self._begin(changes, max(2 * self._start_s, _PATIENCE * self._burst_s))
        except (RequestFailed, ConnectionLost, Timeout) as error:
            raise _Dropped(_refusal(error)) from error
        few = self._burst[: self._task.cores]
        self._of_challenger(trial, lambda: trial.burst(few, self._patience_s()))
        return trial

    def _rounds(self, best: Trial, challenger: Trial) -> tuple[Observed, Observed]:
        """Bursts to both in turn, who is first in turn too. Raises _Dropped; whatever the best raises."""
        ours, theirs = Sums(), Sums()

        def measure_challenger() -> None:
            self._of_challenger(challenger, lambda: challenger.measure(self._burst, self._patience_s(), theirs))

        for number in range(ROUNDS):
            if number % 2:
                measure_challenger()
            best.measure(self._burst, self._limit_s, ours)
            if not number % 2:
                measure_challenger()
            if is_beaten(best.observed(ours), challenger.observed(theirs)):
                break
        return best.observed(ours), challenger.observed(theirs)

    def _of_challenger(self, trial: Trial, work: Callable[[], object]) -> None:
        """Work of which a failure is the candidate's: it is ended and _Dropped raised."""
        try:
            work()
        except (RequestFailed, ConnectionLost, Timeout) as error:
            self._end(trial)
            raise _Dropped(_refusal(error)) from error

    def _patience_s(self) -> float:
        return _PATIENCE * (self._burst_s + self._single_s) + 1.0


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C inside is felt at the end. For the main thread."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _refusal(error: Exception) -> str:
    if isinstance(error, RequestFailed):
        return f"does not work here: {error.message.rpartition(': ')[2]}"  # without the model's path
    return "took too long" if isinstance(error, Timeout) else "its daemon ended"


def _figures(observed: Observed) -> str:
    rss = "" if observed.rss_bytes is None else f", {observed.rss_bytes / 1e6:.0f} MB"
    return f"{observed.speed:.1f} × realtime, {1000 * observed.latency_s:.0f} ms for one clip{rss}"


def _line(outcome: Outcome) -> str:
    ratio = "" if outcome.ratio is None else f"{outcome.ratio:.2f} × the best so far: "
    return f"{shown(outcome.changes)}: {ratio}{outcome.reason}"

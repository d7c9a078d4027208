"""Which settings to try on this host, and whether one is better than another: the thinking of `whisperd tune`.

One setting after the other is put against the best so far. What is tried must earn its place: not one word more wrong
than with the settings in effect, faster in every round and by a margin, and no single clip that waits much longer for
it. Rounds are compared one by one, since in a round both had the same machine, busy or not. Where nothing can be
judged the setting is left as it is: the defaults are known to be good, and a few clips are thin evidence. Pure: it
starts nothing and knows no clock.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

Value = int | float | str
Values = Mapping[str, Value]
Texts = frozenset[tuple[int, str]]  # every different text that a clip got, as (number of the clip, plain words)

TUNABLE = ("lanes", "threads", "compute_type", "batch_rows", "tail_s")
ROUNDS = 4  # of bursts, in turn with the best so far; by chance all are faster once in sixteen times
MARGIN = 1.03  # less is not worth a setting that somebody has to understand later
_LATENCY_WORSE_MAX = 1.25  # of one clip alone: throughput may cost that much of it and no more
_WRONG_SHARE_MAX = 0.3  # a model that misses more of the packaged English cannot be judged by it
_BURST_CLIPS_MIN, _BURST_CLIPS_MAX = 4, 512
# The daemon's own, where batch_rows is 0 (inference.process); a test compares them.
USUAL_ROWS = {"cpu": 8, "cuda": 32}
_ROWS = {"cpu": (4, 8, 16), "cuda": (16, 32, 64)}
# Names to ask the engine for; it refuses what the device cannot do. On a CPU int8_float32 is what int8 means.
_COMPUTE_TYPES = {
    "cpu": ("int8", "float32", "int8_bfloat16", "bfloat16"),
    "cuda": ("float16", "int8_float16", "bfloat16"),
}
_TAILS_S = (4.0, 3.0, 2.0, 6.0)


@dataclass(frozen=True, slots=True)
class Clip:
    """Packaged speech and what is said in it."""

    file: str
    seconds: float
    text: str


@dataclass(frozen=True, slots=True)
class Host:
    """What decides which settings can make a difference."""

    device: str  # cpu or cuda
    cores: int
    tail_is_measured: bool  # the daemon knows this model's tail (tails.py)
    fixed: Mapping[str, str] = field(default_factory=dict)  # settings that a file cannot change, and by whose word
    can_judge_words: bool = True


@dataclass(frozen=True, slots=True)
class Observed:
    """What repeated bursts through one daemon gave."""

    speeds: tuple[float, ...]  # × realtime, one for each burst
    latencies_s: tuple[float, ...]  # of one clip on the idle daemon
    texts: Texts
    rows_retried: int = 0
    rss_bytes: int | None = None  # the engine's peak; None: it has no process

    @property
    def speed(self) -> float:
        return median(self.speeds)

    @property
    def latency_s(self) -> float:
        return median(self.latencies_s)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a candidate; `ratio` of its speed to that of the best so far, None where it has none."""

    changes: Values
    kept: bool
    reason: str
    ratio: float | None = None


def candidates(host: Host, start: Values) -> tuple[list[Values], list[tuple[str, str]]]:
    """What to try, in order, and which settings to leave alone with the reason. `start` are the settings in effect,
    with the daemon's choice in place of "auto" and 0."""
    wanted: dict[tuple[str, ...], list[Values]] = {
        ("lanes", "threads"): _placements(host),
        ("compute_type",): [{"compute_type": name} for name in _COMPUTE_TYPES[host.device]],
        ("batch_rows",): [{"batch_rows": rows} for rows in _ROWS[host.device]],
        ("tail_s",): [{"tail_s": tail_s} for tail_s in _TAILS_S],
    }
    left_alone = {name: f"{who} decides, and wins over the file" for name, who in host.fixed.items()}
    if host.tail_is_measured:
        left_alone.setdefault("tail_s", "was measured for this model on far more speech")
    if not host.can_judge_words:
        for name in ("compute_type", "tail_s"):
            left_alone.setdefault(name, "the model does not understand the packaged English, so its errors say nothing")
    tried, skipped = [], []
    for names, group in wanted.items():
        blocked = [name for name in names if name in left_alone]
        if blocked:
            skipped += [(name, left_alone[blocked[0]]) for name in names]
        else:
            tried += [changes for changes in group if not _is_part_of(changes, start)]
    return tried, skipped


def _placements(host: Host) -> list[Values]:
    """Lanes × threads that use all cores, then half of them: two to a core may share its arithmetic units."""
    if host.device == "cuda":
        return [{"lanes": lanes, "threads": max(1, host.cores // lanes)} for lanes in (1, 2)]
    threads = 1
    placements: list[Values] = []
    while threads < host.cores:
        placements.append({"lanes": host.cores // threads, "threads": threads})
        threads *= 2
    placements.append({"lanes": 1, "threads": host.cores})
    if host.cores >= 4:
        placements.append({"lanes": host.cores // 2, "threads": 1})
    return placements


def _is_part_of(changes: Values, whole: Values) -> bool:
    return all(whole.get(name) == value for name, value in changes.items())


class Search:
    """Goes through the candidates; each meets the best so far, and takes its place if it is better."""

    def __init__(self, start: Values, wanted: Iterable[Values]) -> None:
        self.best = dict(start)
        self._waiting = list(wanted)
        self.changes: dict[str, Value] = {}  # what the best so far has that the start has not
        self.outcomes: list[Outcome] = []

    def next(self) -> Values | None:
        """The changes to try now, or None when all were tried. They stay in line until `settle`."""
        while self._waiting and _is_part_of(self._waiting[0], self.best):
            self._waiting.pop(0)  # it became the best's own
        return self._waiting[0] if self._waiting else None

    def settle(self, outcome: Outcome) -> None:
        """What became of the candidate that `next` told."""
        self._waiting.remove(outcome.changes)
        self.outcomes.append(outcome)
        if outcome.kept:
            self.best |= outcome.changes
            self.changes |= outcome.changes

    def skip(self) -> None:
        """Goes past the candidate that `next` told, of which nothing could be learned."""
        self._waiting.pop(0)

    def give_up(self) -> list[Values]:
        """Empties the line; returns who was in it."""
        left, self._waiting = self._waiting, []
        return [changes for changes in left if not _is_part_of(changes, self.best)]


@dataclass(frozen=True, slots=True)
class Rules:
    """What texts are compared with: the clips' own, and those that the full context gave (None: not known)."""

    clips: Sequence[Clip]
    full: Texts | None = None

    def words_wrong(self, texts: Texts) -> int:
        """Of each clip the worst text counts, so that a candidate cannot win by being right now and then."""
        worst: dict[int, int] = {}
        for number, text in texts:
            wrong = words_wrong(self.clips[number].text, text)
            worst[number] = max(wrong, worst.get(number, 0))
        return sum(worst.values())

    def can_judge(self, texts: Texts) -> bool:
        """Whether the model understands the clips well enough for its errors to mean something."""
        words = sum(len(plain(self.clips[number].text).split()) for number in {number for number, _ in texts})
        return self.words_wrong(texts) <= _WRONG_SHARE_MAX * words


def judge(changes: Values, best: Observed, tried: Observed, wrong_max: int, rules: Rules) -> Outcome:
    """Whether `tried` beats `best`, measured in the same rounds. `wrong_max`: words that the settings in effect get
    wrong."""
    ratios = _ratios(best, tried)
    ratio = median(ratios)
    wrong = rules.words_wrong(tried.texts)
    if wrong > wrong_max:
        return Outcome(changes, False, f"{wrong} words wrong instead of {wrong_max}", ratio)
    if "tail_s" in changes and (reason := _tail_trouble(best, tried, rules.full)):
        return Outcome(changes, False, reason, ratio)
    if ratio < 1 / MARGIN:
        return Outcome(changes, False, "slower", ratio)
    if ratio < MARGIN:
        return Outcome(changes, False, "no clear gain", ratio)
    if min(ratios) <= 1 or len(ratios) < ROUNDS:
        return Outcome(changes, False, "faster, but not in every round", ratio)
    if tried.latency_s > _LATENCY_WORSE_MAX * best.latency_s:
        longer = round(100 * (tried.latency_s / best.latency_s - 1))
        return Outcome(changes, False, f"faster, but one clip alone takes {longer} % longer", ratio)
    return Outcome(changes, True, "better", ratio)


def is_beaten(best: Observed, tried: Observed) -> bool:
    """Whether a round has settled it: more of them would only cost time."""
    return min(_ratios(best, tried)) <= 1


def _ratios(best: Observed, tried: Observed) -> list[float]:
    return [ours / theirs for theirs, ours in zip(best.speeds, tried.speeds, strict=True)]


def _tail_trouble(best: Observed, tried: Observed, full: Texts | None) -> str | None:
    """A few clips must not argue with what many have shown: nothing at all may change with another tail."""
    if full is None or not tried.texts <= full:
        return "not the same words as with the full context"
    if tried.rows_retried > best.rows_retried:
        return f"{tried.rows_retried} rows decoded twice instead of {best.rows_retried}"
    return None


def plain(text: str) -> str:
    """Lower case, words only: how a model writes them does not count."""
    return " ".join(re.findall(r"[^\W_]+", text.lower().replace("'", "").replace("’", "")))


def words_wrong(reference: str, text: str) -> int:
    """Words changed, left out or put in, at the least (Levenshtein's distance)."""
    wanted, got = plain(reference).split(), plain(text).split()
    row = list(range(len(got) + 1))
    for i, word in enumerate(wanted, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(got, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


def burst_of(clips: Sequence[Clip], audio_s: float, least: int) -> tuple[int, ...]:
    """Numbers of the clips that together last about so long, and are no fewer than `least` (there must be something for
    every core): the first few of them, or all of them several times."""
    total_s = sum(clip.seconds for clip in clips)
    least = min(max(least, _BURST_CLIPS_MIN), _BURST_CLIPS_MAX)
    if audio_s >= total_s or least > len(clips):
        copies = max(round(audio_s / total_s), math.ceil(least / len(clips)))
        return (tuple(range(len(clips))) * min(copies, math.ceil(_BURST_CLIPS_MAX / len(clips))))[:_BURST_CLIPS_MAX]
    chosen: list[int] = []
    while len(chosen) < least or sum(clips[number].seconds for number in chosen) < audio_s:
        chosen.append(len(chosen))
    return tuple(chosen)


def shows_nothing(changes: Values, best: Values, burst_clips: int) -> str | None:
    """Why a burst of so many clips cannot tell anything about these changes, if it cannot."""
    wanted = int(changes.get("batch_rows", 0)) * int(best["lanes"] or 1)
    return f"a burst of {burst_clips} clips does not fill such batches" if wanted > burst_clips else None


def shown(changes: Values) -> str:
    """As in "lanes=1 threads=2"."""
    return " ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
                    for name, value in changes.items())  # fmt: skip

"""What `whisperd tune` tries and what it believes, with measurements made up here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from whisperd.cli.trials import SPEECH, packaged_clips
from whisperd.inference import process
from whisperd.tuning import (
    ROUNDS,
    USUAL_ROWS,
    Clip,
    Host,
    Observed,
    Outcome,
    Rules,
    Search,
    Texts,
    Values,
    burst_of,
    candidates,
    is_beaten,
    judge,
    plain,
    shown,
    shows_nothing,
    words_wrong,
)

CLIPS = (Clip("a", 2.0, "Please close the door."), Clip("b", 10.0, "It rains."), Clip("c", 3.0, "Good night to you."))
RIGHT: Texts = frozenset((number, plain(clip.text)) for number, clip in enumerate(CLIPS))
RULES = Rules(CLIPS, full=RIGHT)
CPU = Host("cpu", 2, tail_is_measured=False)
START: Values = {"lanes": 2, "threads": 1, "compute_type": "int8", "batch_rows": 8, "tail_s": 6.0}
STEADY = (40.0, 41.0, 39.0, 40.0)


def seen(speeds: Sequence[float] = STEADY, latency_s: float = 0.1, texts: Texts = RIGHT, retried: int = 0) -> Observed:
    """Measurements of one daemon."""
    return Observed(tuple(speeds), (latency_s,), texts, retried)


def times(factor: float) -> tuple[float, ...]:
    """The steady speeds, all by so much faster."""
    return tuple(speed * factor for speed in STEADY)


def reason(tried: Observed, changes: Values | None = None, best: Observed | None = None, rules: Rules = RULES) -> str:
    """What is said of a candidate; "better" if it won."""
    outcome = judge(changes or {"batch_rows": 16}, best or seen(), tried, wrong_max=1, rules=rules)
    assert outcome.kept == (outcome.reason == "better")
    return outcome.reason


def test_faster_in_every_round_and_by_the_margin_wins() -> None:
    """The ratio told is the median of the rounds."""
    outcome = judge({"batch_rows": 16}, seen(), seen(times(1.1)), 0, RULES)
    assert outcome.kept
    assert outcome.ratio == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("speeds", "why"),
    [
        (times(1.0), "no clear gain"),
        (times(1.02), "no clear gain"),
        (times(0.98), "no clear gain"),
        (times(0.9), "slower"),
        ((60.0, 60.0, 38.0, 60.0), "faster, but not in every round"),
    ],
)
def test_what_is_not_clearly_faster_loses(speeds: tuple[float, ...], why: str) -> None:
    """The settings in effect stay, whatever one lucky round says."""
    assert reason(seen(speeds)) == why


def test_a_machine_whose_speed_drifts_does_not_hide_a_gain() -> None:
    """Rounds are compared one by one: slower than the other's best round is no loss."""
    assert reason(seen((44.0, 22.0, 11.0, 33.0)), best=seen((40.0, 20.0, 10.0, 30.0))) == "better"


def test_too_few_rounds_convince_nobody() -> None:
    """As when a run was cut short."""
    assert reason(seen((80.0, 80.0)), best=seen((40.0, 40.0))) == "faster, but not in every round"


def test_a_word_more_wrong_loses_whatever_the_speed() -> None:
    """As many wrong words as before are none too many."""
    one = RIGHT - {(0, "please close the door")} | {(0, "please close the drawer")}
    two = RIGHT - {(0, "please close the door")} | {(0, "please lose the drawer")}
    assert reason(seen(times(2.0), texts=one)) == "better"
    assert reason(seen(times(2.0), texts=two)) == "2 words wrong instead of 1"


def test_a_clip_that_is_wrong_now_and_then_counts_as_wrong() -> None:
    """The worst text of each clip is the one that counts."""
    assert RULES.words_wrong(RIGHT | {(1, "it drains"), (1, "rains")}) == 1


def test_throughput_may_not_cost_much_latency() -> None:
    """A quarter at most."""
    assert reason(seen(times(1.5), latency_s=0.12)) == "better"
    assert reason(seen(times(1.5), latency_s=0.15)) == "faster, but one clip alone takes 50 % longer"


def test_another_tail_must_change_no_word_against_the_full_context() -> None:
    """Not even one that is wrong with the full context too."""
    tail: Values = {"tail_s": 3.0}
    full = RIGHT - {(1, "it rains")} | {(1, "it drains")}
    assert reason(seen(times(1.2)), tail) == "better"
    assert reason(seen(times(1.2)), tail, rules=Rules(CLIPS, full)) == "not the same words as with the full context"
    assert reason(seen(times(1.2)), tail, rules=Rules(CLIPS)) == "not the same words as with the full context"


def test_another_tail_must_not_make_more_rows_fail() -> None:
    """Each of them is decoded again with the full context."""
    tail: Values = {"tail_s": 3.0}
    assert reason(seen(times(1.2), retried=2), tail, best=seen(retried=2)) == "better"
    assert reason(seen(times(1.2), retried=2), tail) == "2 rows decoded twice instead of 0"


def test_a_lost_round_settles_it() -> None:
    """The rounds that are left are not measured."""
    assert not is_beaten(seen((40.0, 40.0)), seen((41.0, 50.0)))
    assert is_beaten(seen((40.0, 40.0)), seen((41.0, 40.0)))


def test_candidates_leave_out_what_is_in_effect() -> None:
    """On two cores there is little to try of lanes and threads."""
    tried, skipped = candidates(CPU, START)
    assert [shown(changes) for changes in tried] == [
        "lanes=1 threads=2", "compute_type=float32", "compute_type=int8_bfloat16", "compute_type=bfloat16",
        "batch_rows=4", "batch_rows=16", "tail_s=4", "tail_s=3", "tail_s=2",
    ]  # fmt: skip
    assert skipped == []


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 6, 8, 64])
def test_lanes_and_threads_never_ask_for_more_than_the_cores(cores: int) -> None:
    """And all threads in one lane is always among them."""
    tried, _ = candidates(Host("cpu", cores, True), {})
    pairs = [(int(changes["lanes"]), int(changes["threads"])) for changes in tried if "lanes" in changes]
    assert (cores, 1) in pairs
    assert (1, cores) in pairs
    assert all(1 <= lanes * threads <= cores for lanes, threads in pairs)
    assert len(set(pairs)) == len(pairs) <= 9


def test_a_gpu_is_asked_for_its_own_types_and_batches() -> None:
    """Larger ones."""
    tried, _ = candidates(Host("cuda", 8, True), {"compute_type": "float16", "batch_rows": 32})
    assert {"compute_type": "int8_float16"} in tried
    assert {"batch_rows": 64} in tried
    assert all(changes.get("compute_type") != "int8" for changes in tried)


def test_what_cannot_be_judged_or_changed_is_left_alone() -> None:
    """With the reason: the environment's word, a tail that is known, a model that knows no English."""
    host = Host("cpu", 2, True, fixed={"threads": "WHISPERD_THREADS"}, can_judge_words=False)
    tried, skipped = candidates(host, START)
    assert {name for changes in tried for name in changes} == {"batch_rows"}
    reasons = dict(skipped)
    assert "WHISPERD_THREADS" in reasons["lanes"]
    assert "WHISPERD_THREADS" in reasons["threads"]
    assert "measured" in reasons["tail_s"]
    assert "English" in reasons["compute_type"]


def descend(start: Values, wanted: Sequence[Values], speed: Callable[[Values], float]) -> Search:
    """A whole search on a machine whose speed is a function of the settings."""
    search = Search(start, wanted)
    while (changes := search.next()) is not None:
        best = {**start, **search.changes}
        observed, tried = (seen(times(speed(values))) for values in (best, {**best, **changes}))
        search.settle(judge(changes, observed, tried, 0, RULES))
    return search


def test_settings_without_effect_gain_nothing() -> None:
    """Everything was tried, nothing is changed."""
    wanted, _ = candidates(CPU, START)
    search = descend(START, wanted, lambda _values: 1.0)
    assert search.changes == {}
    assert len(search.outcomes) == len(wanted)


def test_the_search_keeps_what_helps_and_goes_on_from_there() -> None:
    """Each candidate meets the best so far: what was better than the start alone is not enough."""
    speeds = {4: 1.2, 8: 1.0, 16: 1.1}
    wanted, _ = candidates(CPU, START)

    def speed(values: Values) -> float:
        return speeds[int(values["batch_rows"])] * (1.3 if values["compute_type"] == "float32" else 1)

    search = descend(START, wanted, speed)
    assert search.changes == {"compute_type": "float32", "batch_rows": 4}
    lost = next(outcome for outcome in search.outcomes if outcome.changes == {"batch_rows": 16})
    assert lost.ratio == pytest.approx(1.1 / 1.2)


def test_a_search_without_time_says_what_is_left() -> None:
    """And has nothing more to try. What was skipped is not left."""
    search = Search(START, [{"batch_rows": 4}, {"tail_s": 3.0}, {"batch_rows": 8}, {"batch_rows": 16}])
    search.settle(Outcome({"batch_rows": 4}, False, "slower", 0.9))
    search.skip()
    assert search.give_up() == [{"batch_rows": 16}]
    assert search.next() is None


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("please close the door", 0),
        ("Please, close the door!", 0),
        ("please close door", 1),
        ("please close the the door", 1),
        ("please shut the door", 1),
        ("", 4),
        ("ab12 0", 4),
    ],
)
def test_wrong_words_are_counted(text: str, wrong: int) -> None:
    """Changed, left out, put in; case and punctuation are free."""
    assert words_wrong(CLIPS[0].text, text) == wrong


def test_a_model_that_understands_nothing_cannot_be_judged() -> None:
    """Its words are all wrong, with any settings."""
    assert RULES.can_judge(RIGHT)
    assert not RULES.can_judge(frozenset({(0, "bitte schliessen sie die tur"), (1, "es regnet"), (2, "gute nacht")}))


def test_a_burst_is_a_few_clips_or_all_of_them_several_times() -> None:
    """At least one for every core, so that there is something to do; never endlessly many."""
    clips = packaged_clips()
    everything = tuple(range(len(clips)))
    assert burst_of(clips, 0.1, least=1) == (0, 1, 2, 3)
    assert burst_of(clips, 0.1, least=8) == everything[:8]
    assert 4 < len(burst_of(clips, 40.0, least=1)) < len(clips)
    assert burst_of(clips, 210.0, least=1) == everything * 2
    assert burst_of(clips, 0.1, least=30) == everything * 2
    assert len(burst_of(clips, 1e9, least=1)) == len(burst_of(clips, 1.0, least=10_000)) == 512


def test_batches_that_a_burst_cannot_fill_are_not_tried() -> None:
    """Sixteen rows for each of two lanes need 32 clips."""
    assert shows_nothing({"batch_rows": 16}, START, 31) == "a burst of 31 clips does not fill such batches"
    assert shows_nothing({"batch_rows": 16}, START, 32) is None
    assert shows_nothing({"batch_rows": 16}, {**START, "lanes": 1}, 16) is None
    assert shows_nothing({"compute_type": "float32"}, START, 4) is None


def test_the_packaged_speech_is_small_and_complete() -> None:
    """Every clip has its file, every file its text; from two to fifteen seconds; 600 kB in all."""
    clips = packaged_clips()
    assert {clip.file for clip in clips} == {path.name for path in SPEECH.glob("*.opus")}
    assert all(1.5 <= clip.seconds <= 15 for clip in clips)
    assert max(clip.seconds for clip in clips) > 12
    assert sum(path.stat().st_size for path in SPEECH.iterdir()) <= 600_000


def test_usual_rows_are_those_of_the_engine() -> None:
    """They are written down twice, because the engine's module is no pure one."""
    assert process._USUAL_ROWS == USUAL_ROWS
    assert ROUNDS >= 3

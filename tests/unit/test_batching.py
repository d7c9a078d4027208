"""What goes to the engine next: compatible, bounded, fair, by priority, and never nobody's turn for ever.

The engine is not here: `serve` hands out batches one after the other, as an engine with one lane would take them.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from house import make_job
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from whisperd.batching import Batcher, Bounds, compatibility_key, context_frames, may_hurry
from whisperd.cost import CPU, share_s
from whisperd.fairness import HEAD_START_S
from whisperd.jobs import Job, Window
from whisperd.messages import FRAMES_MAX, LONG_S, SAMPLE_RATE, DecodeOptions

LONG = (30.0,) * 24  # windows of a twelve-minute file
BOUNDS = Bounds(8, slow_s=2.0)  # two windows of a long file


class Line(Batcher):
    """One whose batches have always the same bounds."""

    def __init__(self, bounds: Bounds = BOUNDS) -> None:
        super().__init__()
        self.bounds = bounds

    def next_batch(self, bounds: Bounds | None = None) -> list[Window]:
        return super().next_batch(bounds or self.bounds)


def long_file(name: str = "long", **more: Any) -> Job:
    """Twelve minutes of speech."""
    return make_job(name, LONG, frames=FRAMES_MAX, **more)


def queue(line: Line, *jobs: Job) -> None:
    """Queues jobs one after the other."""
    for job in jobs:
        line.add(job.windows)


def serve(line: Line) -> Iterator[list[Window]]:
    """Batches until nothing waits."""
    while batch := line.next_batch():
        yield batch


def position(line: Line, job: Job, limit: int = 10_000, between: Callable[[int], None] | None = None) -> int:
    """The number of the batch, from 1, that has the first of the job's windows; `between` is called before each."""
    for number in range(1, limit + 1):
        if between:
            between(number)
        if any(window.job is job for window in line.next_batch()):
            return number
    raise AssertionError(f"not served within {limit} batches")


# -- contexts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "tail_s", "frames"),
    [
        *((3.0, None, 3000), (3.0, 6.0, 900), (4.0, 6.0, 1000), (4.01, 6.0, 1100), (7.99, 6.0, 1400)),
        *((8.0, 6.0, 1100), (23.9, 6.0, 2700), (30.0, 6.0, 3000)),
    ],
)
def test_contexts_are_rounded_up_to_buckets(seconds: float, tail_s: float | None, frames: int) -> None:
    """So that windows of like length share a batch; 30 s are the most there is."""
    assert context_frames(int(seconds * SAMPLE_RATE), tail_s) == frames


@given(st.integers(0, 30 * SAMPLE_RATE), st.floats(0.0, 10.0))
def test_a_context_holds_the_window_and_its_tail_and_is_no_trap(samples: int, tail_s: float) -> None:
    """Never less than asked for (up to 30 s in all), and never a number that CTranslate2 takes for encoder output."""
    frames = context_frames(samples, tail_s)
    seconds = samples / SAMPLE_RATE
    assert frames >= min(FRAMES_MAX, (seconds + (tail_s if seconds < LONG_S else tail_s / 2)) * 100) - 1e-6
    assert frames % 100 == 0
    assert frames <= FRAMES_MAX


# -- what a batch may hold ---------------------------------------------------------------------------------------


def test_a_batch_is_bounded_by_rows() -> None:
    """Decoding gains little beyond."""
    line = Line(Bounds(3))
    queue(line, *(make_job(str(n)) for n in range(7)))
    assert [len(batch) for batch in serve(line)] == [3, 3, 1]


def test_a_batch_is_bounded_by_seconds() -> None:
    """A batch cannot be interrupted, so long windows come in small ones."""
    line = Line(Bounds(8, slow_s=2.0))
    queue(line, long_file())
    assert [len(batch) for batch in serve(line)] == [2] * 12
    assert CPU.batch_s(long_file().windows[:2]) < 2.0 < CPU.batch_s(long_file().windows[:3])


def test_light_work_is_bounded_by_rows_alone_unless_it_is_bulk() -> None:
    """What is wanted soon comes out of the way fastest together."""
    for priority, rows in (("interactive", 8), ("normal", 8), ("bulk", 2)):
        line = Line(Bounds(8, slow_s=0.3))
        queue(line, *(make_job(str(n), priority=priority) for n in range(16)))
        assert len(line.next_batch()) == rows


def test_a_batch_of_long_windows_has_some_rows_however_dear_they_are() -> None:
    """Fewer are decoded badly, which helps nobody."""
    line = Line(Bounds(8, slow_s=0.1, slow_rows=4))
    queue(line, long_file())
    assert {len(batch) for batch in serve(line)} == {4}


def test_what_is_little_is_shared_out() -> None:
    """A lane takes the number of rows that comes nearest to its share, and at least one."""
    for share, rows in ((0.0, 1), (1.4, 1), (1.6, 2), (3.6, 4), (100.0, 8)):
        jobs = [make_job(str(n)) for n in range(8)]
        line = Line(Bounds(8, share_s=share * share_s(jobs[0].windows[0])))
        queue(line, *jobs)
        assert len(line.next_batch()) == rows


def test_light_jobs_share_no_batch_with_long_ones() -> None:
    """Also where their contexts are alike."""
    line = Line()
    queue(line, make_job("long", (3.0,) * 12), make_job("clip"))
    batches = [{w.job.id for w in batch} for batch in serve(line)]
    assert {"clip"} in batches
    assert {"long", "clip"} not in batches


def test_a_window_that_is_dearer_than_a_batch_goes_alone() -> None:
    """It could never go otherwise."""
    line = Line(Bounds(8, slow_s=0.1))
    queue(line, make_job("a", (30.0, 30.0), frames=FRAMES_MAX))
    assert [len(batch) for batch in serve(line)] == [1, 1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"options": DecodeOptions(beam_size=1)}),
        ({}, {"options": DecodeOptions(hotwords="whisper")}),
        ({}, {"options": DecodeOptions(tail_s=2.0)}),
        ({}, {"task": "detect"}),
        ({}, {"priority": "bulk"}),
        ({"priority": "interactive"}, {"priority": "bulk"}),
    ],
)
def test_windows_that_differ_in_their_key_never_share_a_batch(one: dict[str, Any], other: dict[str, Any]) -> None:
    """One call has one set of options, one kind of work; and urgent work is not slowed by company."""
    line = Line()
    queue(line, make_job("a", **one), make_job("b", **other))
    assert [len(batch) for batch in serve(line)] == [1, 1]


def test_neighbouring_contexts_share_a_batch_where_that_is_cheaper() -> None:
    """The longer context of all costs less than decoding them apart; and more, where the contexts are far apart."""
    line = Line()
    queue(line, make_job("a", (8.0,), frames=1100), make_job("b", (9.0,), frames=1200))
    queue(line, make_job("c", (2.0,), frames=500))
    assert [sorted(window.frames for window in batch) for batch in serve(line)] == [[1100, 1200], [500]]


def test_full_batches_are_made_of_like_contexts() -> None:
    """Where enough of them wait there is nothing to gain by longer contexts."""
    line = Line(Bounds(4, slow_rows=4))
    jobs = [make_job(str(n), (8.0,), frames=(1100, 1600)[n % 2]) for n in range(16)]
    queue(line, *jobs)
    assert all(len({window.frames for window in batch}) == 1 and len(batch) == 4 for batch in serve(line))


@pytest.mark.parametrize(("frames", "rows"), [(600, 8), (1000, 8), (1400, 5), (2000, 4), (3000, 4)])
def test_long_contexts_come_in_smaller_batches(frames: int, rows: int) -> None:
    """Memory is bounded by rows times context, but fewer than slow_rows rows decode badly."""
    assert Bounds(8, slow_rows=4).rows_of(frames) == rows
    line = Line(Bounds(8, slow_rows=4))
    queue(line, *(make_job(str(n), (2.0,), frames=frames) for n in range(8)))
    assert len(next(iter(serve(line)))) == rows


def test_windows_of_different_jobs_clients_and_tasks_share_a_batch() -> None:
    """Language and translation are each row's own."""
    line = Line()
    queue(line, make_job("a", client="x"), make_job("b", client="y"), make_job("c", task="translate"))
    assert [len(batch) for batch in serve(line)] == [3]


def test_windows_of_one_job_go_in_their_order() -> None:
    """The beginning of a long file is told first."""
    line = Line()
    queue(line, long_file())
    assert [w.index for batch in serve(line) for w in batch] == list(range(24))


# -- fairness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("served", [0, 1, 2, 5, 11])
@pytest.mark.parametrize("client", ["same", "other"])
def test_a_short_clip_beside_a_long_file_is_in_one_of_the_next_two_batches(served: int, client: str) -> None:
    """Whenever it arrives, and whether the file is its own client's or another's."""
    line = Line()
    queue(line, long_file(client="same"))
    for _ in range(served):
        line.next_batch()
    clip = make_job("clip", client=client)
    line.add(clip.windows)
    assert position(line, clip) <= 2


def test_a_short_clip_beside_many_long_files_does_not_wait_for_each() -> None:
    """Ten files of ten clients, all begun: the clip is at most a batch of two behind."""
    line = Line()
    queue(line, *(long_file(f"long {n}", client=n) for n in range(10)))
    for _ in range(30):
        line.next_batch()
    clip = make_job("clip", client="clip")
    line.add(clip.windows)
    assert position(line, clip) <= 2


def test_a_thousand_clips_of_one_client_delay_another_s_single_clip_by_two_batches_at_most() -> None:
    """At any moment of the work on them."""
    for served in (0, 1, 10, 60):
        line = Line()
        queue(line, *(make_job(str(n), client="greedy") for n in range(1000)))
        for _ in range(served):
            line.next_batch()
        clip = make_job("clip", client="modest", options=DecodeOptions(beam_size=1))  # shares no batch with them
        line.add(clip.windows)
        assert position(line, clip) <= 2


def test_two_clients_with_much_to_do_get_equal_shares() -> None:
    """Whoever came first."""
    line = Line()
    queue(line, *(make_job(f"a{n}", client="a") for n in range(300)))
    queue(line, *(make_job(f"b{n}", client="b", options=DecodeOptions(beam_size=1)) for n in range(300)))
    served = Counter(line.next_batch()[0].job.client for _ in range(40))
    assert abs(served["a"] - served["b"]) <= 2


def test_a_client_that_was_alone_before_is_not_punished_for_it() -> None:
    """Five hundred clips were served while nobody else wanted anything: from now on the shares are equal."""
    line = Line()
    queue(line, *(make_job(f"a{n}", client="a") for n in range(600)))
    while len(line) > 100:
        line.next_batch()
    queue(line, *(make_job(f"b{n}", client="b", options=DecodeOptions(beam_size=1)) for n in range(100)))
    served = Counter(line.next_batch()[0].job.client for _ in range(20))
    assert abs(served["a"] - served["b"]) <= 2


def test_a_file_that_was_alone_before_is_not_punished_for_it() -> None:
    """Twelve minutes of it were served alone: another client's file gets half of what follows, not all."""
    line = Line()
    line.add(make_job("a", LONG * 2, frames=FRAMES_MAX, client="a").windows)
    for _ in range(12):
        line.next_batch()
    line.add(make_job("b", LONG * 2, frames=FRAMES_MAX, client="b").windows)
    served = Counter(window.job.id for _ in range(6) for window in line.next_batch())
    assert abs(served["a"] - served["b"]) <= 4


def test_a_long_file_goes_on_in_its_turn_when_its_later_windows_come_later() -> None:
    """They wait for the language of the first; the client's other clips, queued meanwhile, do not all go before."""
    line = Line()
    long, clips = long_file(client="a"), [make_job(str(n), client="a") for n in range(200)]
    queue(line, *clips[:5])
    line.add(long.windows[:1])
    queue(line, *clips[5:])
    while any(window.queued for window in long.windows):
        line.next_batch()
    line.add(long.windows[1:])
    assert position(line, long) <= 3


def test_cancelled_clips_do_not_count_against_their_client() -> None:
    """A thousand were queued and cancelled: the next one goes as if they had never been."""
    line = Line()
    long = long_file(client="other")
    line.add(long.windows)
    jobs = [make_job(str(n), client="a") for n in range(1000)]
    queue(line, *jobs)
    for job in jobs:
        line.discard(job)
    clip = make_job("clip", client="a")
    line.add(clip.windows)
    assert position(line, clip) <= 2


# -- priority ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["same", "other"])
def test_classes_go_in_their_order_whoever_queued_them(client: str) -> None:
    """Interactive before normal before bulk, also where all are one client's and the bulk was first."""
    line = Line()
    queue(line, *(make_job(f"bulk {n}", client="same", priority="bulk") for n in range(500)))
    queue(line, *(make_job(f"normal {n}", client="same") for n in range(50)))
    queue(line, make_job("plain", client=client), make_job("urgent", client=client, priority="interactive"))
    classes = [batch[0].job.work.priority for batch in serve(line)]
    assert classes == ["interactive"] + ["normal"] * 7 + ["bulk"] * 63


def test_an_interactive_clip_overtakes_what_is_queued_at_any_time() -> None:
    """In the next batch, whatever is being worked on."""
    for other in ("normal", "bulk"):
        line = Line()
        queue(line, *(long_file(f"long {n}", client=n, priority=other) for n in range(5)))
        for _ in range(7):
            line.next_batch()
        clip = make_job("clip", client=0, priority="interactive")
        line.add(clip.windows)
        assert position(line, clip) == 1


BULK_LAG_S = HEAD_START_S["interactive"] - HEAD_START_S["bulk"]
CLIP_S = share_s(make_job().windows[0])


def endless(line: Line, priority: str, at_once: int, frames: int = 1000) -> Callable[[int], None]:
    """Before every batch, tops the line up with so many jobs of new clients, each a client that comes and goes."""
    waiting: list[Job] = []

    def top_up(number: int) -> None:
        for job in [job for job in waiting if not job.windows[0].queued]:
            waiting.remove(job)
            line.discard(job)  # it is over
        while len(waiting) < at_once:
            job = make_job(f"{number}", client=object(), priority=priority, frames=frames)
            waiting.append(job)
            line.add(job.windows)

    return top_up


@pytest.mark.parametrize("at_once", [1, 3, 8])
@pytest.mark.parametrize("bulk_jobs", [1, 500])
def test_bulk_gets_out_under_endless_interactive_load(at_once: int, bulk_jobs: int) -> None:
    """Each batch moves virtual time by its seconds shared among the competitors, so that bulk waits for the head
    starts' difference times the competitors, in batches of so many seconds; however much bulk there is."""
    line = Line()
    bulk = [make_job(f"bulk {n}", client="archive", priority="bulk", frames=1200) for n in range(bulk_jobs)]
    queue(line, *bulk)
    batch_s = CLIP_S * min(at_once, 8)
    bound = int(BULK_LAG_S * (at_once + 1) / batch_s) + 2
    assert position(line, bulk[0], bound, endless(line, "interactive", at_once)) > 1


@pytest.mark.parametrize("priority", ["interactive", "normal"])
def test_bulk_goes_on_getting_its_share_under_endless_load(priority: str) -> None:
    """Not only once: in the long run a waiting archive gets about as much as each of those who come and go."""
    line = Line()
    queue(line, *(make_job(f"bulk {n}", client="archive", priority="bulk", frames=1200) for n in range(500)))
    more, served = endless(line, priority, 2), Counter()
    for number in range(600):
        more(number)
        served[line.next_batch()[0].job.work.priority] += 1
    assert served["bulk"] >= 60


def test_normal_gets_out_under_endless_interactive_load_of_one_client() -> None:
    """That client's own chain of tags runs ahead of the head start after so much of its work."""
    line = Line()
    plain = make_job("plain", client="a", frames=1200)
    line.add(plain.windows)

    def more(number: int) -> None:
        for extra in range(6 - (len(line) - 1)):
            line.add(make_job(f"{number} {extra}", client="b", priority="interactive").windows)

    assert position(line, plain, 10, more) <= int(HEAD_START_S["interactive"] / (6 * CLIP_S)) + 2


def test_every_window_waits_for_a_bounded_time_under_any_mixture() -> None:
    """The oldest window of a heavy mixture is out within the bound for all classes together."""
    line = Line()
    archive = [long_file(f"archive {n}", client="archive", priority="bulk") for n in range(40)]
    talks = [long_file(f"talk {n}", client=n) for n in range(4)]
    queue(line, *archive, *talks)
    more = [endless(line, "interactive", 2), endless(line, "normal", 2, frames=1400)]

    def top_up(number: int) -> None:
        for each in more:
            each(number)

    # lines: the archive, four talks, two and two clients; begun: four talks and what of the archive was begun
    assert position(line, archive[0], int(BULK_LAG_S * 13 / (2 * CLIP_S)), top_up) > 1


# -- leaving -----------------------------------------------------------------------------------------------------


def test_discarded_windows_never_come_out() -> None:
    """Those that were handed out already are not touched."""
    line = Line()
    long, clip = long_file(), make_job("clip")
    queue(line, long, clip)
    first = line.next_batch()
    line.discard(long)
    assert len(line) == 1
    assert [w.job for batch in serve(line) for w in batch] == [clip]
    assert not line
    assert all(not window.queued for window in [*first, *long.windows])


def test_discarding_twice_or_nothing_does_nothing() -> None:
    """A job that is over may be discarded by whoever notices."""
    line = Line()
    long, clip, stranger = long_file(), make_job("clip"), make_job("stranger")
    queue(line, long, clip)
    for job in (long, long, stranger, make_job("empty", ())):
        line.discard(job)
    assert len(line) == 1


def test_suspects_go_first_and_one_at_a_time() -> None:
    """They must run alone; until then nothing else should be handed out."""
    line = Line()
    one, two = make_job("one", (3.0, 3.0)), make_job("two")
    queue(line, one, two)
    batch = line.next_batch()
    assert len(batch) == 3
    assert not line.suspect_waits()
    for window in batch[:2]:
        line.add_suspect(window)
    assert line.suspect_waits()
    assert len(line) == 2
    assert line.next_batch() == []
    assert [line.next_suspect(), line.next_suspect()] == batch[:2]
    assert not line.suspect_waits()
    assert not line


def test_discarded_suspects_are_forgotten() -> None:
    """Their job is over, so nobody wants them."""
    line = Line()
    one, two = make_job("one"), make_job("two")
    queue(line, one, two)
    for window in line.next_batch():
        line.add_suspect(window)
    line.discard(one)
    assert line.suspect_waits()
    assert line.next_suspect().job is two
    assert not line.suspect_waits()


def test_a_suspect_does_not_come_out_of_the_ordinary_line_as_well() -> None:
    """It left an entry there when it went out as company of another."""
    line = Line(Bounds(2))
    jobs = [make_job(str(n)) for n in range(3)]
    queue(line, *jobs)
    for window in line.next_batch():
        line.add_suspect(window)
    assert [w.job for w in line.next_batch()] == jobs[2:]
    assert line.next_batch() == []
    assert len(line) == 2


def test_there_is_work_as_long_as_something_waits() -> None:
    """An engine is never left idle beside a line."""
    line = Line()
    queue(line, *(make_job(str(n), (3.0,) * (n % 4 + 1), frames=1000 + 200 * (n % 3)) for n in range(50)))
    while line:
        assert line.next_batch()
    assert len(line) == 0


class AnyUse(RuleBasedStateMachine):
    """Jobs come, are served, die with the engine, and are cancelled, in any order."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.line = Line(Bounds(4, slow_s=1.0))
        self.waiting: set[Window] = set()
        self.suspects: list[Window] = []
        self.out: list[list[Window]] = []
        self.over: set[Job] = set()
        self.numbers = 0

    @rule(
        target=jobs,
        client=st.sampled_from("abc"),
        priority=st.sampled_from(sorted(HEAD_START_S)),
        frames=st.sampled_from([1000, 3000]),
        beam=st.sampled_from([1, 5]),
        windows=st.integers(1, 6),
        at_once=st.booleans(),
    )
    def come(self, client: str, priority: str, frames: int, beam: int, windows: int, at_once: bool) -> Job:
        """A job is queued, or only its first window."""
        self.numbers += 1
        job = make_job(
            f"j{self.numbers}",
            (3.0,) * windows,
            client=client,
            priority=priority,
            frames=frames,
            options=DecodeOptions(beam_size=beam),
        )
        first = job.windows if at_once else job.windows[:1]
        self.line.add(first)
        self.waiting |= set(first)
        return job

    @rule(job=jobs)
    def rest_comes(self, job: Job) -> None:
        """The first window's language is known: the others are queued."""
        if job in self.over or len(job.windows) == 1 or any(w is not job.windows[0] for w in self._seen(job)):
            return
        self.line.add(job.windows[1:])
        self.waiting |= set(job.windows[1:])

    def _seen(self, job: Job) -> list[Window]:
        known = [*self.waiting, *self.suspects, *(w for batch in self.out for w in batch)]
        return [window for window in known if window.job is job]

    @rule()
    def serve(self) -> None:
        """A batch goes out: all of it was waiting, and it keeps the limits."""
        batch = self.line.next_batch()
        assert bool(batch) == bool(self.waiting)
        assert len(batch) <= 4
        assert len(set(batch)) == len(batch)
        assert len(batch) <= 1 or may_hurry(batch[0]) or CPU.batch_s(batch) <= 1.0
        assert len({compatibility_key(window) for window in batch}) <= 1
        assert set(batch) <= self.waiting
        self.waiting -= set(batch)
        if batch:
            self.out.append(batch)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 100))
    def die(self, which: int) -> None:
        """The engine died with a batch: those of its windows that are still wanted go back, as suspects."""
        for window in self.out.pop(which % len(self.out)):
            if window.job not in self.over:
                self.line.add_suspect(window)
                self.suspects.append(window)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 100))
    def come_back(self, which: int) -> None:
        """The batch could not be sent: what is still wanted waits again, as it was."""
        for window in self.out.pop(which % len(self.out)):
            if window.job in self.over:
                continue
            if window.suspect:
                self.line.add_suspect(window)
                self.suspects.append(window)
            else:
                self.line.add([window])
                self.waiting.add(window)

    @rule()
    def serve_suspect(self) -> None:
        """In the order in which they came back."""
        assert self.line.suspect_waits() == bool(self.suspects)
        if self.suspects:
            window = self.line.next_suspect()
            assert window is self.suspects.pop(0)
            self.out.append([window])

    @rule(job=consumes(jobs))
    def cancel(self, job: Job) -> None:
        """Nothing of it comes out any more."""
        self.line.discard(job)
        self.over.add(job)
        self.waiting = {window for window in self.waiting if window.job is not job}
        self.suspects = [window for window in self.suspects if window.job is not job]

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        """The line knows exactly what waits."""
        assert len(self.line) == len(self.waiting) + len(self.suspects)
        assert bool(self.line) == bool(self.waiting or self.suspects)
        for window in self.waiting:
            assert window.queued


AnyUse.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestAnyUse = AnyUse.TestCase


# -- cost and memory ---------------------------------------------------------------------------------------------


def calls_of(work: Callable[[], object]) -> int:
    """How many functions are called, ours and the interpreter's: what grows if something is searched through."""
    count = 0

    def tick(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()
    sys.setprofile(tick)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def calls_with(waiting: int) -> dict[str, float]:
    """The calls of one operation of each kind beside so many waiting windows."""
    line = Line()
    queue(line, *(make_job(str(n), client=n % 50, frames=1000 + 200 * (n % 5)) for n in range(waiting)))
    long = long_file()
    return {
        "add": calls_of(lambda: line.add(long.windows)),
        "next_batch": sum(calls_of(line.next_batch) for _ in range(20)) / 20,
        "discard": calls_of(lambda: line.discard(long)),
    }


def test_the_cost_of_an_operation_does_not_grow_with_what_waits() -> None:
    """Beside ten thousand windows it takes as many calls as beside a hundred."""
    few, many = calls_with(100), calls_with(10_000)
    for operation, calls in few.items():
        assert many[operation] <= calls * 1.3 + 10, operation


def test_nothing_is_remembered_when_nothing_waits() -> None:
    """Jobs hold audio and connections; an empty line holds none of them."""
    line = Line()
    jobs = [make_job(str(n), (3.0,) * (n % 3 + 1), client=object()) for n in range(50)]
    queue(line, *jobs)
    for job in jobs[::4]:
        line.discard(job)
    for _ in serve(line):
        continue
    for part in (line, line.turns):
        ignored = {"bounds", "turns", "left", "_sequence"}  # numbers and parts of their own
        kept = {name: value for name, value in vars(part).items() if name not in ignored}
        assert not any(kept.values()), kept
    assert not line.turns


def held(line: Line) -> int:
    """Everything that a line remembers."""
    parts = [*vars(line).values(), *vars(line.turns).values()]
    return sum(len(value) for value in parts if isinstance(value, list | dict | set))


def test_cancelled_jobs_do_not_pile_up_under_endless_load() -> None:
    """A client that sends and cancels all day while the line is never empty, each time with another prompt."""
    line = Line()
    queue(line, *(make_job(str(n), client="busy") for n in range(100)))
    for number in range(20_000):
        job = make_job(str(number), client="fickle", options=DecodeOptions(initial_prompt=str(number)))
        line.add(job.windows)
        line.discard(job)
    assert held(line) < 2000


def test_clients_that_come_and_go_are_forgotten() -> None:
    """Also while something always waits."""
    line = Line()
    line.add(long_file("forever", client="forever", priority="bulk").windows)
    more = endless(line, "normal", 4)
    for number in range(6000):
        more(number)
        line.next_batch()
        if len(line) < 10:
            line.add(long_file(f"forever {number}", client="forever", priority="bulk").windows)
    assert held(line) < 5000

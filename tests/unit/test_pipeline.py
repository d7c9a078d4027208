"""The path of a job through a whole service with fake media and engines: one reply, the right one, whatever happens."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from house import Client, House, Json, as_data, audio, run, settle
from jsonschema import Draft202012Validator

from whisperd.errors import KINDS, WhisperdError
from whisperd.inference.process import BatchFailed, ModelTraits
from whisperd.jobs import Window
from whisperd.media.pool import Prepared
from whisperd.messages import DecodeOptions, RowOptions, Segment, WindowResult
from whisperd.protocol import find_method
from whisperd.tails import CAUTIOUS_S
from whisperd.testing import FakeEngine, FakeMedia, digest_of
from whisperd.worker import WorkerLost


def conforms(method: str, result: Json) -> Json:
    """The result, which matches the contract's schema."""
    Draft202012Validator(find_method(method).result_schema).validate(result)
    return result


def memory_files() -> int:
    """How many memory files this process holds."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.append(entry.readlink().name)
        except FileNotFoundError:  # the descriptor that lists the folder
            continue
    return sum("memfd:" in link for link in links)


class Linguist(FakeEngine):
    """Hears French in whatever it is not told the language of; notes what it was told."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.told: list[tuple[int, str | None]] = []

    async def submit(self, windows: Sequence[Window]) -> list[WindowResult]:
        known = [window.job.work.row.language or window.job.language for window in windows]
        self.told += [(window.index, language) for window, language in zip(windows, known, strict=True)]
        results = await super().submit(windows)
        return [
            WindowResult(result.segments, language or "fr", 0.75)
            for result, language in zip(results, known, strict=True)
        ]


class EnglishOnly(FakeEngine):
    """A model like tiny.en."""

    def start(self) -> None:
        self.traits = ModelTraits(multilingual=False, languages=frozenset({"en"}))
        self.changed()


class Killer(FakeEngine):
    """Dies of every input that begins with DEADLY."""

    deaths = 0

    async def submit(self, windows: Sequence[Window]) -> list[WindowResult]:
        results = await super().submit(windows)
        for window in windows:
            samples = window.job.samples
            if samples and os.pread(samples.fd, 6, 0) == b"DEADLY":
                self.deaths += 1
                raise WorkerLost("SIGSEGV")
        return results


class FragileMedia(FakeMedia):
    """Media workers that die as often as they are told to."""

    def __init__(self, deaths: int) -> None:
        super().__init__()
        self.deaths = deaths
        self.prepared = 0

    async def prepare(self, *given: Any) -> Prepared:
        prepared = await super().prepare(*given)
        self.prepared += 1
        if self.deaths:
            self.deaths -= 1
            if prepared.samples:
                prepared.samples.close()
            raise WorkerLost("SIGKILL")
        return prepared


# -- the plain path ----------------------------------------------------------------------------------------------


def test_a_request_gets_the_text_of_its_own_audio() -> None:
    """In a result that has every field of the contract."""

    async def test() -> None:
        async with House() as house:
            client, content = house.client(), audio(2.5, "hello")
            result = conforms("transcribe", await client.result(client.transcribe(content)))
            digest = digest_of(content)
            assert result["text"] == f"{digest} 0 {digest} 1 {digest} 2"
            assert (result["duration_s"], result["windows"], result["model"]) == (2.5, 3, "fake")
            assert [(s["start"], s["end"]) for s in result["segments"]] == [(0.0, 1.0), (1.0, 2.0), (2.0, 2.5)]
            house.in_order()

    run(test)


def test_many_requests_at_once_get_each_their_own_text() -> None:
    """They share batches, and nothing else."""

    async def test() -> None:
        async with House(window_s=30.0) as house:
            engine = await house.loaded()
            engine.gate.clear()
            client = house.client()
            contents = {client.transcribe(audio(1.0, f"clip {n}")): f"clip {n}" for n in range(40)}
            await settle(100)
            engine.gate.set()
            for id, mark in contents.items():
                assert (await client.result(id))["text"] == f"{digest_of(audio(1.0, mark))} 0"
            assert max(len(batch) for batch in engine.batches) == 8
            assert len(client.replies) == 40
            house.in_order()

    run(test)


def test_audio_comes_by_path_data_and_descriptor(tmp_path: Path) -> None:
    """All three give the same text; the client's descriptor is closed and its file is not touched."""

    async def test() -> None:
        async with House() as house:
            content = audio(1.0, "same")
            file = tmp_path / "clip.flac"
            file.write_bytes(content)
            client = house.client()
            fd = os.open(file, os.O_RDONLY)
            ids = [
                client.send("transcribe", audio={"path": str(file)}),
                client.transcribe(content),
                client.send("transcribe", audio={"fd": 0}, fds=[fd]),
            ]
            assert {(await client.result(id))["text"] for id in ids} == {f"{digest_of(content)} 0"}
            assert not Path(f"/proc/self/fd/{fd}").exists()
            house.in_order()

    run(test)


def test_audio_without_speech_is_answered_without_the_engine() -> None:
    """With an empty text; with `vad` false it is looked at all the same."""

    async def test() -> None:
        async with House() as house:
            client = house.client()
            result = conforms("transcribe", await client.result(client.transcribe(audio(2.0, "SILENCE"))))
            assert (result["text"], result["segments"], result["language"], result["windows"]) == ("", [], None, 0)
            assert (result["duration_s"], result["speech_s"]) == (2.0, 0.0)
            assert len(house.engine.batches) == 0
            assert (await client.result(client.transcribe(audio(2.0, "SILENCE"), vad=False)))["windows"] == 2
            house.in_order()

    run(test)


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({"audio": {"path": "/nowhere/at/all.wav"}}, "audio_not_found"),
        ({"audio": {"path": "/"}}, "audio_unreadable"),
        ({"audio": {"path": "relative.wav"}}, "invalid_params"),
        ({"audio": as_data(b"BAD")}, "audio_unreadable"),
        ({"audio": {"data": ""}}, "audio_unreadable"),
        ({"audio": {"data": "?"}}, "invalid_params"),
        ({"audio": {"fd": 0}}, "invalid_params"),
        ({"audio": as_data(audio(61.0))}, "audio_too_long"),
        ({"audio": as_data(audio()), "language": "xx"}, "unsupported_language"),
        ({"audio": as_data(audio()), "model": "no-such-model"}, "model_not_found"),
    ],
)
def test_what_is_wrong_with_a_request_is_its_reply(params: Json, kind: str) -> None:
    """One error of the right kind with its id, and the neighbour gets its text."""

    def make(name: str) -> FakeEngine:
        if name != "fake":
            raise WhisperdError("model_not_found", f"there is no model {name!r}")
        return FakeEngine(name)

    async def test() -> None:
        async with House(make, max_audio_s=60.0) as house:
            client = house.client()
            bad, good = client.send("transcribe", **params), client.transcribe()
            assert (await client.error(bad))["kind"] == kind
            await client.result(good)
            assert len(client.replies) == 2
            house.in_order()

    run(test)


def test_nothing_is_left_open_after_any_end() -> None:
    """Done, failed, cancelled, or with the client gone: inputs and samples are closed."""

    async def test() -> None:
        async with House() as house:
            engine, before = await house.loaded(), memory_files()
            client, other = house.client(), house.client()
            for content in (audio(), b"BAD", audio(1.0, "SILENCE")):
                await client.reply(client.transcribe(content))
            engine.gate.clear()
            ids = [client.transcribe(audio(3.0)) for _ in range(5)]
            other.transcribe()
            await settle()
            assert memory_files() > before
            for id in ids:
                assert await client.call("cancel", id=id) == {"cancelled": True}
            other.session.lost()
            engine.gate.set()
            await settle()
            assert memory_files() == before
            house.in_order()

    run(test)


# -- options -----------------------------------------------------------------------------------------------------


def test_no_state_passes_from_one_request_to_the_next() -> None:
    """After a request with every option set, one without any has the defaults, and the same text as before it."""

    async def test() -> None:
        async with House() as house:
            client, content = house.client(), audio(1.0, "again")
            first = await client.result(client.transcribe(content))
            loud: Json = {
                "language": "de",
                "task": "translate",
                "timestamps": "word",
                "beam_size": 1,
                "temperature": [0.4, 0.8],
                "initial_prompt": "Names: Ada.",
                "hotwords": "whisperd",
                "suppress_tokens": [1, 2],
                "no_speech_threshold": None,
                "log_prob_threshold": -0.5,
                "compression_ratio_threshold": 1.5,
                "encoder_context": "full",
                "priority": "interactive",
                "vad": False,
                "render": ["srt"],
                "progress": True,
            }
            await client.result(client.transcribe(content, **loud))
            work = house.engine.batches[-1][0].job.work
            assert work.options == DecodeOptions(
                timestamps=True,
                beam_size=1,
                temperatures=(0.4, 0.8),
                initial_prompt="Names: Ada.",
                hotwords="whisperd",
                suppress_tokens=(1, 2),
                no_speech_threshold=None,
                log_prob_threshold=-0.5,
                compression_ratio_threshold=1.5,
                tail_s=None,
            )
            assert work.row == RowOptions(language="de", task="translate", words=True)
            assert (work.priority, work.vad, work.render, work.progress) == ("interactive", False, ("srt",), True)
            told = len(client.link.messages)
            third = await client.result(client.transcribe(content))
            work = house.engine.batches[-1][0].job.work
            assert work.options == DecodeOptions(tail_s=CAUTIOUS_S)
            assert work.row == RowOptions()
            assert len(client.link.messages) == told + 1
            varying = {"job", "timing", "rtf"}
            assert {k: v for k, v in third.items() if k not in varying} == {
                k: v for k, v in first.items() if k not in varying
            }

    run(test)


def test_nulls_mean_the_default() -> None:
    """For what the contract lets be null."""

    async def test() -> None:
        async with House() as house:
            client = house.client()
            await client.result(
                client.transcribe(model=None, language=None, initial_prompt=None, hotwords=None, temperature=0)
            )
            work = house.engine.batches[-1][0].job.work
            assert (work.model, work.row, work.options.temperatures) == ("fake", RowOptions(), (0.0,))

    run(test)


def test_word_times_are_absolute_and_without_times_there_is_one_segment_a_window() -> None:
    """As the contract has it."""

    async def test() -> None:
        async with House() as house:
            client = house.client()
            words = conforms("transcribe", await client.result(client.transcribe(audio(2.0), timestamps="word")))
            assert [w["start"] for s in words["segments"] for w in s["words"]] == [0.0, 0.5, 1.0, 1.5]
            await client.result(client.transcribe(audio(2.0), timestamps="none"))
            assert house.engine.batches[-1][0].job.work.options.timestamps is False

    run(test)


def test_rendered_documents_come_with_the_result() -> None:
    """Each format that was asked for, also where nobody spoke."""

    async def test() -> None:
        async with House() as house:
            client, formats = house.client(), ["txt", "srt", "vtt", "tsv", "lrc"]
            result = conforms("transcribe", await client.result(client.transcribe(audio(2.0), render=formats)))
            assert set(result["rendered"]) == set(formats)
            assert result["text"].split()[0] in result["rendered"]["srt"]
            silent = await client.result(client.transcribe(audio(1.0, "SILENCE"), render=["vtt"]))
            assert silent["rendered"]["vtt"].startswith("WEBVTT")
            house.in_order()

    run(test)


def test_a_job_can_be_cancelled_while_it_is_rendered() -> None:
    """It has one reply, and it is that."""

    async def test() -> None:
        async with House() as house:
            client = house.client()
            ids = [client.transcribe(audio(2.0), render=["srt"]) for _ in range(10)]
            while not any(job.finished == 2 for job in house.service.jobs.values()):
                await settle(1)
            for id in ids:
                client.notify("cancel", id=id)
            await settle()
            assert [reply["id"] for reply in client.replies] == ids
            house.in_order()

    run(test)


# -- language ----------------------------------------------------------------------------------------------------


def test_later_windows_wait_for_the_first_one_s_language_and_get_it() -> None:
    """The language of long audio is that of its beginning, so nothing else is handed out before it is known."""

    async def test() -> None:
        async with House(Linguist) as house:
            engine = await house.loaded()
            assert isinstance(engine, Linguist)
            engine.gate.clear()
            client = house.client()
            id = client.transcribe(audio(5.0))
            await settle()
            assert engine.told == [(0, None)]
            engine.gate.set()
            result = await client.result(id)
            assert engine.told == [(0, None), *((n, "fr") for n in range(1, 5))]
            assert (result["language"], result["language_probability"], result["windows"]) == ("fr", 0.75, 5)

    run(test)


def test_windows_with_a_given_language_do_not_wait() -> None:
    """They are shared out among the lanes at once."""

    async def test() -> None:
        async with House(Linguist) as house:
            client = house.client()
            result = await client.result(client.transcribe(audio(5.0), language="de"))
            assert (result["language"], result["language_probability"]) == ("de", None)
            assert [len(batch) for batch in house.engine.batches] == [3, 2]

    run(test)


def test_a_model_for_english_only_does_not_look_for_the_language() -> None:
    """It is English, surely, and the windows do not wait."""

    async def test() -> None:
        async with House(EnglishOnly) as house:
            client = house.client()
            result = conforms("transcribe", await client.result(client.transcribe(audio(3.0))))
            assert (result["language"], result["language_probability"]) == ("en", 1.0)
            assert [len(batch) for batch in house.engine.batches] == [2, 1]
            other = await client.error(client.transcribe(language="de"))
            assert (other["kind"], other["language"]) == ("unsupported_language", "de")
            translate = await client.error(client.transcribe(task="translate"))
            assert (translate["kind"], translate["pointer"]) == ("invalid_params", "/task")
            assert (await client.result(client.transcribe(language="en")))["language"] == "en"

    run(test)


def test_language_detection_looks_at_one_window() -> None:
    """However long the audio; and without speech it names none."""

    async def test() -> None:
        async with House() as house:
            client = house.client()
            result = conforms("detect_language", await client.call("detect_language", audio=as_data(audio(9.0))))
            assert (result["language"], result["probability"]) == ("en", 0.9)
            assert [len(batch) for batch in house.engine.batches] == [1]
            silent = await client.call("detect_language", audio=as_data(audio(2.0, "SILENCE")))
            assert (silent["language"], silent["languages"]) == (None, [])
            house.in_order()

    run(test)


# -- progress ----------------------------------------------------------------------------------------------------


class Shuffled(FakeEngine):
    """One window to a batch, and the later batches land first."""

    async def submit(self, windows: Sequence[Window]) -> list[WindowResult]:
        turns = 12 - 2 * windows[0].index
        results = await super().submit(windows)
        await settle(turns)
        return results


def test_progress_comes_in_the_order_of_the_audio_and_before_the_reply() -> None:
    """Whatever the order in which the windows are done; each segment once, as it will be in the result."""

    async def test() -> None:
        async with House(lambda name: Shuffled(name, lanes=8), batch_rows=1) as house:
            client = house.client()
            result = await client.result(client.transcribe(audio(5.0), "mine", language="en", progress=True))
            segments = client.notifications("transcribe.segment")
            assert [told["index"] for told in segments] == [0, 1, 2, 3, 4]
            assert [told["segment"] for told in segments] == result["segments"]
            assert all(told["final"] and told["id"] == "mine" and told["job"] == result["job"] for told in segments)
            progress = [told["done_s"] for told in client.notifications("transcribe.progress")]
            assert progress == [1.0, 2.0, 3.0, 4.0, 5.0]
            assert {told["total_s"] for told in client.notifications("transcribe.progress")} == {5.0}
            assert client.link.messages[-1]["id"] == "mine"

    run(test)


def test_progress_is_told_only_to_who_asked_and_not_to_a_slow_reader() -> None:
    """What was left out is counted, the reply is whole."""

    async def test() -> None:
        async with House() as house:
            quiet, slow = house.client(), house.client()
            slow.link.unread = 2 << 20
            result = await quiet.result(quiet.transcribe(audio(3.0)))
            assert len(quiet.link.messages) == 1
            assert len((await slow.result(slow.transcribe(audio(3.0), progress=True)))["segments"]) == 3
            assert len(slow.link.messages) == 1
            assert house.service.metrics.counters.notifications_dropped >= 3
            assert result["windows"] == 3

    run(test)


# -- deadlines ---------------------------------------------------------------------------------------------------


def test_work_that_has_not_begun_by_its_deadline_is_dropped() -> None:
    """While its neighbours without one wait on."""

    async def test() -> None:
        async with House() as house:
            engine = await house.loaded()
            engine.gate.clear()
            client = house.client()
            busy = [client.transcribe(audio(1.0, str(n)), temperature=n / 10) for n in range(2)]
            await settle(50)
            late, patient = client.transcribe(deadline_ms=1), client.transcribe()
            error = await client.error(late)
            assert (error["kind"], error["retryable"]) == ("deadline_exceeded", True)
            engine.gate.set()
            for id in [*busy, patient]:
                await client.result(id)
            assert all(window.job.request_id != late for batch in engine.batches for window in batch)
            house.in_order()

    run(test)


def test_work_that_the_engine_has_in_hand_is_not_cut_short_by_its_deadline() -> None:
    """It would be thrown away for nothing."""

    async def test() -> None:
        async with House() as house:
            engine = await house.loaded()
            engine.gate.clear()
            client = house.client()
            begun = client.transcribe(deadline_ms=150)
            while not engine.in_flight():
                await settle(1)
            late = client.transcribe(audio(1.0, "other"), deadline_ms=160, beam_size=1)
            later = client.transcribe(audio(3.0), deadline_ms=170)  # its first window waits in vain as well
            engine.lanes = 1
            await client.reply(late)
            await client.reply(later)
            engine.gate.set()
            await client.result(begun)

    run(test)


def test_a_deadline_ends_long_work_that_is_only_half_begun() -> None:
    """The first window is in the engine, the others wait for its language."""

    async def test() -> None:
        async with House() as house:
            engine = await house.loaded()
            engine.gate.clear()
            client = house.client()
            assert (await client.error(client.transcribe(audio(5.0), deadline_ms=50)))["kind"] == "deadline_exceeded"
            engine.gate.set()
            await settle()
            house.in_order()

    run(test)


# -- deaths ------------------------------------------------------------------------------------------------------


def test_a_deadly_input_is_poison_and_is_remembered_by_its_content() -> None:
    """Its neighbours live; the second time it costs no worker, whoever sends it and however."""

    async def test() -> None:
        async with House(Killer) as house:
            engine = await house.loaded()
            assert isinstance(engine, Killer)
            engine.gate.clear()
            client, other = house.client(), house.client()
            deadly = audio(1.0, "DEADLY")
            ids = [client.transcribe(audio(1.0, f"good {n}")) for n in range(3)]
            bad = client.transcribe(deadly)
            await settle(50)
            engine.gate.set()
            for id in ids:
                await client.result(id)
            error = await client.error(bad)
            assert (error["kind"], error["retryable"]) == ("poison_input", False)
            deaths = engine.deaths
            assert deaths <= 3
            again = await other.error(other.transcribe(deadly, language="en", beam_size=1))
            assert again["kind"] == "poison_input"
            assert engine.deaths == deaths
            house.in_order()

    run(test)


def test_one_deadly_window_of_long_audio_is_poison() -> None:
    """The job fails as a whole, once."""

    async def test() -> None:
        async with House(Killer) as house:
            client = house.client()
            error = await client.error(client.transcribe(audio(6.0, "DEADLY"), language="en"))
            assert error["kind"] == "poison_input"
            await settle()
            assert len(client.replies) == 1
            house.in_order()

    run(test)


@pytest.mark.parametrize("error", [BatchFailed("out of memory"), RuntimeError("boom")])
def test_an_engine_that_fails_for_once_costs_nobody_anything(error: Exception) -> None:
    """The windows are tried again, and all replies are right."""

    async def test() -> None:
        async with House() as house:
            engine = await house.loaded()
            engine.fail_next = [error]
            client = house.client()
            ids = [client.transcribe(audio(1.0, str(n))) for n in range(5)]
            for number, id in enumerate(ids):
                assert (await client.result(id))["text"] == f"{digest_of(audio(1.0, str(number)))} 0"
            house.in_order()

    run(test)


def test_an_engine_that_always_fails_is_internal_and_not_remembered() -> None:
    """It was not the audio's fault for sure, so the next request for it is tried."""

    async def test() -> None:
        async with House() as house:
            engine = await house.loaded()
            client = house.client()
            engine.fail_next = [BatchFailed("no")] * 2
            error = await client.error(client.transcribe())
            assert (error["kind"], error["retryable"]) == ("internal", True)
            await client.result(client.transcribe())
            house.in_order()

    run(test)


@pytest.mark.parametrize("render", [[], ["txt"]])
def test_a_result_that_cannot_be_used_is_internal_for_its_own_job(render: list[str]) -> None:
    """An engine that says what nobody can write down must not stop the others."""

    class Odd(FakeEngine):
        async def submit(self, windows: Sequence[Window]) -> list[WindowResult]:
            results = await super().submit(windows)
            for number, window in enumerate(windows):
                if window.job.request_id == "odd":
                    segment = Segment(0, 0.0, 1.0, "\ud800", -0.1, 0.0, 1.0, 0.0)  # UTF-8 has no such character
                    results[number] = WindowResult((segment,), "en", 0.9)
            return results

    async def test() -> None:
        async with House(Odd) as house:
            (await house.loaded()).gate.clear()
            client = house.client()
            ids = [client.transcribe(audio(), id, render=render) for id in ("a", "odd", "b")]
            await settle(50)
            house.engine.gate.set()
            assert (await client.error("odd"))["kind"] == "internal"
            for id in ("a", "b"):
                await client.result(id)
            assert len(client.replies) == len(ids)
            house.in_order()

    run(test)


def test_a_media_worker_that_dies_once_costs_nobody_anything() -> None:
    """The input is tried again, and the worker's successor reads it."""

    async def test() -> None:
        async with House() as house:
            media = FragileMedia(deaths=1)
            house.service.pipeline._media = media
            client = house.client()
            await client.result(client.transcribe())
            assert media.prepared == 2
            house.in_order()

    run(test)


def test_an_input_that_ends_two_media_workers_is_poison_and_remembered() -> None:
    """The third worker is spared."""

    async def test() -> None:
        async with House() as house:
            media = FragileMedia(deaths=2)
            house.service.pipeline._media = media
            client = house.client()
            for _ in range(2):
                assert (await client.error(client.transcribe(audio(1.0, "bomb"))))["kind"] == "poison_input"
            assert media.prepared == 2
            await client.result(client.transcribe())
            house.in_order()

    run(test)


def test_poison_that_is_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered is bounded; the oldest goes first."""
    monkeypatch.setattr("whisperd.poison.POISON_MAX", 2)

    async def test() -> None:
        async with House(Killer) as house:
            client = house.client()
            for mark in ("DEADLY 1", "DEADLY 2", "DEADLY 3"):
                assert (await client.error(client.transcribe(audio(1.0, mark))))["kind"] == "poison_input"
            engine = house.engine
            assert isinstance(engine, Killer)
            deaths = engine.deaths
            await client.error(client.transcribe(audio(1.0, "DEADLY 3")))
            assert engine.deaths == deaths
            await client.error(client.transcribe(audio(1.0, "DEADLY 1")))
            assert engine.deaths > deaths

    run(test)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("what?"), "internal"),
        (OSError(errno.EIO, "Input/output error"), "internal"),
        (OSError(errno.EMFILE, "Too many open files"), "overloaded"),
        (OSError(errno.ENOSPC, "No space left on device"), "overloaded"),
    ],
)
def test_what_nobody_foresaw_fails_one_job(error: Exception, kind: str) -> None:
    """As `internal`, or, where the machine ran short of something, with the advice to come back."""

    class Unlucky(FakeMedia):
        async def prepare(self, message: dict[str, Any], fd: int, *more: Any) -> Prepared:
            if os.pread(fd, 7, 0) == b"UNLUCKY":
                raise error
            return await super().prepare(message, fd, *more)

    async def test() -> None:
        async with House() as house:
            house.service.pipeline._media = Unlucky()
            client = house.client()
            bad, good = client.transcribe(audio(1.0, "UNLUCKY")), client.transcribe()
            told = await client.error(bad)
            assert (told["kind"], told["retryable"]) == (kind, True)
            await client.result(good)
            house.in_order()

    run(test)


def test_rows_that_were_decoded_again_are_counted_by_the_reason() -> None:
    """The operator sees how often the short context did not do."""

    class Doubtful(FakeEngine):
        async def submit(self, windows: Sequence[Window]) -> list[WindowResult]:
            return [replace(result, retried="repeats") for result in await super().submit(windows)]

    async def test() -> None:
        async with House(Doubtful) as house:
            client = house.client()
            await client.result(client.transcribe(audio(3.0)))
            assert (await client.call("metrics.current"))["rows_retried"] == {"repeats": 3}

    run(test)


# -- too much ----------------------------------------------------------------------------------------------------


def test_no_more_audio_is_decoded_than_may_wait_for_the_engine() -> None:
    """Samples are memory; the others wait as bytes, and all are answered in the end."""

    async def test() -> None:
        async with House(prepared_audio_s=100.0) as house:
            engine = await house.loaded()
            engine.gate.clear()
            client = house.client()
            ids = [client.transcribe(audio(40.0, str(n)), language="en") for n in range(10)]
            await settle(200)
            held = [job for job in house.service.jobs.values() if job.samples]
            assert len(held) == 3
            ids.append(client.transcribe(audio(1.0, "small"), language="en"))  # a small input never waits for that
            await settle(200)
            assert sum(bool(job.samples) for job in house.service.jobs.values()) == 4
            engine.gate.set()
            for id in ids:
                await client.result(id)
            house.in_order()

    run(test)


# -- all at once -------------------------------------------------------------------------------------------------


class Storm:
    """Random requests, cancels, deadlines, deaths and departures."""

    def __init__(self, house: House, chance: random.Random) -> None:
        self.house, self.chance = house, chance
        self.clients = [house.client(ordered=n == 0, stdio=n == 1) for n in range(4)]
        self.sent: dict[Client, list[Any]] = {client: [] for client in self.clients}
        self.marks: dict[Any, str] = {}

    def strike(self) -> None:
        """One thing happens."""
        engine, client = self.house.engine, self.chance.choice(self.clients)
        match self.chance.randrange(12):
            case 0 | 1 | 2 | 3 | 4 | 5:
                self.ask(client)
            case 6:
                client.notify("cancel", id=self.chance.choice(self.sent[client] or ["none"]))
            case 7:
                ids = list(self.house.service.jobs)
                self.sent[client].append(client.send("cancel", job=self.chance.choice(ids or ["none"])))
            case 8:
                engine.fail_next.append(
                    self.chance.choice([WorkerLost("SIGKILL"), BatchFailed("no"), RuntimeError("?")])
                )
            case 9:
                engine.gate.clear()
            case 10:
                engine.gate.set()
            case 11 if self.chance.random() < 0.1 and not client.session.gone:
                client.session.lost()

    def ask(self, client: Client) -> None:
        """A request for some speech."""
        chance = self.chance
        mark = chance.choice(["", "", "", "BAD", "SILENCE"]) + f" {len(self.marks)}"
        params: Json = {"priority": chance.choice(["interactive", "normal", "bulk"])}
        if chance.random() < 0.2:
            params["deadline_ms"] = chance.randrange(1, 20)
        if chance.random() < 0.2:
            params["progress"] = True
        if chance.random() < 0.1:
            params["render"] = ["srt"]
        if chance.random() < 0.5:
            params["language"] = chance.choice(["en", "de", "xx"])
        id = client.transcribe(audio(chance.choice([0.5, 1.0, 3.5]), mark), **params)
        self.sent[client].append(id)
        self.marks[client, id] = mark

    async def calm(self) -> None:
        """Good weather from here on: everybody who is still there gets everything."""
        self.house.engine.fail_next.clear()
        self.house.engine.gate.set()
        for client in self.clients:
            if not client.session.gone:
                for id in self.sent[client]:
                    await client.reply(id)
        await settle(50)


@pytest.mark.parametrize("seed", range(8))
def test_in_any_storm_every_request_gets_exactly_one_right_reply(seed: int) -> None:
    """Nothing lost, nothing doubled, nothing of another's; and afterwards the house is in order."""

    async def test() -> None:
        async with House(queue_max=20, client_quota=100) as house:
            await house.loaded()
            storm = Storm(house, random.Random(seed))
            for _ in range(300):
                storm.strike()
                await settle(storm.chance.randrange(4))
            await storm.calm()
            for client, ids in storm.sent.items():
                answered = [reply["id"] for reply in client.replies]
                assert len(set(answered)) == len(answered)
                assert set(answered) == set(ids) if not client.session.gone else set(answered) <= set(ids)
                if client.session.ordered and not client.session.gone:
                    assert answered == ids
                for reply in client.replies:
                    check_reply(storm, client, reply)
            house.in_order()

    run(test)


def check_reply(storm: Storm, client: Client, reply: Json) -> None:
    """A result is that of the client's own audio, an error one of the kinds that the storm can cause."""
    mark = storm.marks.get((client, reply["id"]))
    if "error" in reply:
        assert reply["error"]["data"]["kind"] in KINDS
    elif mark is not None and not mark.startswith("SILENCE"):
        result = conforms("transcribe", reply["result"])
        own = digest_of(audio(result["duration_s"], mark))
        assert result["text"] == " ".join(f"{own} {n}" for n in range(result["windows"]))

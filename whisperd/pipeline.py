"""The path of a job: input → media worker → windows → engine → segments → reply.

Each stage either hands on or fails the job with a kind of the contract. Whatever goes wrong in a way that nobody
foresaw fails the one job as `internal`; the others never notice. `over` is the only way out, and it is taken once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from whisperd import assemble, intake
from whisperd.batching import context_frames
from whisperd.config import Config
from whisperd.errors import WhisperdError
from whisperd.fleet import Fleet, Loaded
from whisperd.gate import Gate
from whisperd.jobs import PRIORITY_RANK, Job, Samples, State, Window
from whisperd.log import log
from whisperd.media.pool import MediaPool, Part
from whisperd.messages import SAMPLE_RATE, Segment, WindowResult
from whisperd.metrics import Metrics
from whisperd.poison import PoisonList
from whisperd.protocol import error_line, result_line
from whisperd.render import render
from whisperd.work import check_language
from whisperd.worker import WorkerLost

_SMALL_BYTES = 1 << 20  # a few minutes at most, however it is compressed
_SMALL_FACTOR = 4  # small inputs may hold so much more than prepared_audio_s before they wait too
_MEDIA_TRIES = 2
_JUDGE_S = 0.1  # a deadline nearer than this is not judged ahead any more


class Pipeline:
    """Carries jobs from admission to their one terminal reply. Implements `dispatch.Outcomes`."""

    def __init__(
        self, config: Config, media: MediaPool, metrics: Metrics, on_over: Callable[[Job, bytes, str], None]
    ) -> None:
        self._config = config
        self._media = media
        self._metrics = metrics
        self._on_over = on_over
        self.fleet: Fleet  # set by the service: the fleet reports back to the pipeline
        self._poison = PoisonList()
        self._prepared_s = 0.0  # decoded audio that waits for the engine or is in it
        # Large inputs leave a media worker to the others, and wait while too much decoded audio does.
        self._large = Gate(max(1, config.media_workers - 1))
        self._small = Gate(config.queue_max)

    def start(self, job: Job) -> None:
        """Sets an admitted job on its way."""
        loop = asyncio.get_running_loop()
        job.move(State.ADMITTED)
        if job.work.deadline_ms is not None:
            self._await_deadline(job)
        job.task = loop.create_task(self._answered(job, lambda: self._carry(job)))

    async def _carry(self, job: Job) -> None:
        """From admission to the queue of windows."""
        loading = self._begin_loading(job.work.model)
        await self._open_input(job)
        await self._prepare_in_turn(job, loading)
        job.more_to_come = False
        await (job.queuer or self._queue_when_loaded(job, loading))
        if job.over:
            return
        if job.dispatcher:
            self._queue_known(job)
        self._complete_if_done(job)

    async def _answered(self, job: Job, work: Callable[[], Awaitable[None]]) -> None:
        """Whatever goes wrong in the work is the job's reply."""
        try:
            await work()
        except WhisperdError as error:
            self.fail(job, error)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            short = intake.shortage(error)
            if short is None:
                log.exception("job failed unexpectedly", job=job.id)
            self.fail(job, short or WhisperdError("internal", f"{type(error).__name__}: {error}"))

    def _begin_loading(self, model: str) -> asyncio.Task[Loaded] | None:
        """So that the model comes up while the audio is prepared. None: it is there."""
        if self.fleet.is_up(model):
            return None
        loading = asyncio.get_running_loop().create_task(self.fleet.ready(model))
        loading.add_done_callback(lambda done: done.cancelled() or done.exception())
        return loading

    async def _open_input(self, job: Job) -> None:
        audio = job.work.audio
        if "path" in audio:
            job.fd = await intake.open_path_in_thread(
                audio["path"], self._config.allow_root, job.client.stdio, self._config.max_audio_bytes
            )
        elif "fd" in audio:
            await intake.check_fd_in_thread(job.fd, self._config.max_audio_bytes)
        else:
            job.fd = await intake.spool_base64(audio.pop("data"), self._config.max_audio_bytes)

    async def _prepare_in_turn(self, job: Job, loading: asyncio.Task[Loaded] | None) -> None:
        gate = self._small if os.fstat(job.fd).st_size <= _SMALL_BYTES else self._large
        await gate.enter(PRIORITY_RANK[job.work.priority])
        try:
            await self._prepare(job, loading)
        finally:
            gate.leave()

    async def _prepare(self, job: Job, loading: asyncio.Task[Loaded] | None) -> None:
        """Audio to samples and windows, by a media worker; tried again, alone as ever, if the worker dies."""
        job.move(State.PREPARING)
        audio = job.work.audio
        message = {
            "op": "prepare",
            "job": job.id,
            "format": audio.get("format"),
            "sample_rate": audio.get("sample_rate"),
            "channels": audio.get("channels"),
            "suffix": Path(audio.get("path", "")).suffix.lower(),
            "vad": job.work.vad,
            "window_s": self._config.window_s,
            "first_only": job.work.row.task == "detect",
            "max_audio_s": self._config.max_audio_s,
            "max_bytes": self._config.max_audio_bytes,
        }
        while True:
            try:
                prepared = await self._media.prepare(
                    message,
                    job.fd,
                    job.work.priority,
                    lambda digest: self._learn_digest(job, digest),
                    lambda part: self._hear_part(job, part, loading),
                )
                break
            except WorkerLost as error:
                job.media_deaths += 1
                log.warning("media worker lost with a job", job=job.id, deaths=job.media_deaths, reason=str(error))
                if job.media_deaths >= _MEDIA_TRIES:
                    raise self._condemn(job, f"decoding this audio ended a media worker twice: {error}") from error
        job.close_input()
        self._take_part(job, prepared)
        if job.heard < len(job.windows):
            raise _other_windows()
        job.prepared_at = asyncio.get_running_loop().time()
        job.speech_s = prepared.speech_s
        job.media_ms, job.vad_ms = prepared.media_ms, prepared.vad_ms
        job.warnings.extend(prepared.warnings)

    def _hear_part(self, job: Job, part: Part, loading: asyncio.Task[Loaded] | None) -> None:
        """Windows of long audio: the engine may begin with them while the media worker looks for more."""
        if job.over:
            part.close()
            return
        self._take_part(job, part)
        job.more_to_come = True
        if job.dispatcher:
            self._queue_known(job)
        elif job.queuer is None:
            job.queuer = asyncio.get_running_loop().create_task(
                self._answered(job, lambda: self._queue_when_loaded(job, loading))
            )

    def _take_part(self, job: Job, part: Part) -> None:
        """Adds what is new. A second worker tells all again, and must tell the same: the engine has begun with it."""
        if part.samples:
            job.heard = 0
            self._take_samples(job, part.samples)
        tail_s = job.work.options.tail_s
        for one in part.windows[:1] if job.work.row.task == "detect" else part.windows:
            frames = context_frames(one.stop - one.start, tail_s)
            window = Window(job, job.heard, one.start, one.stop, frames, one.sure_speech_s, one.speech_stop)
            if job.heard == len(job.windows):
                job.windows.append(window)
                job.results.append(None)
            elif not job.windows[job.heard].same_place(window):
                raise _other_windows()
            job.heard += 1

    def _take_samples(self, job: Job, samples: Samples) -> None:
        if job.samples is None:
            job.samples = samples
            job.duration_s = samples.count / SAMPLE_RATE
            self._hold(job.duration_s)
            return
        samples.close()
        if samples.count != job.samples.count:
            raise _other_windows()

    def _learn_digest(self, job: Job, digest: str) -> None:
        job.digest = digest
        error = self._poison.verdict(digest, asyncio.get_running_loop().time())
        if error:
            self.fail(job, error)

    def _condemn(self, job: Job, message: str) -> WhisperdError:
        error = WhisperdError("poison_input", message)
        if job.digest:
            self._poison.condemn(job.digest, error, asyncio.get_running_loop().time())
        return error

    def _hold(self, audio_s: float) -> None:
        """Decoded audio is memory: while too much of it waits, no further large input is decoded, and while far too
        much does, no small one either. Those that are with a media worker already may overshoot by one input each."""
        self._prepared_s += audio_s
        self._large.shut(self._prepared_s > self._config.prepared_audio_s)
        self._small.shut(self._prepared_s > _SMALL_FACTOR * self._config.prepared_audio_s)

    async def _queue_when_loaded(self, job: Job, loading: asyncio.Task[Loaded] | None) -> None:
        """Queues the windows that are known when the model is there; those that come later follow at once."""
        if loading:
            await asyncio.shield(loading)
        loaded = await self.fleet.ready(job.work.model)  # at once, unless it was unloaded meanwhile
        traits = loaded.engine.traits
        check_language(job.work, traits)
        given = job.work.row.language
        if given or (traits and not traits.multilingual):
            job.language, job.language_probability = given or "en", 1.0
        if job.windows:
            job.dispatcher = loaded.dispatcher
            job.move(State.QUEUED)
            self._queue_known(job)

    def _queue_known(self, job: Job) -> None:
        """The language of long audio is what its first window is in: the others wait for that one's word."""
        ready = job.windows[job.handed :] if job.language else job.windows[job.handed : 1]
        if ready:
            job.handed += len(ready)
            job.dispatcher.add(ready)

    def window_started(self, window: Window, batch_rows: int) -> None:
        job = window.job
        job.dispatched += 1
        if job.first_dispatch is None:
            job.first_dispatch = asyncio.get_running_loop().time()
        if job.state is State.QUEUED:
            job.move(State.RUNNING)

    def window_returned(self, window: Window) -> None:
        window.job.dispatched -= 1  # it waits again; a deadline that is still ahead counts again

    def batch_done(self, rows: int, busy_s: float) -> None:
        self._metrics.batch_done(asyncio.get_running_loop().time(), rows, busy_s)

    def window_done(self, window: Window, result: WindowResult) -> None:
        job = window.job
        try:
            self._take(window, result)
        except Exception as error:  # its batch was others' too, and they are told after it
            log.exception("a window's result could not be taken", job=job.id)
            self.fail(job, WhisperdError("internal", f"{type(error).__name__}: {error}"))

    def _take(self, window: Window, result: WindowResult) -> None:
        job = window.job
        job.results[window.index] = result
        job.finished += 1
        job.warnings.extend(warning for warning in result.warnings if warning not in job.warnings)
        if result.retried:
            self._metrics.rows_retried.add(result.retried)
        if job.language is None:
            job.language, job.language_probability = result.language, result.language_probability
            self._queue_known(job)
            if job.over:
                return  # the engine had failed meanwhile, or the deadline has no hope
        placed = assemble.place_ready(job)
        if job.work.progress:
            self._tell_progress(job, placed)
        self._complete_if_done(job)

    def window_failed(self, window: Window, error: WhisperdError) -> None:
        if window.job.over:
            return
        if error.kind == "poison_input":
            error = self._condemn(window.job, error.message)
        self.fail(window.job, error)

    def _tell_progress(self, job: Job, placed: Sequence[Segment]) -> None:
        for segment in placed:
            job.client.notify(
                "transcribe.segment",
                {
                    "id": job.request_id,
                    "job": job.id,
                    "index": segment.id,
                    "segment": segment.to_wire(),
                    "final": True,
                },
            )
        job.client.notify(
            "transcribe.progress",
            {
                "id": job.request_id,
                "job": job.id,
                "done_s": round(assemble.done_s(job), 3),
                "total_s": round(job.duration_s, 3),
            },
        )

    def _complete_if_done(self, job: Job) -> None:
        if not job.over and not job.more_to_come and job.finished == len(job.windows):
            self._complete(job)

    def _complete(self, job: Job) -> None:
        if job.work.row.task == "detect":
            self._reply(job, assemble.detection(job))
        elif job.work.render:
            job.task = asyncio.get_running_loop().create_task(self._render(job))
        else:
            self._reply(job, assemble.transcription(job, job.segments, {}, asyncio.get_running_loop().time()))

    async def _render(self, job: Job) -> None:
        """Subtitles for hours of speech take a while to lay out; the loop has other clients."""
        try:
            rendered = {
                name: await asyncio.to_thread(render, name, job.segments, job.language) for name in job.work.render
            }
            self._reply(job, assemble.transcription(job, job.segments, rendered, asyncio.get_running_loop().time()))
        except Exception as error:
            log.exception("rendering failed", job=job.id)
            self.fail(job, WhisperdError("internal", f"rendering failed: {error}"))

    def _reply(self, job: Job, result: dict[str, Any]) -> None:
        self._over(job, State.DONE, result_line(job.request_id, result), "ok")

    def fail(self, job: Job, error: WhisperdError) -> None:
        """Ends a job with an error; one that is over stays as it is."""
        if not job.over:
            self._over(job, State.FAILED, error_line(job.request_id, error), error.kind)

    def cancel(self, job: Job, message: str, kind: str = "cancelled") -> bool:
        """Ends a job on somebody's word. False: it was over."""
        if job.over:
            return False
        self._over(job, State.CANCELLED, error_line(job.request_id, WhisperdError(kind, message)), kind)
        return True

    def _await_deadline(self, job: Job) -> None:
        """Looks again when half of the time that is left is over, and at the deadline itself."""
        loop, deadline = asyncio.get_running_loop(), job.deadline
        assert deadline is not None
        half = loop.time() + (deadline - loop.time()) / 2
        job.timer = loop.call_at(half if deadline - half > _JUDGE_S else deadline, self._deadline, job)

    def _deadline(self, job: Job) -> None:
        """What the engine has in hand is not cut short; only waiting ends here."""
        if job.over or job.deadline is None:
            return
        if asyncio.get_running_loop().time() < job.deadline:
            if job.dispatcher:
                job.dispatcher.judge(job)
            if not job.over:
                self._await_deadline(job)
        elif job.more_to_come or not job.windows or job.dispatched < len(job.windows):
            late = f"not begun within deadline_ms = {job.work.deadline_ms}"
            self.fail(job, WhisperdError("deadline_exceeded", late))

    def _over(self, job: Job, state: State, line: bytes, outcome: str) -> None:
        job.move(state)
        if job.dispatcher:
            job.dispatcher.discard(job)
        if job.samples:
            self._hold(-job.duration_s)
        if job.task is asyncio.current_task():
            job.task = None  # it ends by itself
        if job.queuer is asyncio.current_task():
            job.queuer = None
        job.release()
        self._on_over(job, line, outcome)
        job.windows = []  # they know their job: a cycle would keep both until the next full garbage collection


def _other_windows() -> WhisperdError:
    """Part of the text is of the old ones: there is no telling what the whole would be."""
    return WhisperdError("worker_lost", "a media worker was lost, and the next one found other audio in this input")

"""The path of a job: input → media worker → windows → engine → segments → reply.

Each stage either hands on or fails the job with a kind of the contract. Whatever goes wrong in a way that nobody
foresaw fails the one job as `internal`; the others never notice. `over` is the only way out, and it is taken once.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from whisperd import assemble, intake
from whisperd.batching import context_frames
from whisperd.config import Config
from whisperd.errors import WhisperdError
from whisperd.fleet import Fleet, Loaded
from whisperd.gate import Gate
from whisperd.inference.process import ModelTraits
from whisperd.jobs import PRIORITY_RANK, Job, State, Window
from whisperd.log import log
from whisperd.media.pool import MediaPool
from whisperd.messages import Segment, WindowResult
from whisperd.metrics import Metrics
from whisperd.protocol import error_line, result_line
from whisperd.render import render
from whisperd.worker import WorkerLost

_SMALL_BYTES = 1 << 20  # a few minutes at most, however it is compressed
_SMALL_FACTOR = 4  # small inputs may hold so much more than prepared_audio_s before they wait too
_POISON_MAX = 1024  # contents remembered as deadly
_POISON_S = 3600.0  # ...and for how long: an out-of-memory killer may have had other reasons
_MEDIA_TRIES = 2


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
        self._poison: OrderedDict[str, tuple[WhisperdError, float]] = OrderedDict()
        self._prepared_s = 0.0  # decoded audio that waits for the engine or is in it
        # Large inputs leave a media worker to the others, and wait while too much decoded audio does.
        self._large = Gate(max(1, config.media_workers - 1))
        self._small = Gate(config.queue_max)

    def start(self, job: Job) -> None:
        """Sets an admitted job on its way."""
        loop = asyncio.get_running_loop()
        job.move(State.ADMITTED)
        if job.work.deadline_ms is not None:
            job.timer = loop.call_at(job.arrived + job.work.deadline_ms / 1000, self._deadline, job)
        job.task = loop.create_task(self._carry(job))

    async def _carry(self, job: Job) -> None:
        """From admission to the queue of windows."""
        try:
            loading = asyncio.get_running_loop().create_task(self.fleet.ready(job.work.model))
            loading.add_done_callback(lambda done: done.cancelled() or done.exception())
            await self._open_input(job)
            await self._prepare_in_turn(job)
            await asyncio.shield(loading)
            loaded = await self.fleet.ready(job.work.model)  # at once, unless it was unloaded meanwhile
            _check_language(job, loaded.engine.traits)
            self._queue_windows(job, loaded)
        except WhisperdError as error:
            self.fail(job, error)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            short = intake.shortage(error)
            if short is None:
                log.exception("job failed unexpectedly", job=job.id)
            self.fail(job, short or WhisperdError("internal", f"{type(error).__name__}: {error}"))

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

    async def _prepare_in_turn(self, job: Job) -> None:
        gate = self._small if os.fstat(job.fd).st_size <= _SMALL_BYTES else self._large
        await gate.enter(PRIORITY_RANK[job.work.priority])
        try:
            await self._prepare(job)
        finally:
            gate.leave()

    async def _prepare(self, job: Job) -> None:
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
            "max_audio_s": self._config.max_audio_s,
            "max_bytes": self._config.max_audio_bytes,
        }
        while True:
            try:
                prepared = await self._media.prepare(
                    message, job.fd, job.work.priority, lambda digest: self._learn_digest(job, digest)
                )
                break
            except WorkerLost as error:
                job.media_deaths += 1
                log.warning("media worker lost with a job", job=job.id, deaths=job.media_deaths, reason=str(error))
                if job.media_deaths >= _MEDIA_TRIES:
                    raise self._condemn(job, f"decoding this audio ended a media worker twice: {error}") from error
        job.samples = prepared.samples
        job.duration_s, job.speech_s = prepared.duration_s, prepared.speech_s
        job.media_ms, job.vad_ms = prepared.media_ms, prepared.vad_ms
        job.warnings.extend(prepared.warnings)
        tail_s = job.work.options.tail_s
        job.windows = [
            Window(job, index, start, stop, context_frames(stop - start, tail_s), sure_s, speech_stop)
            for index, ((start, stop), sure_s, speech_stop) in enumerate(
                zip(prepared.windows, prepared.sure_speech_s, prepared.speech_stop, strict=True)
            )
        ]
        if job.work.row.task == "detect":
            del job.windows[1:]
        job.results = [None] * len(job.windows)
        self._hold(job.duration_s)

    def _learn_digest(self, job: Job, digest: str) -> None:
        job.digest = digest
        error, until = self._poison.get(digest, (None, 0.0))
        if error and until > asyncio.get_running_loop().time() and not job.over:
            self.fail(job, error)

    def _condemn(self, job: Job, message: str) -> WhisperdError:
        error = WhisperdError("poison_input", message)
        if job.digest:
            self._poison[job.digest] = error, asyncio.get_running_loop().time() + _POISON_S
            if len(self._poison) > _POISON_MAX:
                self._poison.popitem(last=False)
        return error

    def _hold(self, audio_s: float) -> None:
        """Decoded audio is memory: while too much of it waits, no further large input is decoded, and while far too
        much does, no small one either. Those that are with a media worker already may overshoot by one input each."""
        self._prepared_s += audio_s
        self._large.shut(self._prepared_s > self._config.prepared_audio_s)
        self._small.shut(self._prepared_s > _SMALL_FACTOR * self._config.prepared_audio_s)

    def _queue_windows(self, job: Job, loaded: Loaded) -> None:
        traits = loaded.engine.traits
        given = job.work.row.language
        if given or (traits and not traits.multilingual):
            job.language, job.language_probability = given or "en", 1.0
        if not job.windows:
            self._complete(job)
            return
        job.dispatcher = loaded.dispatcher
        job.prepared_at = asyncio.get_running_loop().time()
        job.move(State.QUEUED)
        # The language of long audio is what its first window is in: the others wait for that one's word.
        ready = job.windows if job.language else job.windows[:1]
        loaded.dispatcher.add(ready)

    def window_started(self, window: Window, batch_rows: int) -> None:
        job = window.job
        job.dispatched += 1
        if job.first_dispatch is None:
            job.first_dispatch = asyncio.get_running_loop().time()
        if job.state is State.QUEUED:
            job.move(State.RUNNING)

    def window_returned(self, window: Window) -> None:
        window.job.dispatched -= 1  # it waits again, and its deadline counts again

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
        job.done_s += window.duration_s
        job.warnings.extend(warning for warning in result.warnings if warning not in job.warnings)
        if result.retried:
            self._metrics.rows_retried.add(result.retried)
        if job.language is None:
            job.language, job.language_probability = result.language, result.language_probability
            if len(job.windows) > 1:
                job.dispatcher.add(job.windows[1:])
                if job.over:
                    return  # the engine had failed meanwhile
        placed = assemble.place_ready(job)
        if job.work.progress:
            self._tell_progress(job, placed)
        if job.finished == len(job.windows):
            self._complete(job)

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
        done = job.done_s / sum(window.duration_s for window in job.windows)
        job.client.notify(
            "transcribe.progress",
            {
                "id": job.request_id,
                "job": job.id,
                "done_s": round(job.duration_s * done, 3),
                "total_s": round(job.duration_s, 3),
            },
        )

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

    def _deadline(self, job: Job) -> None:
        """What the engine has in hand is not cut short; only waiting ends here."""
        all_dispatched = job.windows and job.dispatched >= len(job.windows)
        if not job.over and not all_dispatched:
            self.fail(
                job,
                WhisperdError("deadline_exceeded", f"not begun within deadline_ms = {job.work.deadline_ms}"),
            )

    def _over(self, job: Job, state: State, line: bytes, outcome: str) -> None:
        job.move(state)
        if job.dispatcher:
            job.dispatcher.discard(job)
        if job.samples:
            self._hold(-job.duration_s)
        if job.task is asyncio.current_task():
            job.task = None  # it ends by itself
        job.release()
        self._on_over(job, line, outcome)
        job.windows = []  # they know their job: a cycle would keep both until the next full garbage collection


def _check_language(job: Job, traits: ModelTraits | None) -> None:
    """Raises unsupported_language or invalid_params where the model cannot do what was asked."""
    language = job.work.row.language
    if traits is None:
        return
    if job.work.row.task == "translate" and not traits.multilingual:
        raise WhisperdError(
            "invalid_params", f"the model {job.work.model!r} is for English only and cannot translate", pointer="/task"
        )
    if language and language not in traits.languages:
        known = "English only" if not traits.multilingual else f"{len(traits.languages)} languages"
        raise WhisperdError(
            "unsupported_language",
            f"the model {job.work.model!r} is for {known}, not {language!r}; leave language out to have it detected",
            language=language,
        )

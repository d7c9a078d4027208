"""Lines in, replies out: what a request may do, where it waits, and that it is answered exactly once.

A request that is answered at once is answered here or in `control`; one that needs speech becomes a job, is
admitted (or waits in its session's backlog, or is refused), and comes back from the pipeline through `_job_over`.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from whisperd import intake
from whisperd.admission import OPERATE, Admission, require
from whisperd.config import Config
from whisperd.errors import WhisperdError
from whisperd.fleet import Fleet, MakeEngine
from whisperd.framing import Line
from whisperd.jobs import Job
from whisperd.log import log
from whisperd.media.pool import MediaPool
from whisperd.metrics import Metrics
from whisperd.models.names import is_path
from whisperd.pipeline import Pipeline
from whisperd.protocol import (
    Method,
    ProtocolError,
    Request,
    check_params,
    error_line,
    find_method,
    parse_request,
    result_line,
)
from whisperd.records import request_row
from whisperd.session import Session, Slot, Waiting, close_fds
from whisperd.store.writer import Store
from whisperd.transport import Link
from whisperd.work import work_of
from whisperd.worker import Worker

Handler = Callable[[Session, dict[str, Any]], Mapping[str, Any] | Awaitable[Mapping[str, Any]]]
_SPEECH = {"transcribe", "detect_language"}
_RATE_JOBS = 32  # completions over which the rate for retry_after_ms is taken


class Service:
    """All that the daemon does for its clients."""

    def __init__(self, config: Config, media: MediaPool, make_engine: MakeEngine, store: Store | None) -> None:
        self.now = asyncio.get_running_loop().time
        self.config = config
        self.media = media
        self.store = store
        self.started = self.now()
        self.metrics = Metrics(self.now())
        self.admission = Admission(config.queue_max, config.client_quota, config.backlog_bytes)
        self.pipeline = Pipeline(config, media, self.metrics, self._job_over)
        self.fleet = Fleet(config, self.pipeline, make_engine)
        self.pipeline.fleet = self.fleet
        self.sessions: set[Session] = set()
        self._parent: Session | None = None  # on stdio, the only session with a backlog
        self.closing: set[Link] = set()  # of clients that were answered everything, but have not read it all
        self.jobs: dict[str, Job] = {}
        self.handlers: dict[str, Handler] = {"cancel": self._cancel}
        self.stopping = False
        self.on_quiet: Callable[[], None] = lambda: None  # while stopping: nothing is owed to anybody any more
        self._ended_at: deque[float] = deque(maxlen=_RATE_JOBS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._job_numbers = 0
        self._job_prefix = secrets.token_hex(3)

    def workers(self) -> list[Worker]:
        """Every worker process, of both kinds."""
        return self.media.workers + [w for loaded in self.fleet.loaded() for w in loaded.engine.workers()]

    def uptime_s(self) -> float:
        return self.now() - self.started

    def add_session(self, session: Session) -> None:
        session.on_dropped = self._notification_dropped
        self.sessions.add(session)
        if session.stdio:
            self._parent = session

    def _notification_dropped(self) -> None:
        self.metrics.counters.notifications_dropped += 1

    # -- a line -------------------------------------------------------------------------------------------------

    def handle_line(self, session: Session, line: Line) -> None:
        """One line from a client. Descriptors that the request does not claim are closed."""
        counters = self.metrics.counters
        counters.lines_received += 1
        try:
            if line.data is None:
                limit = self.config.control_line_bytes if session.control else self.config.max_line_bytes
                raise ProtocolError(
                    "line_too_long", f"a line may have {limit} bytes; send audio by path or descriptor", limit=limit
                )
            if not line.data or line.data.isspace():
                return  # it only brought descriptors
            request = parse_request(line.data)
            self._handle(session, request, line)
        except ProtocolError as error:
            if error.kind in ("parse_error", "line_too_long"):
                counters.parse_errors += 1
            else:
                counters.invalid += 1
            session.answer(session.open_slot(), error_line(error.id, error))
        finally:
            close_fds(line.fds)

    def _handle(self, session: Session, request: Request, line: Line) -> None:
        if request.notification:
            self._notified(session, request)
            return
        slot = session.open_slot()
        try:
            if session.in_flight(request.id):
                session.answer(slot, error_line(None, _conflict(request)))
                return
            method = find_method(request.method)
            if method.main_only and session.control:
                raise WhisperdError("method_not_found", f"{method.name} is served on the main socket only")
            require(session.peer, method.role, method.name)
            check_params(method, request.params)
            if method.name in _SPEECH:
                self._speech(session, request, slot, line)
            else:
                self._control(session, request, slot, method)
        except WhisperdError as error:
            if error.kind in ("invalid_params", "method_not_found"):
                self.metrics.counters.invalid += 1
            session.answer(slot, error_line(request.id, error))
        except Exception as error:  # it must cost this request only: the reader of all others is our caller
            log.exception("request failed unexpectedly", method=request.method)
            if slot.line is None:
                session.answer(slot, error_line(request.id, _unforeseen(error)))

    def _notified(self, session: Session, request: Request) -> None:
        if request.method != "cancel":
            self.metrics.counters.notifications_ignored += 1
            return
        try:
            check_params(find_method("cancel"), request.params)
            self._cancel(session, request.params)
        except WhisperdError as error:
            log.debug("cancel notification ignored", client=session.peer.name, reason=error.message)

    def _control(self, session: Session, request: Request, slot: Slot, method: Method) -> None:
        outcome = self.handlers[method.name](session, request.params)
        if not inspect.isawaitable(outcome):
            session.answer(slot, result_line(request.id, outcome))
            return
        session.control_slots[request.id] = slot
        self._spawn(self._answer_later(session, request, slot, outcome))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_later(
        self, session: Session, request: Request, slot: Slot, outcome: Awaitable[Mapping[str, Any]]
    ) -> None:
        try:
            line = result_line(request.id, await outcome)
        except WhisperdError as error:
            line = error_line(request.id, error)
        except Exception as error:
            log.exception("control method failed", method=request.method)
            line = error_line(request.id, _unforeseen(error))
        del session.control_slots[request.id]
        session.answer(slot, line)
        self._pump_backlog(session)
        self._check_quiet(session)

    # -- speech -------------------------------------------------------------------------------------------------

    def _speech(self, session: Session, request: Request, slot: Slot, line: Line) -> None:
        size = len(line.data or b"")
        if session.stdio:
            self.admission.check_open()
            if session.backlog or session.choked or self.admission.full(size):
                self._wait_in_backlog(session, Waiting(request, slot, size, self.now()))
                return
        else:
            self.admission.check(session, size, self._jobs_per_s())
        self._admit(session, request, slot, size, self.now(), line.fds)

    def _wait_in_backlog(self, session: Session, waiting: Waiting) -> None:
        session.backlog.append(waiting)
        session.backlog_ids.add(waiting.request.id)
        session.backlog_bytes += waiting.size
        session.steer_input(self._backlog_full(session))
        deadline_ms = waiting.request.params.get("deadline_ms")
        if deadline_ms is not None:
            late = WhisperdError("deadline_exceeded", f"not begun within deadline_ms = {deadline_ms}")
            loop = asyncio.get_running_loop()
            waiting.timer = loop.call_at(
                waiting.arrived + deadline_ms / 1000, self._end_waiting, session, waiting, late
            )

    def _backlog_full(self, session: Session) -> bool:
        config = self.config
        return len(session.backlog) >= config.backlog_requests or session.backlog_bytes >= config.backlog_bytes

    def _leave_backlog(self, session: Session, waiting: Waiting) -> None:
        session.backlog.remove(waiting)
        session.backlog_ids.discard(waiting.request.id)
        session.backlog_bytes -= waiting.size
        if waiting.timer:
            waiting.timer.cancel()

    def _end_waiting(self, session: Session, waiting: Waiting, error: WhisperdError) -> None:
        """Answers a request that never became a job."""
        self._leave_backlog(session, waiting)
        session.answer(waiting.slot, error_line(waiting.request.id, error))
        self._pump_backlog(session)
        self._check_quiet(session)

    def _pump_backlog(self, session: Session) -> None:
        while session.backlog and not session.choked and not self.admission.full(session.backlog[0].size):
            waiting = session.backlog[0]
            self._leave_backlog(session, waiting)
            try:
                self._admit(session, waiting.request, waiting.slot, waiting.size, waiting.arrived, [])
            except WhisperdError as error:
                session.answer(waiting.slot, error_line(waiting.request.id, error))
        session.steer_input(self._backlog_full(session))

    def _admit(
        self, session: Session, request: Request, slot: Slot, size: int, arrived: float, fds: list[int]
    ) -> None:
        work = work_of(request, self.fleet.default_name, self.config.tail_s)
        if "path" in work.audio and not session.peer.same_user:
            raise WhisperdError(
                "forbidden", "a client of another user may not name paths: open the file and pass the descriptor"
            )
        if request.params.get("model") and not session.peer.same_user and is_path(work.model):
            raise WhisperdError("forbidden", "a client of another user may name models, but no paths")
        fd = -1
        if "fd" in work.audio:
            if session.stdio:
                raise WhisperdError("invalid_params", "stdio carries no descriptors", pointer="/audio/fd")
            fd = intake.take_fd(fds, work.audio["fd"])
        self._job_numbers += 1
        job = Job(
            id=f"{self._job_prefix}-{self._job_numbers}",
            client=session,
            request_id=request.id if request.id is not None else "",
            method=request.method,
            work=work,
            arrived=arrived,
            bytes_in=size,
            fd=fd,
            slot=slot,
        )
        self.metrics.counters.accepted += 1
        self.jobs[job.id] = session.jobs[job.request_id] = job
        self.admission.enter(session, size)
        self.pipeline.start(job)

    def _job_over(self, job: Job, line: bytes, outcome: str) -> None:
        """The pipeline's last word on a job."""
        session: Session = job.client
        del self.jobs[job.id]
        del session.jobs[job.request_id]
        self.admission.leave(session, job.bytes_in)
        session.answer(job.slot, line)
        try:
            self._keep(job, len(line), outcome)
        except Exception:  # what is kept of a job must not cost the next one its turn
            log.exception("a finished request could not be recorded", job=job.id)
        self._pump_backlog(session)
        if self._parent and self._parent.backlog and self._parent is not session:
            self._pump_backlog(self._parent)
        self._check_quiet(session)

    def _keep(self, job: Job, bytes_out: int, outcome: str) -> None:
        """Metrics, the store's row and the log line of a job that is over."""
        now = self.now()
        self._ended_at.append(now)
        latency_ms = (now - job.arrived) * 1000
        if outcome == "ok":
            self.metrics.succeeded(now, latency_ms, job.duration_s)
        elif outcome == "cancelled":
            self.metrics.cancelled(now)
        else:
            self.metrics.failed(now, outcome)
        if self.store:
            self.store.record_request(request_row(job, outcome, bytes_out, now, time.time()))
        log.info("request finished", job=job.id, client=job.client.peer.name, id=job.request_id, action=job.method,
                 outcome=outcome, total_ms=round(latency_ms))  # fmt: skip

    def _jobs_per_s(self) -> float:
        """Completions per second, lately."""
        if len(self._ended_at) < 2:
            return 0.0
        return (len(self._ended_at) - 1) / max(1e-3, self.now() - self._ended_at[0])

    # -- cancelling and leaving ---------------------------------------------------------------------------------

    def _cancel(self, session: Session, params: dict[str, Any]) -> Mapping[str, Any]:
        if "id" in params:
            job = session.jobs.get(params["id"])
            if job is None:
                return {"cancelled": self._cancel_waiting(session, params["id"])}
        else:
            job = self.jobs.get(params["job"])
            if job and job.client is not session and job.client.peer.uid != session.peer.uid:
                require(session.peer, OPERATE, "cancelling another client's job")
        return {"cancelled": job is not None and self.pipeline.cancel(job, "cancelled by the client")}

    def _cancel_waiting(self, session: Session, id: str | int) -> bool:
        waiting = next((waiting for waiting in session.backlog if waiting.request.id == id), None)
        if waiting:
            self._end_waiting(session, waiting, WhisperdError("cancelled", "cancelled by the client"))
        return waiting is not None

    def session_ended(self, session: Session) -> None:
        """No more lines will come; what was accepted is still answered."""
        self._check_quiet(session)

    def session_drained(self, session: Session) -> None:
        """The client has read what it was sent: what waited for that goes on."""
        self._pump_backlog(session)

    def session_lost(self, session: Session) -> None:
        """Nobody is there to be answered: the work is cancelled."""
        for waiting in list(session.backlog):
            self._leave_backlog(session, waiting)
        for job in list(session.jobs.values()):
            self.pipeline.cancel(job, "the client went away")
        self.sessions.discard(session)
        self._check_quiet(session)

    def abandon_all(self, reason: str) -> int:
        """Answers everything that is still owed with `draining`, and says how much that was."""
        error = WhisperdError("draining", reason)
        count = 0
        for session in list(self.sessions):
            for waiting in list(session.backlog):
                self._leave_backlog(session, waiting)
                session.answer(waiting.slot, error_line(waiting.request.id, error))
                count += 1
            for id, slot in session.control_slots.items():
                session.answer(slot, error_line(id, error))
                count += 1
            session.control_slots.clear()
        for task in self._tasks:
            task.cancel()
        for job in list(self.jobs.values()):
            count += self.pipeline.cancel(job, reason, kind="draining")
        return count

    async def _let_go(self, link: Link) -> None:
        """Until everything was read, the daemon's end waits for this client as for any other."""
        self.closing.add(link)
        await link.flushed()
        self.closing.discard(link)

    @property
    def quiet(self) -> bool:
        """Whether nothing is owed to anybody."""
        return not self.jobs and all(session.quiet for session in self.sessions)

    def _check_quiet(self, session: Session) -> None:
        if session.input_ended and session.quiet and not session.gone and not session.stdio:
            self.sessions.discard(session)
            session.gone = True
            session.link.close()
            if session.link.buffered():
                self._spawn(self._let_go(session.link))
        if self.stopping and self.quiet:
            self.on_quiet()


def _unforeseen(error: Exception) -> WhisperdError:
    return WhisperdError("internal", f"{type(error).__name__}: {error}")


def _conflict(request: Request) -> WhisperdError:
    return WhisperdError("conflict", f"a request with the id {request.id!r} is in progress", id=request.id)

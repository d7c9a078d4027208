"""The daemon's life: start up, serve, drain, shut down. Signals are only noted; the loop acts on them.

`serve` reads like a sentence: start up, wait for a reason to stop, drain, shut down. Exit codes: 0 drained;
75 accepted work was given up (drain timeout, or a second signal); 74 stdout vanished; 78 it could not start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whisperd import intake, paths
from whisperd.admission import Peer
from whisperd.child import Child
from whisperd.config import Config, Loaded
from whisperd.control import Control
from whisperd.errors import WhisperdError
from whisperd.fleet import MakeEngine
from whisperd.inbox import Turns
from whisperd.inference.process import Engine, EngineSettings, WorkerEngine
from whisperd.listeners import Listener, ListenError, stdio_peer
from whisperd.log import log, setup
from whisperd.media.pool import MediaPool
from whisperd.models import FAKE
from whisperd.models import names as models
from whisperd.service import Service
from whisperd.session import Session
from whisperd.store.file import default_store_path
from whisperd.store.writer import Store
from whisperd.transport import HangupWatch, Link, SocketLink, StdioLink

EXIT_OK, EXIT_NO_STDOUT, EXIT_GAVE_UP, EXIT_CONFIG = 0, 74, 75, 78
_CONTROL_CONNECTIONS_MAX = 64  # for people and monitoring; those that bring work are bounded by connections_max
_FLUSH_S = 30.0  # how long a socket client that does not read may hold up the end; the parent on stdio always may
_STORE_CLOSE_S = 5.0
_FLUSH_NOW_S = 0.25  # the same after a second signal: time for those who do read


def run(settings: Loaded, closed: Sequence[str], early: list[Child]) -> int:
    """Serves until there is a reason to stop. Returns the exit code.

    `closed`: which of stdin and stdout were missing. `early`: inference workers that are starting already; whatever
    happens here, they end with this process.
    """
    setup(settings.config.log_level, settings.config.log_format)
    try:
        if settings.config.stdio and closed:
            raise ListenError(f"--stdio needs {' and '.join(closed)}, closed when the daemon was started")
        stdio = _take_stdio() if settings.config.stdio else None
        return asyncio.run(Daemon(settings, stdio, early).serve())
    except ListenError as error:
        log.error("cannot listen", reason=str(error))
        return EXIT_CONFIG


def _take_stdio() -> tuple[int, int]:
    """Keeps the protocol's two descriptors for ourselves. What anything else, a C library too, writes to stdout from
    here on goes to stderr, and what reads stdin reads nothing."""
    fd_in, fd_out = os.dup(0), os.dup(1)  # dup makes them close-on-exec
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return fd_in, fd_out


class Daemon:
    """One run of the daemon."""

    def __init__(self, settings: Loaded, stdio: tuple[int, int] | None, early: list[Child]) -> None:
        self._settings = settings
        self._config = settings.config
        self._stdio_fds = stdio
        self._early = early
        self._listeners: list[Listener] = []
        self._stdio: Session | None = None
        self._exit_code = EXIT_OK
        self._signals = 0
        self._drain_ends: float | None = None  # on the loop's clock, where --drain-timeout sets one

    async def serve(self) -> int:
        """Start up, wait, drain, shut down."""
        await self._start_up()
        try:
            await self._stop_wanted.wait()
            await self._drain()
        finally:
            await self._shut_down()
        return self._exit_code

    async def _start_up(self) -> None:
        self._stop_wanted = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._quiet = asyncio.Event()
        self._hangups = HangupWatch()
        self._turns, self._control_turns = Turns(), Turns()  # two, so that control never waits for work
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        self._bind()
        config = self._config
        self._media: MediaPool = MediaPool(config.media_workers, config.media_hang_timeout_s, config.max_decode_s)
        make_engine: MakeEngine = self._make_engine
        if config.model == FAKE:
            from whisperd.testing import FakeEngine, FakeMedia

            self._media, make_engine = FakeMedia(), FakeEngine
        self._store = Store.begin(self._store_path())
        self._service = Service(config, self._media, make_engine, self._store)
        self._service.on_quiet = self._quiet.set
        control = Control(self._service, self._settings, self._stop_wanted.set)
        self._service.handlers.update(control.handlers())
        self._media.start()
        self._service.fleet.start()
        self._preloading = loop.create_task(self._preload())
        await asyncio.to_thread(self._store.wait_opened)  # or the first `health` would tell of what is mended at once
        for listener in self._listeners:
            listener.start()
        if self._stdio_fds:
            self._open_stdio(*self._stdio_fds)
        log.info("serving", pid=os.getpid(), stdio=config.stdio, sockets=[str(one.path) for one in self._listeners])

    def _bind(self) -> None:
        """Both sockets if one is named or stdio is not; control beside main unless it is named."""
        config = self._config
        if config.stdio and not config.socket and not config.control_socket:
            return
        if config.socket or not config.control_socket:
            main = Path(config.socket) if config.socket else _default_socket()
            self._listeners.append(Listener(main.absolute(), config.socket_group, self._accept_main))
            beside = paths.control_path_beside(main)
        control = Path(config.control_socket) if config.control_socket else beside
        try:
            self._listeners.append(Listener(control.absolute(), config.socket_group, self._accept_control))
        except ListenError:
            for listener in self._listeners:
                listener.close()
            raise

    def _store_path(self) -> Path:
        return Path(self._config.store) if self._config.store else default_store_path(os.environ)

    def _make_engine(self, name: str) -> Engine:
        """Finds and checks the model's files; blocks while it reads them. Raises WhisperdError."""
        config = self._config
        if name == FAKE:
            raise WhisperdError("model_not_found", "the fake model is there only for daemons started with it")
        path = models.ensure(models.resolve(name))
        engine = WorkerEngine(path, engine_settings(config))
        with contextlib.suppress(IndexError):  # only the first model finds one
            engine.worker.adopt(self._early.pop())
        return engine

    async def _preload(self) -> None:
        """Loads the default model. If it cannot be had, the daemon serves on: health and every request say why."""
        try:
            name = self._service.fleet.default_name()
            await self._service.fleet.ready(name)
        except WhisperdError as error:
            log.error("the default model is not available", reason=error.message)
        self._media.start_others()  # only now, so as not to be in the way of the first reply
        while self._early:
            await asyncio.to_thread(self._early.pop().end)

    # -- connections --------------------------------------------------------------------------------------------

    def _open_stdio(self, fd_in: int, fd_out: int) -> None:
        link = StdioLink(fd_in, fd_out, self._config.max_line_bytes, self._turns)
        self._stdio = Session(
            stdio_peer(),
            link,
            self,
            stdio=True,
            ordered=self._config.ordered,
            output_max_bytes=self._config.output_max_bytes,
        )
        self._service.add_session(self._stdio)
        link.start(self._stdio)

    def _accept_main(self, sock: socket.socket, peer: Peer) -> None:
        self._accept(sock, peer, control=False)

    def _accept_control(self, sock: socket.socket, peer: Peer) -> None:
        self._accept(sock, peer, control=True)

    def _accept(self, sock: socket.socket, peer: Peer, control: bool) -> None:
        config = self._config
        if not peer.roles:
            log.warning("connection refused: no role", client=peer.name)
            sock.close()
            return
        # Counted apart, so that neither kind of client can take the other's places.
        others = sum(one.control == control and not one.stdio for one in self._service.sessions)
        if others >= (_CONTROL_CONNECTIONS_MAX if control else config.connections_max):
            log.warning("connection refused: too many", client=peer.name, connections=others)
            sock.close()
            return
        limit = config.control_line_bytes if control else config.max_line_bytes
        link = SocketLink(sock, limit, self._hangups, self._control_turns if control else self._turns)
        session = Session(
            peer,
            link,
            self,
            control=control,
            ordered=config.ordered and not control,
            output_max_bytes=config.output_max_bytes,
        )
        self._service.add_session(session)
        link.start(session)

    def handle_line(self, session: Session, line: object) -> None:
        self._service.handle_line(session, line)  # type: ignore[arg-type]

    def session_ended(self, session: Session) -> None:
        self._service.session_ended(session)
        if session is self._stdio:
            self._stop_wanted.set()

    def session_drained(self, session: Session) -> None:
        self._service.session_drained(session)

    def session_lost(self, session: Session) -> None:
        self._service.session_lost(session)
        if session is self._stdio:
            self._exit_code = EXIT_NO_STDOUT
            self._stop_wanted.set()

    # -- the end ------------------------------------------------------------------------------------------------

    def _signalled(self, number: signal.Signals) -> None:
        self._signals += 1
        log.info("signal", signal=number.name, count=self._signals)
        self._stop_wanted.set()
        if self._signals > 1:
            self._stop_now.set()

    async def _drain(self) -> None:
        """Finishes what was accepted; gives up what a limit or a second signal does not leave time for."""
        service = self._service
        service.stopping = True
        service.admission.draining = True
        self._quiet.clear()
        if service.quiet:
            self._quiet.set()
        quiet = asyncio.ensure_future(self._quiet.wait())
        now = asyncio.ensure_future(self._stop_now.wait())
        timeout = self._config.drain_timeout_s or None
        self._drain_ends = asyncio.get_running_loop().time() + timeout if timeout else None
        await asyncio.wait({quiet, now}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        quiet.cancel()
        now.cancel()
        if service.abandon_all("the daemon is stopping; this was accepted but not finished") and not self._exit_code:
            self._exit_code = EXIT_GAVE_UP

    async def _shut_down(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._preloading.cancel()
        links = [session.link for session in self._service.sessions] + list(self._service.closing)
        if not await self._flush(links) and not self._exit_code:
            log.warning("replies were not read", connections=sum(link.buffered() > 0 for link in links))
            self._exit_code = EXIT_GAVE_UP
        for link in links:
            link.close()
        await asyncio.gather(self._media.stop(), self._service.fleet.stop())
        await asyncio.to_thread(self._store.close, _STORE_CLOSE_S)
        log.info("stopped", exit_code=self._exit_code)
        if self._exit_code == EXIT_GAVE_UP or intake.stuck():
            # The interpreter would wait for a thread that looks for a model, or waits for a dead disk.
            os._exit(self._exit_code)

    async def _flush(self, links: list[Link]) -> bool:
        """Whether all clients have taken their replies. The parent may take its time, as any reader of a pipe may; the
        end of the drain timeout or a second signal leaves everybody a moment and no more."""

        async def taken(link: Link) -> None:
            patient = self._stdio is not None and link is self._stdio.link
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if patient else _FLUSH_S):
                    await link.flushed()

        async def all_taken() -> None:
            async with asyncio.TaskGroup() as group:
                for link in links:
                    group.create_task(taken(link))

        flushing = asyncio.ensure_future(all_taken())
        now: asyncio.Future[Any] = asyncio.ensure_future(self._stop_now.wait())
        ends = self._drain_ends
        left_s = None if ends is None else max(0.0, ends - asyncio.get_running_loop().time())
        await asyncio.wait({flushing, now}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if not flushing.done():
            await asyncio.wait({flushing}, timeout=_FLUSH_NOW_S)
        now.cancel()
        flushing.cancel()
        return not any(link.buffered() for link in links)


def engine_settings(config: Config) -> EngineSettings:
    """The engine's part of the settings."""
    return EngineSettings(
        device=config.device,
        compute_type=config.compute_type,
        lanes=config.lanes,
        threads=config.threads,
        express_lanes=config.express_lanes,
        hang_timeout_s=config.hang_timeout_s,
        rss_max_bytes=config.worker_rss_max_bytes,
    )


def _default_socket() -> Path:
    """Raises ListenError where there is no directory for it, or one that is not this user's alone."""
    try:
        return paths.default_socket_path(create=True)
    except (WhisperdError, OSError) as error:
        raise ListenError(f"no runtime directory: {error}") from error

"""The models in memory: loaded when wanted, replaced without a gap, let go when idle.

A model is one engine behind one dispatcher. Unloading ends a process, because that is the only way by which its
memory really goes back to the system.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from whisperd.batching import Batcher
from whisperd.config import Config
from whisperd.dispatch import Dispatcher, Limits, Outcomes
from whisperd.errors import WhisperdError
from whisperd.inference.process import Engine, ModelTraits
from whisperd.log import log
from whisperd.models import names as models

MakeEngine = Callable[[str], Engine]  # by model name; raises WhisperdError; may block (it verifies files)
_ERRORS_MAX = 64  # names come from clients
_FAILED_FOR_S = 30.0  # requests for a model that does not load are refused so long before it is tried again
_POLL_IDLE_S = 1.0  # how late an idle model may go


@dataclass(eq=False)
class Loaded:
    """One model that is loading or loaded."""

    name: str
    dispatcher: Dispatcher
    ready: asyncio.Future[ModelTraits]

    @property
    def engine(self) -> Engine:
        return self.dispatcher.engine

    @property
    def idle(self) -> bool:
        """Whether it may go. One that is loading may not: jobs wait for it to be ready."""
        return self.ready.done() and self.dispatcher.idle


class Fleet:
    """Loads models by name and keeps at most `models_max` of them."""

    def __init__(self, config: Config, outcomes: Outcomes, make_engine: MakeEngine) -> None:
        self._config = config
        self._outcomes = outcomes
        self._make_engine = make_engine
        self._models: dict[str, Loaded] = {}
        self._loading: dict[str, asyncio.Task[Loaded]] = {}
        self._leaving: set[Engine] = set()
        self._default = config.model or models.default_model()  # looked up once: it reads directories
        self.start_errors: dict[str, WhisperdError] = {}  # why a model's last loading did not even begin
        self._idle_watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._config.idle_unload_s > 0:
            self._idle_watch = asyncio.get_running_loop().create_task(self._watch_idle())

    def default_name(self) -> str:
        """The model of requests that name none. Raises model_not_found, saying how to get one."""
        if self._default is None:
            raise WhisperdError(
                "model_not_found",
                "no model is installed: `pip install 'whisperd[tiny-en]'` brings tiny.en; or start with --model and "
                "a name of `whisperd models list`, or a directory",
            )
        return self._default

    def loading(self, name: str) -> bool:
        """Whether its files are being looked for and checked."""
        return name in self._loading

    def loaded(self) -> list[Loaded]:
        return list(self._models.values())

    def queued(self) -> int:
        """Windows that wait for an engine."""
        return sum(len(loaded.dispatcher.batcher) for loaded in self._models.values())

    def is_up(self, name: str) -> bool:
        """Whether `ready` would not have to wait."""
        loaded = self._models.get(name)
        return loaded is not None and loaded.ready.done() and loaded.engine.health()[0] != "failed"

    async def ready(self, name: str) -> Loaded:
        """The model, loaded; waits while it loads. Raises model_not_found, model_load_failed, overloaded.

        It is in the fleet when this returns, but may be unloaded at the caller's next await.
        """
        while True:
            loaded = self._models.get(name)
            if loaded and loaded.engine.health()[0] == "failed":
                error = loaded.engine.health()[1]
                if error and asyncio.get_running_loop().time() - loaded.dispatcher.last_used < _FAILED_FOR_S:
                    # A new one: raising the same again would hang every caller's frames on it.
                    raise WhisperdError(error.kind, error.message, **error.data)
                await self._forget(loaded)  # asked for again: another try
                continue
            if loaded is None:
                loaded = await self._load_once(name)
            await asyncio.shield(loaded.ready)
            if self._models.get(name) is loaded:
                return loaded

    async def _load_once(self, name: str) -> Loaded:
        """However many ask for it at once, a model is loaded once."""
        if name not in self._loading:
            self._loading[name] = asyncio.get_running_loop().create_task(self._load(name))
        return await asyncio.shield(self._loading[name])

    async def _load(self, name: str) -> Loaded:
        try:
            return await self._bring_up(name)
        finally:
            del self._loading[name]  # in the same step as it ends: who asks next must not get one that left since

    async def _bring_up(self, name: str) -> Loaded:
        try:
            engine = await asyncio.to_thread(self._make_engine, name)
        except Exception as error:
            if not isinstance(error, WhisperdError):
                log.exception("a model could not be looked for", model=name)
                error = WhisperdError("model_load_failed", f"{name}: {type(error).__name__}: {error}")
            if len(self.start_errors) < _ERRORS_MAX or name == self._default:
                self.start_errors[name] = error
            raise error from None
        self.start_errors.pop(name, None)
        self._check_room()
        limits = Limits(self._config.batch_rows, self._config.batch_s)
        dispatcher = Dispatcher(engine, Batcher(), self._outcomes, limits)
        loaded = Loaded(name, dispatcher, asyncio.get_running_loop().create_future())
        self._models[name] = loaded
        self._start_engine(engine, loaded.ready, dispatcher.pump)
        await asyncio.wait({loaded.ready})
        await self._trim(loaded)
        return loaded

    def _start_engine(self, engine: Engine, ready: asyncio.Future[ModelTraits], pump: Callable[[], None]) -> None:
        ready.add_done_callback(lambda done: done.cancelled() or done.exception())  # may have no listener

        def changed() -> None:
            state, error = engine.health()
            if not ready.done() and state == "failed" and error:
                ready.set_exception(error)
            elif not ready.done() and engine.traits:
                ready.set_result(engine.traits)
            pump()

        engine.changed = changed
        engine.start()
        changed()  # an engine may be ready at once

    def _check_room(self) -> None:
        """Raises overloaded where none of the loaded models could go for another."""
        if len(self._models) >= self._config.models_max and not any(loaded.idle for loaded in self._models.values()):
            raise WhisperdError(
                "overloaded",
                f"{len(self._models)} models are busy (models_max); try again later, or unload one",
                retry_after_ms=5000,
            )

    async def _trim(self, newest: Loaded) -> None:
        """Lets go of what is idle and over the limit, longest unused first, now that the newest is up."""
        while len(self._models) > self._config.models_max:
            idle = [loaded for loaded in self._models.values() if loaded.idle and loaded is not newest]
            if not idle:
                return  # they have got work meanwhile; the next model that comes looks again
            await self._forget(min(idle, key=lambda loaded: loaded.dispatcher.last_used))

    async def load(self, name: str) -> None:
        """Brings the model up anew. One that is already loaded serves on until its successor is ready."""
        loaded = self._models.get(name)
        if loaded and loaded.engine.health()[0] == "failed":
            await self._forget(loaded)
            loaded = None
        if loaded is None or not loaded.ready.done():
            await self.ready(name)
            return
        successor = await asyncio.to_thread(self._make_engine, name)
        ready: asyncio.Future[ModelTraits] = asyncio.get_running_loop().create_future()
        self._start_engine(successor, ready, lambda: None)
        try:
            await ready
        except WhisperdError:
            await successor.drain()
            raise
        if self._models.get(name) is not loaded:
            await successor.drain()
            raise WhisperdError("conflict", f"the model {name!r} was unloaded meanwhile")
        old = loaded.dispatcher.replace_engine(successor)
        loaded.dispatcher.pump()
        await self._retire(old)

    async def unload(self, name: str) -> bool:
        """Ends the model's process when it is idle. Raises conflict while it has work. False: was not loaded."""
        loaded = self._models.get(name)
        if loaded is None:
            return False
        if not loaded.idle:
            doing = "has work" if loaded.ready.done() else "is loading"
            raise WhisperdError("conflict", f"the model {name!r} {doing}; try again when it is idle")
        await self._forget(loaded)
        return True

    async def _forget(self, loaded: Loaded) -> None:
        if self._models.get(loaded.name) is loaded:
            del self._models[loaded.name]
        log.info("unloading model", model=loaded.name)
        await loaded.engine.drain()

    async def _retire(self, engine: Engine) -> None:
        """Lets an engine finish what it has in hand, then ends it."""
        self._leaving.add(engine)
        landed = asyncio.Event()
        engine.changed = landed.set
        while engine.in_flight():
            landed.clear()
            await landed.wait()
        await engine.drain()
        self._leaving.discard(engine)

    async def _watch_idle(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(_POLL_IDLE_S, self._config.idle_unload_s))
            for loaded in list(self._models.values()):
                idle_s = loop.time() - loaded.dispatcher.last_used
                if loaded.idle and idle_s >= self._config.idle_unload_s:
                    await self._forget(loaded)

    async def stop(self) -> None:
        if self._idle_watch:
            self._idle_watch.cancel()
        for task in list(self._loading.values()):
            task.cancel()
        engines = [loaded.engine for loaded in self._models.values()] + list(self._leaving)
        await asyncio.gather(*(engine.drain() for engine in engines))

    async def describe(self) -> list[dict[str, Any]]:
        """`models.list`: what is loaded, and what could be."""
        rows: dict[str, dict[str, Any]] = {
            info.name: info.to_wire() for info in await asyncio.to_thread(models.list_models)
        }
        for loaded in self._models.values():
            state, _ = loaded.engine.health()
            row = rows.setdefault(loaded.name, {"name": loaded.name, "source": "path", "multilingual": None})
            row["state"] = {"ready": "loaded", "busy": "loaded", "failed": "failed"}.get(state, "loading")
            if loaded.engine.traits:
                row["multilingual"] = loaded.engine.traits.multilingual
        return [{**row, "default": row["name"] == self._default} for row in rows.values()]

"""The control methods: what can be asked of the daemon and done to it, besides speech.

Each is a small function of the service; what it may be called with and by whom is in its schema.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from whisperd import PROTOCOL_VERSION, __version__
from whisperd.config import Loaded
from whisperd.errors import WhisperdError
from whisperd.models.names import is_path
from whisperd.process_stats import ProcessStats
from whisperd.protocol import methods
from whisperd.service import Handler, Service
from whisperd.session import Session
from whisperd.worker import Worker

_LIMITS = (
    "max_line_bytes", "control_line_bytes", "queue_max", "client_quota", "backlog_requests", "backlog_bytes",
    "output_max_bytes", "connections_max", "max_audio_bytes", "max_audio_s", "max_decode_s",
)  # fmt: skip


class Control:
    """The control methods of one service."""

    def __init__(self, service: Service, settings: Loaded, stop: Callable[[], None]) -> None:
        self._service = service
        self._settings = settings
        self._stop = stop
        self._process = ProcessStats()

    def handlers(self) -> dict[str, Handler]:
        """By method name."""
        return {
            "ping": self.ping,
            "rpc.discover": self.discover,
            "health": self.health,
            "status": self.status,
            "models.list": self.models_list,
            "models.load": self.models_load,
            "models.unload": self.models_unload,
            "config.get": self.config_get,
            "drain": self.drain,
            "resume": self.resume,
            "shutdown": self.shutdown,
            "metrics.current": self.metrics_current,
        }

    def ping(self, _session: Session, _params: dict[str, Any]) -> Mapping[str, Any]:
        return {"pong": True, "time": time.time()}

    def discover(self, _session: Session, _params: dict[str, Any]) -> Mapping[str, Any]:
        config = self._service.config
        return {
            "protocol": str(PROTOCOL_VERSION),
            "version": __version__,
            "limits": {name: getattr(config, name) for name in _LIMITS},
            "methods": {
                name: {
                    "params": method.params_schema,
                    "result": method.result_schema,
                    "role": method.role,
                }
                for name, method in methods().items()
            },
        }

    def health(self, session: Session, _params: dict[str, Any]) -> Mapping[str, Any]:
        """Healthy: it works. Degraded: it works with something missing. Unhealthy: it does not."""
        service = self._service
        degraded: list[dict[str, str]] = []
        fatal: list[dict[str, str]] = []
        if service.admission.draining:
            fatal.append({"kind": "draining", "message": "no new work is taken; `resume` ends that"})
        if not any(worker.state == "ready" for worker in service.media.workers):
            kind = "starting" if any(w.state == "starting" for w in service.media.workers) else "media_workers_down"
            fatal.append({"kind": kind, "message": "no media worker is ready"})
        fatal.extend(self._model_troubles())
        if service.store is None:
            degraded.append({"kind": "store_unavailable", "message": "no store is kept"})
        elif not service.store.state.ok and not service.store.state.elsewhere:
            # (elsewhere: another daemon keeps this file, as when several programs spawn their own; all is well)
            degraded.append({"kind": "store_unavailable", "message": service.store.state.reason or "the store is down"})
        down = [w for w in service.media.workers if w.state in ("restarting", "failed")]
        if down and not fatal:
            degraded.append({"kind": "worker_down", "message": f"{len(down)} media worker(s) are being replaced"})
        if not session.peer.same_user:  # messages name files of ours
            for reason in fatal + degraded:
                reason["message"] = "see the daemon's log"
        status = "unhealthy" if fatal else "degraded" if degraded else "healthy"
        return {"status": status, "live": True, "ready": not fatal, "reasons": fatal + degraded}

    def _model_troubles(self) -> list[dict[str, str]]:
        """Why the default model cannot answer now, if it cannot."""
        try:
            name = self._service.fleet.default_name()
        except WhisperdError as error:
            return [{"kind": error.kind, "message": error.message}]
        loaded = next((m for m in self._service.fleet.loaded() if m.name == name), None)
        if loaded is None:
            trouble = self._service.fleet.start_errors.get(name)
            if trouble:
                return [{"kind": trouble.kind, "message": trouble.message}]
            loading = self._service.fleet.loading(name)  # else it is unloaded, and a request would load it
            return [{"kind": "starting", "message": "the default model's files are being checked"}] if loading else []
        state, trouble = loaded.engine.health()
        if trouble:
            return [{"kind": trouble.kind, "message": trouble.message}]
        if state in ("ready", "busy"):
            return []
        return [{"kind": state, "message": f"the engine of the model {name!r} is {state}"}]

    def status(self, session: Session, _params: dict[str, Any]) -> Mapping[str, Any]:
        service = self._service
        workers = [_describe(worker, service.media.busy(worker)) for worker in service.media.workers]
        for loaded in service.fleet.loaded():
            for worker in loaded.engine.workers():
                busy = loaded.engine.in_flight() > 0
                workers.append({**_describe(worker, busy), "model": _shown(session, loaded.name)})
        everyone = "operate" in session.peer.roles
        return {
            "version": __version__,
            "uptime_s": round(service.uptime_s(), 3),
            "pid": os.getpid(),
            "workers": workers,
            "queue": {
                "depth": len(service.jobs),
                "backlog": sum(len(other.backlog) for other in service.sessions),
                "windows": service.fleet.queued(),
            },
            "connections": len(service.sessions),
            "draining": service.admission.draining,
            "jobs": [
                {"job": job.id, "state": job.state.value}
                for job in service.jobs.values()
                if everyone or job.client.peer.uid == session.peer.uid
            ],
        }

    async def models_list(self, session: Session, _params: dict[str, Any]) -> Mapping[str, Any]:
        rows = await self._service.fleet.describe()
        if not session.peer.same_user:
            rows = [{**row, "name": _shown(session, row["name"]), "path": None} for row in rows]
        return {"models": rows}

    async def models_load(self, _session: Session, params: dict[str, Any]) -> Mapping[str, Any]:
        await self._service.fleet.load(params["model"])
        return {"model": params["model"], "state": "loaded"}

    async def models_unload(self, _session: Session, params: dict[str, Any]) -> Mapping[str, Any]:
        if not await self._service.fleet.unload(params["model"]):
            raise WhisperdError("not_found", f"the model {params['model']!r} is not loaded")
        return {"model": params["model"], "state": "available"}

    def config_get(self, _session: Session, params: dict[str, Any]) -> Mapping[str, Any]:
        values = dataclasses.asdict(self._settings.config)
        names = [params["key"]] if params.get("key") else list(values)
        if names[0] not in values:
            raise WhisperdError("not_found", f"there is no setting {names[0]!r}")
        return {
            "config": {name: {"value": values[name], "source": self._settings.sources[name]} for name in names}
        }

    def drain(self, _session: Session, _params: dict[str, Any]) -> Mapping[str, Any]:
        self._service.admission.draining = True
        return {"draining": True}

    def resume(self, _session: Session, _params: dict[str, Any]) -> Mapping[str, Any]:
        if self._service.stopping:
            raise WhisperdError("draining", "the daemon is shutting down; that cannot be taken back")
        self._service.admission.draining = False
        return {"draining": False}

    def shutdown(self, _session: Session, _params: dict[str, Any]) -> Mapping[str, Any]:
        self._stop()
        return {"stopping": True}

    async def metrics_current(self, _session: Session, _params: dict[str, Any]) -> Mapping[str, Any]:
        service = self._service
        restarts: dict[str, int] = {}
        for worker in service.workers():
            restarts[worker.kind] = restarts.get(worker.kind, 0) + worker.restarts
        process = await asyncio.to_thread(self._process.read)  # it looks through all processes of the machine
        gauges = {"queue_depth": len(service.jobs), "process": process, "worker_restarts": restarts}
        return service.metrics.snapshot(service.now(), gauges)


def _shown(session: Session, model: str) -> str:
    """A model's name as this client may see it: of a path, only the last part for clients of another user."""
    return model if session.peer.same_user or not is_path(model) else Path(model).name


def _describe(worker: Worker, busy: bool) -> dict[str, Any]:
    state = "busy" if busy and worker.state == "ready" else worker.state
    alive = worker.state in ("starting", "ready", "stopping") and worker.pid is not None
    return {
        "kind": worker.kind,
        "pid": worker.pid if alive else None,
        "state": "stopping" if state == "stopped" else state,
        "restarts": worker.restarts,
        "rss_bytes": worker.rss_bytes() if alive else None,
    }



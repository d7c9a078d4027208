"""What the client raises: one exception for each error kind of the contract, and two of its own.

The daemon decides which kind a failure is; this module only gives it a class to catch. A kind that is not
known here (a newer daemon) is a plain RequestFailed, so that `except RequestFailed` sees every refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from whisperd.errors import KINDS


class WhisperdError(Exception):
    """Everything that the client raises for a reason of its own."""


class ConnectionLost(WhisperdError, ConnectionError):
    """The daemon cannot be reached, or went away before it answered. The request may or may not have run."""


class Timeout(WhisperdError, TimeoutError):
    """No answer in the time given; the request was cancelled at the daemon."""


class RequestFailed(WhisperdError):
    """The daemon's error: `kind`, `message`, `code`, `data` with what the kind adds; `retryable` as it is."""

    KIND: ClassVar[str] = ""
    _classes: ClassVar[dict[str, type[RequestFailed]]] = {}

    def __init__(self, error: Mapping[str, Any]) -> None:
        self.message = str(error.get("message", ""))
        self.code: int | None = error.get("code")
        self.data: dict[str, Any] = dict(error.get("data") or {})
        self.kind = str(self.data.get("kind") or self.KIND or "internal")
        self.retryable = bool(self.data.get("retryable", False))
        super().__init__(error)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        RequestFailed._classes[cls.KIND] = cls

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"

    @classmethod
    def from_wire(cls, error: Mapping[str, Any]) -> RequestFailed:
        """The exception for a JSON-RPC error object."""
        data = error.get("data")
        kind = data.get("kind") if isinstance(data, Mapping) else None
        return cls._classes.get(str(kind), RequestFailed)(error)

    @classmethod
    def local(cls, message: str) -> RequestFailed:
        """The same failure found on this side, before anything was sent."""
        code, retryable = KINDS[cls.KIND]
        return cls({"code": code, "message": message, "data": {"kind": cls.KIND, "retryable": retryable}})


class ParseError(RequestFailed):
    """The line was not JSON. Not met through this client."""

    KIND = "parse_error"


class InvalidRequest(RequestFailed):
    """The line was no JSON-RPC request. Not met through this client."""

    KIND = "invalid_request"


class MethodNotFound(RequestFailed):
    """The daemon has no method of this name."""

    KIND = "method_not_found"


class InvalidParams(RequestFailed):
    """An option is unknown or has a wrong value; `pointer` says which."""

    KIND = "invalid_params"

    @property
    def pointer(self) -> str | None:
        """JSON pointer into the params."""
        return self.data.get("pointer")


class Internal(RequestFailed):
    """The daemon has a bug; its log tells more."""

    KIND = "internal"


class LineTooLong(RequestFailed):
    """The request was larger than the daemon's --max-line-bytes: pass a path instead of bytes."""

    KIND = "line_too_long"


class Overloaded(RequestFailed):
    """Too much work is waiting; try again after `retry_after_ms`."""

    KIND = "overloaded"

    @property
    def retry_after_ms(self) -> float | None:
        """Milliseconds to wait, where the daemon says so."""
        return self.data.get("retry_after_ms")


class Draining(RequestFailed):
    """The daemon is about to stop and takes no more work."""

    KIND = "draining"


class Forbidden(RequestFailed):
    """The peer's role does not allow it."""

    KIND = "forbidden"


class AudioNotFound(RequestFailed):
    """The file is not there or may not be read."""

    KIND = "audio_not_found"


class AudioUnreadable(RequestFailed):
    """The bytes are no audio that can be decoded."""

    KIND = "audio_unreadable"


class AudioTooLong(RequestFailed):
    """More bytes or seconds than the daemon's limits."""

    KIND = "audio_too_long"


class UnsupportedLanguage(RequestFailed):
    """The model does not know the language."""

    KIND = "unsupported_language"


class ModelNotFound(RequestFailed):
    """There is no model of this name."""

    KIND = "model_not_found"


class ModelLoadFailed(RequestFailed):
    """The model is there, but could not be loaded."""

    KIND = "model_load_failed"


class DeadlineExceeded(RequestFailed):
    """`deadline_ms` passed before the work began."""

    KIND = "deadline_exceeded"


class Cancelled(RequestFailed):
    """The request was cancelled."""

    KIND = "cancelled"


class WorkerLost(RequestFailed):
    """The worker died and trying again did not help."""

    KIND = "worker_lost"


class PoisonInput(RequestFailed):
    """This very input killed a worker twice; it is not tried again."""

    KIND = "poison_input"


class NotFound(RequestFailed):
    """What the request names does not exist."""

    KIND = "not_found"


class Conflict(RequestFailed):
    """What the request asks for contradicts the present state."""

    KIND = "conflict"


class StoreUnavailable(RequestFailed):
    """The daemon's store cannot be used; transcription goes on without it."""

    KIND = "store_unavailable"

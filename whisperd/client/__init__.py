"""whisperd from Python: connect to a running daemon or spawn one, and ask it for text.

    from whisperd.client import Client

    with Client() as client:
        print(client.transcribe("a.flac", language="en").text)

`AsyncClient` is the same with await. Errors are exceptions, one for each kind of the contract, see
`whisperd.client.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from whisperd.client.audio import Audio, Pcm
from whisperd.client.errors import (
    AudioNotFound,
    AudioTooLong,
    AudioUnreadable,
    Cancelled,
    Conflict,
    ConnectionLost,
    DeadlineExceeded,
    Draining,
    Forbidden,
    Internal,
    InvalidParams,
    InvalidRequest,
    LineTooLong,
    MethodNotFound,
    ModelLoadFailed,
    ModelNotFound,
    NotFound,
    Overloaded,
    ParseError,
    PoisonInput,
    RequestFailed,
    StoreUnavailable,
    Timeout,
    UnsupportedLanguage,
    WhisperdError,
    WorkerLost,
)
from whisperd.client.results import DetectedLanguage, Transcript
from whisperd.client.sync import Client, Pending
from whisperd.messages import Segment, Word

if TYPE_CHECKING:
    from whisperd.client.aio import AsyncClient, AsyncPending

__all__ = [
    "AsyncClient",
    "AsyncPending",
    "Audio",
    "AudioNotFound",
    "AudioTooLong",
    "AudioUnreadable",
    "Cancelled",
    "Client",
    "Conflict",
    "ConnectionLost",
    "DeadlineExceeded",
    "DetectedLanguage",
    "Draining",
    "Forbidden",
    "Internal",
    "InvalidParams",
    "InvalidRequest",
    "LineTooLong",
    "MethodNotFound",
    "ModelLoadFailed",
    "ModelNotFound",
    "NotFound",
    "Overloaded",
    "ParseError",
    "Pcm",
    "Pending",
    "PoisonInput",
    "RequestFailed",
    "Segment",
    "StoreUnavailable",
    "Timeout",
    "Transcript",
    "UnsupportedLanguage",
    "WhisperdError",
    "Word",
    "WorkerLost",
]


def __getattr__(name: str) -> Any:
    """The asyncio side is imported when it is asked for: asyncio costs a command line most of its start."""
    if name in ("AsyncClient", "AsyncPending"):
        from whisperd.client import aio

        return getattr(aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

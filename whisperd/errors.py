"""The error kinds of the wire contract, each with its JSON-RPC code and whether a retry can help.

An error says who is at fault and what to do about it. Code raises `WhisperdError(kind, message)`; nothing
else decides what a client sees. Clients get the same kinds back as exceptions from `whisperd.client`.
"""

from __future__ import annotations

from typing import Any

# kind -> (JSON-RPC code, retryable: the same request may succeed later without being changed)
KINDS: dict[str, tuple[int, bool]] = {
    "parse_error": (-32700, False),
    "invalid_request": (-32600, False),
    "method_not_found": (-32601, False),
    "invalid_params": (-32602, False),
    "internal": (-32603, True),
    "line_too_long": (-32000, False),
    "overloaded": (-32001, True),
    "draining": (-32002, True),
    "forbidden": (-32003, False),
    "audio_not_found": (-32010, False),
    "audio_unreadable": (-32011, False),
    "audio_too_long": (-32012, False),
    "unsupported_language": (-32013, False),
    "model_not_found": (-32020, False),
    "model_load_failed": (-32021, False),
    "deadline_exceeded": (-32030, True),
    "cancelled": (-32031, False),
    "worker_lost": (-32040, True),
    "poison_input": (-32041, False),
    "not_found": (-32050, False),
    "conflict": (-32051, False),
    "store_unavailable": (-32060, True),
}


class WhisperdError(Exception):
    """A failure with a kind of the contract; `data` holds what the kind adds, such as `retry_after_ms`."""

    def __init__(self, kind: str, message: str, **data: Any) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.data = data
        self.code, self.retryable = KINDS[kind]

    def to_wire(self) -> dict[str, Any]:
        """The JSON-RPC error object."""
        return {
            "code": self.code,
            "message": self.message,
            "data": {"kind": self.kind, "retryable": self.retryable, **self.data},
        }

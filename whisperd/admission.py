"""Who may do what, and how much of it at once. Pure decisions; it holds counters and reads no clock.

Roles come from the kernel's word on the peer, never from what a client says. Everything that a client can pile up
has a bound here, and the refusal says when to come back.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from whisperd.errors import WhisperdError

SUBMIT, OBSERVE, OPERATE, ADMIN = "submit", "observe", "operate", "admin"
ALL_ROLES = frozenset({SUBMIT, OBSERVE, OPERATE, ADMIN})


@dataclass(frozen=True, slots=True)
class Peer:
    """The other side of a connection, as the kernel names it. `uid` is None on stdio, which is the parent's."""

    name: str
    uid: int | None
    pid: int | None
    roles: frozenset[str]
    same_user: bool  # may name paths: the daemon reads them with its own rights


def roles_of(uid: int, groups: Collection[int], daemon_uid: int, socket_gid: int | None) -> frozenset[str]:
    """The daemon's own user and root may do everything, the socket's group may use it, nobody else gets in."""
    if uid in (daemon_uid, 0):
        return ALL_ROLES
    if socket_gid is not None and socket_gid in groups:
        return frozenset({SUBMIT, OBSERVE})
    return frozenset()


def require(peer: Peer, role: str, what: str) -> None:
    """Raises forbidden, saying which role is missing."""
    if role not in peer.roles:
        raise WhisperdError("forbidden", f"{what} needs the role {role!r}; this client has {sorted(peer.roles)}")


@dataclass
class Admission:
    """How many jobs are in the house, and whether one more may come in."""

    queue_max: int
    client_quota: int
    bytes_max: int
    draining: bool = False
    jobs: int = 0
    bytes: int = 0
    by_client: dict[Any, int] = field(default_factory=dict)

    def full(self, size: int) -> bool:
        """Whether a request of so many bytes has to wait. The first one never has to, however large."""
        return self.jobs > 0 and (self.jobs >= self.queue_max or self.bytes + size > self.bytes_max)

    def check(self, client: Any, size: int, jobs_per_s: float) -> None:
        """Raises draining or overloaded; for clients that have no backlog to wait in."""
        self.check_open()
        over_quota = self.by_client.get(client, 0) >= self.client_quota
        if over_quota or self.full(size):
            whose = f"this client has {self.client_quota}" if over_quota else f"the daemon has {self.jobs}"
            raise WhisperdError(
                "overloaded",
                f"{whose} requests in progress; try again later",
                retry_after_ms=self.retry_after_ms(jobs_per_s),
            )

    def check_open(self) -> None:
        """Raises draining."""
        if self.draining:
            raise WhisperdError("draining", "the daemon takes no new work: it is draining")

    def retry_after_ms(self, jobs_per_s: float) -> int:
        """When about a tenth of the present work will be done, between 100 ms and 30 s."""
        wait_s = self.jobs / 10 / jobs_per_s if jobs_per_s > 0 else 1.0
        return int(min(30.0, max(0.1, wait_s)) * 1000)

    def enter(self, client: Any, size: int) -> None:
        self.jobs += 1
        self.bytes += size
        self.by_client[client] = self.by_client.get(client, 0) + 1

    def leave(self, client: Any, size: int) -> None:
        self.jobs -= 1
        self.bytes -= size
        left = self.by_client[client] - 1
        if left:
            self.by_client[client] = left
        else:
            del self.by_client[client]

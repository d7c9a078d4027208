"""Who may do what, and how much of it at once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisperd.admission import ADMIN, ALL_ROLES, OBSERVE, OPERATE, SUBMIT, Admission, Peer, require, roles_of
from whisperd.errors import WhisperdError

DAEMON, GROUP = 1000, 50


@pytest.mark.parametrize(
    ("uid", "groups", "socket_gid", "roles"),
    [
        (DAEMON, [], None, ALL_ROLES),
        (DAEMON, [GROUP], GROUP, ALL_ROLES),
        (0, [], None, ALL_ROLES),
        (7, [GROUP, 3], GROUP, {SUBMIT, OBSERVE}),
        (7, [3], GROUP, set()),
        (7, [GROUP], None, set()),
        (7, [], GROUP, set()),
        (65534, [], None, set()),
    ],
)
def test_roles_come_from_the_kernel_s_word(
    uid: int, groups: list[int], socket_gid: int | None, roles: set[str]
) -> None:
    """The daemon's user and root may everything, the socket's group may use it, nobody else gets in."""
    assert roles_of(uid, groups, DAEMON, socket_gid) == roles


def test_group_zero_is_a_group_like_any_other() -> None:
    """Its number is false in Python, and still it is a group that was named."""
    assert roles_of(7, [0], DAEMON, 0) == {SUBMIT, OBSERVE}


def test_a_missing_role_is_told() -> None:
    """Which one was needed, and which the client has."""
    peer = Peer("someone", 7, 1, frozenset({SUBMIT, OBSERVE}), same_user=False)
    require(peer, SUBMIT, "transcribe")
    with pytest.raises(WhisperdError, match=r"shutdown needs the role 'admin'.*\['observe', 'submit'\]") as caught:
        require(peer, ADMIN, "shutdown")
    assert caught.value.kind == "forbidden"
    with pytest.raises(WhisperdError, match="drain"):
        require(peer, OPERATE, "drain")


def test_the_first_request_always_comes_in() -> None:
    """However large: nothing that is done could make more room for it."""
    admission = Admission(queue_max=2, client_quota=2, bytes_max=100)
    assert not admission.full(1_000_000)
    admission.check("a", 1_000_000, 0.0)


def test_the_house_is_full_by_count_or_by_bytes() -> None:
    """Whichever comes first, and the bound itself is still allowed."""
    admission = Admission(queue_max=3, client_quota=9, bytes_max=100)
    admission.enter("a", 60)
    assert not admission.full(40)
    assert admission.full(41)
    admission.enter("a", 1)
    assert not admission.full(1)
    admission.enter("b", 1)
    assert admission.full(0)
    admission.leave("b", 1)
    assert not admission.full(0)


def test_one_client_cannot_take_all_places() -> None:
    """Over its quota it is told to come back, while others still get in."""
    admission = Admission(queue_max=10, client_quota=2, bytes_max=1000)
    for _ in range(2):
        admission.check("greedy", 1, 1.0)
        admission.enter("greedy", 1)
    with pytest.raises(WhisperdError, match="this client has 2") as caught:
        admission.check("greedy", 1, 1.0)
    assert caught.value.kind == "overloaded"
    assert caught.value.retryable
    admission.check("modest", 1, 1.0)


def test_a_full_house_is_told_from_a_full_quota() -> None:
    """A client that has nothing in progress learns that it is not its own fault."""
    admission = Admission(queue_max=1, client_quota=5, bytes_max=1000)
    admission.enter("other", 1)
    with pytest.raises(WhisperdError, match="the daemon has 1") as caught:
        admission.check("me", 1, 1.0)
    assert caught.value.data["retry_after_ms"] >= 100


def test_draining_refuses_before_anything_else() -> None:
    """Also where there would be room, and until it is taken back."""
    admission = Admission(queue_max=1, client_quota=1, bytes_max=1)
    admission.draining = True
    with pytest.raises(WhisperdError) as caught:
        admission.check("a", 1, 0.0)
    assert caught.value.kind == "draining"
    admission.draining = False
    admission.check_open()


@pytest.mark.parametrize(
    ("jobs", "jobs_per_s", "expected"),
    [(100, 10.0, 1000), (100, 0.0, 1000), (100, 1000.0, 100), (1, 10.0, 100), (1000, 0.1, 30_000), (0, 5.0, 100)],
)
def test_the_wait_is_a_tenth_of_the_work_within_bounds(jobs: int, jobs_per_s: float, expected: int) -> None:
    """Not so short that clients hammer, not so long that they give up; a second where nothing is known."""
    admission = Admission(queue_max=1, client_quota=1, bytes_max=1, jobs=jobs)
    assert admission.retry_after_ms(jobs_per_s) == expected


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.booleans()), max_size=100))
def test_the_counters_are_those_of_the_jobs_inside(moves: list[tuple[str, int, bool]]) -> None:
    """Whatever the order of coming and going, and clients without jobs are forgotten."""
    admission = Admission(queue_max=1000, client_quota=1000, bytes_max=10**9)
    inside: list[tuple[str, int]] = []
    for client, size, comes in moves:
        if comes or not inside:
            admission.enter(client, size)
            inside.append((client, size))
        else:
            admission.leave(*inside.pop(size % len(inside)))
        assert admission.jobs == len(inside)
        assert admission.bytes == sum(size for _, size in inside)
        assert admission.by_client == Counter(client for client, _ in inside)

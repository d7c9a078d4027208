"""What a request may do, where it waits, and that it is answered exactly once; beside the path of a job itself."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from house import Client, House, Json, as_data, audio, run, settle
from jsonschema import Draft202012Validator

from whisperd.admission import OBSERVE, SUBMIT
from whisperd.errors import WhisperdError
from whisperd.protocol import find_method, methods
from whisperd.testing import digest_of

CLIP = as_data(audio())


def only_error(client: Client) -> Json:
    """The client's only message, which is an error."""
    (reply,) = client.link.messages
    return {"id": reply["id"], **reply["error"]["data"]}


# -- lines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "id", "kind"),
    [
        (b"{", None, "parse_error"),
        (b"\xff\xfe", None, "parse_error"),
        (b"[]", None, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":7,"method":"ping","x":1}', 7, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":7,"method":"ping","params":[]}', 7, "invalid_params"),
        (b'{"jsonrpc":"2.0","id":7,"method":"pong"}', 7, "method_not_found"),
        (b'{"jsonrpc":"2.0","id":7,"method":"ping","params":{"x":1}}', 7, "invalid_params"),
        (b'{"jsonrpc":"2.0","id":7,"method":"transcribe"}', 7, "invalid_params"),
        (b'{"jsonrpc":"2.0","id":7,"method":"transcribe","params":' + b'{"a":' * 1000 + b"1" + b"}" * 1001, 7, None),
        (b'{"jsonrpc":"2.0","id":7,"method":' + b"[" * 1000 + b"]" * 1000 + b"}", 7, "invalid_request"),
    ],
)
def test_a_bad_line_gets_one_error_and_the_connection_lives(data: bytes, id: Any, kind: str | None) -> None:
    """With the id where it could be read."""

    async def test() -> None:
        async with House() as house:
            client = house.client()
            client.line(data)
            error = only_error(client)
            assert error["id"] == id
            assert kind is None or error["kind"] == kind
            assert (await client.call("ping"))["pong"] is True
            house.in_order()

    run(test)


def test_a_line_that_is_too_long_says_the_limit() -> None:
    """That of its own socket; it counts as a line that could not be read."""

    async def test() -> None:
        async with House() as house:
            client, operator = house.client(), house.client(control=True)
            for one, limit in ((client, house.config.max_line_bytes), (operator, house.config.control_line_bytes)):
                one.session.received(line_too_long())
                error = only_error(one)
                assert (error["id"], error["kind"], error["limit"]) == (None, "line_too_long", limit)
            assert house.service.metrics.counters.parse_errors == 2

    run(test)


def line_too_long() -> Any:
    """What the splitter reports."""
    from whisperd.framing import Line

    return Line(None, [])


def test_descriptors_are_closed_whatever_the_line_was() -> None:
    """Blank, bad, a notification, another method, unused, or refused."""

    async def test() -> None:
        async with House() as house:
            client = house.client()
            lines = [
                b"",
                b"  ",
                b"{",
                b'{"jsonrpc":"2.0","method":"hello"}',
                b'{"jsonrpc":"2.0","id":1,"method":"ping"}',
                b'{"jsonrpc":"2.0","id":2,"method":"transcribe","params":{"audio":{"fd":3}}}',
            ]
            fds = []
            for data in lines:
                fds.append(os.memfd_create("test"))
                client.line(data, [fds[-1]])
            assert not any(Path(f"/proc/self/fd/{fd}").exists() for fd in fds)
            assert len(client.replies) == 3
            house.in_order()

    run(test)


def test_a_descriptor_on_stdio_is_invalid_params() -> None:
    """It carries none."""

    async def test() -> None:
        async with House() as house:
            client = house.client(stdio=True)
            error = await client.refusal("transcribe", audio={"fd": 0})
            assert (error["kind"], error["pointer"]) == ("invalid_params", "/audio/fd")
            house.in_order()

    run(test)


def test_relative_paths_count_from_the_working_directory_on_stdio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent knows it; a socket client does not."""
    monkeypatch.chdir(tmp_path)
    Path("clip.wav").write_bytes(audio(1.0, "here"))

    async def test() -> None:
        async with House() as house:
            parent, stranger = house.client(stdio=True), house.client()
            assert (await parent.call("transcribe", audio={"path": "clip.wav"}))["text"].startswith(
                digest_of(audio(1.0, "here"))
            )
            assert (await stranger.refusal("transcribe", audio={"path": "clip.wav"}))["kind"] == "invalid_params"

    run(test)


def test_notifications_are_never_answered() -> None:
    """Cancel acts, anything else is counted, mistakes are ignored."""

    async def test() -> None:
        async with House() as house:
            (await house.loaded()).gate.clear()
            client = house.client()
            id = client.transcribe()
            await settle()
            client.notify("transcribe", audio=CLIP)
            client.notify("no.such.method")
            client.notify("cancel")
            client.notify("cancel", id="unknown")
            client.notify("cancel", wrong=1)
            client.line(b'{"jsonrpc":"2.0","method":"cancel","params":[1]}')
            await settle()
            assert client.link.messages == []
            assert house.service.metrics.counters.notifications_ignored == 2
            client.notify("cancel", id=id)
            assert only_error(client)["kind"] == "cancelled"
            house.in_order()

    run(test)


def test_a_handler_that_fails_unexpectedly_costs_its_own_request_only() -> None:
    """At once or later: it is answered with `internal`, and the reader of all lines goes on."""

    def broken(_session: object, _params: object) -> Mapping[str, Any]:
        raise KeyError("oops")

    async def broken_later(_session: object, _params: object) -> Mapping[str, Any]:
        await asyncio.sleep(0)
        raise ValueError("oops")

    async def test() -> None:
        async with House() as house:
            house.service.handlers |= {"health": broken, "status": broken_later}
            client = house.client()
            for method in ("health", "status"):
                assert (await client.refusal(method))["kind"] == "internal"
            assert (await client.call("ping"))["pong"] is True
            assert len(client.replies) == 3
            house.in_order()

    run(test)


# -- ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["a", "", 0, -1, 2**64 - 1])
@pytest.mark.parametrize("place", ["running", "backlog"])
def test_an_id_that_is_in_flight_is_a_conflict_and_free_again_afterwards(id: Any, place: str) -> None:
    """Answered with null, so that the first request still has one reply with its id."""

    async def test() -> None:
        async with House(queue_max=1) as house:
            engine = await house.loaded()
            engine.gate.clear()
            client = house.client(stdio=True)
            if place == "backlog":
                client.transcribe(own_id="before")
            client.transcribe(own_id=id)
            for method, params in (("transcribe", {"audio": CLIP}), ("ping", {})):
                client.send(method, id, **params)
                error = client.replies[-1]
                assert (error["id"], error["error"]["data"]["kind"]) == (None, "conflict")
                assert error["error"]["data"]["id"] == id
            client.send("ping", str(id) + "x")
            assert client.replies[-1]["id"] == str(id) + "x"
            engine.gate.set()
            await client.result(id)
            replies = len(client.replies)
            client.transcribe(own_id=id)
            while len(client.replies) == replies:
                await settle(1)
            assert "result" in client.replies[-1]
            house.in_order()

    run(test)


def test_ids_that_look_alike_are_different() -> None:
    """0, "0" and the empty string, admitted and waiting."""

    async def test() -> None:
        async with House(queue_max=1) as house:
            client = house.client(stdio=True)
            ids: list[Any] = [0, "0", "", 1, "1", -1]
            for id in ids:
                client.transcribe(own_id=id)
            for id in ids:
                await client.result(id)
            assert [(type(reply["id"]), reply["id"]) for reply in client.replies] == [(type(id), id) for id in ids]
            house.in_order()

    run(test)


def test_ids_belong_to_their_connection() -> None:
    """Two clients may use the same, and each cancels only its own by it."""

    async def test() -> None:
        async with House() as house:
            engine = await house.loaded()
            engine.gate.clear()
            one, other = house.client(), house.client()
            for client in (one, other):
                client.transcribe(own_id=1)
            await settle()
            assert await one.call("cancel", id=1) == {"cancelled": True}
            engine.gate.set()
            assert (await one.error(1))["kind"] == "cancelled"
            await other.result(1)
            house.in_order()

    run(test)


def test_a_control_request_that_takes_its_time_keeps_its_id() -> None:
    """A second one with it is a conflict, too."""

    async def test() -> None:
        async with House() as house:
            release = asyncio.Event()

            async def slow(_session: object, _params: object) -> Mapping[str, Any]:
                await release.wait()
                return {"models": []}

            house.service.handlers["models.list"] = slow
            client = house.client()
            client.send("models.list", 5)
            client.send("ping", 5)
            (reply,) = client.replies
            assert (reply["id"], reply["error"]["data"]["kind"]) == (None, "conflict")
            assert not client.session.quiet
            release.set()
            assert await client.result(5) == {"models": []}
            await client.call("ping")
            house.in_order()

    run(test)


# -- order -------------------------------------------------------------------------------------------------------


def test_replies_come_as_the_work_is_done_unless_the_order_was_asked_for() -> None:
    """Errors and control included; notifications do not wait for their turn."""

    async def test() -> None:
        async with House() as house:
            engine = await house.loaded()
            engine.gate.clear()
            free, ordered = house.client(), house.client(ordered=True)
            sent = {}
            for client in (free, ordered):
                slow = client.transcribe(audio(2.0, "slow"), language="en", progress=True)
                await settle()
                bad, ping = client.transcribe(b"BAD"), client.send("ping")
                client.line(b"{")
                fast = client.transcribe(audio(1.0, "SILENCE"))
                await settle()
                sent[client] = [slow, bad, ping, None, fast]
            slow, bad, ping, _, fast = sent[free]
            assert [reply["id"] for reply in free.replies] == [ping, None, bad, fast]
            assert ordered.replies == []
            engine.gate.set()
            await free.result(slow)
            await ordered.result(sent[ordered][-1])
            assert [reply["id"] for reply in ordered.replies] == sent[ordered]
            assert ordered.link.messages[0]["method"] == "transcribe.segment"
            house.in_order()

    run(test)


def test_answers_that_wait_for_their_turn_stop_the_reading_and_never_the_one_that_they_wait_for() -> None:
    """In order: a first request that itself waits for room in the queue, and a megabyte of answers behind it."""

    async def test() -> None:
        async with House(queue_max=1) as house:
            engine = await house.loaded()
            engine.gate.clear()
            other, parent = house.client(), house.client(stdio=True, ordered=True)
            blocking = other.transcribe()
            first = parent.transcribe(audio(1.0, "first"))
            assert len(parent.session.backlog) == 1
            size = len(json.dumps(await other.call("rpc.discover")))
            asked = [parent.send("rpc.discover") for _ in range((2 << 20) // size)]
            last = parent.transcribe(audio(1.0, "last"))
            assert parent.link.paused
            assert parent.replies == []
            engine.gate.set()
            await other.result(blocking)
            await parent.result(last)
            assert [reply["id"] for reply in parent.replies] == [first, *asked, last]
            assert not parent.link.paused
            house.in_order()

    run(test)


# -- cancelling --------------------------------------------------------------------------------------------------


def test_work_is_cancelled_wherever_it_is() -> None:
    """With a media worker, waiting for the engine, in the engine, in the backlog: one reply, `cancelled`."""

    async def test() -> None:
        async with House(queue_max=4) as house:
            engine = await house.loaded()
            engine.gate.clear()
            client = house.client(stdio=True)
            running = [client.transcribe(audio(1.0, str(n)), beam_size=n + 1) for n in range(3)]
            await settle(50)
            fresh, waiting = client.transcribe(), client.transcribe()
            assert len(client.session.backlog) == 1
            for id in (waiting, fresh, *running):
                assert await client.call("cancel", id=id) == {"cancelled": True}
                assert (await client.error(id))["kind"] == "cancelled"
                assert await client.call("cancel", id=id) == {"cancelled": False}
            engine.gate.set()
            await settle()
            assert len(client.replies) == 15
            assert house.service.metrics.snapshot(0.0, {})["requests"]["cancelled"] == 4
            house.in_order()

    run(test)


def test_a_job_is_cancelled_by_its_server_wide_name() -> None:
    """From any connection of the same user; another user's job needs the operator's role."""

    async def test() -> None:
        async with House() as house:
            (await house.loaded()).gate.clear()
            owner, twin = house.client(uid=7, roles={SUBMIT}), house.client(uid=7, roles={SUBMIT})
            stranger, operator = house.client(uid=8, roles={SUBMIT}), house.client(uid=9)
            ids = [owner.transcribe(), owner.transcribe()]
            await settle()
            one, two = (job for job in house.service.jobs.values())
            assert (await stranger.refusal("cancel", job=one.id))["kind"] == "forbidden"
            assert await twin.call("cancel", job=one.id) == {"cancelled": True}
            assert await operator.call("cancel", job=two.id) == {"cancelled": True}
            assert await operator.call("cancel", job=two.id) == {"cancelled": False}
            assert [(await owner.error(id))["kind"] for id in ids] == ["cancelled"] * 2
            house.in_order()

    run(test)


# -- roles -------------------------------------------------------------------------------------------------------


def test_each_method_needs_its_role() -> None:
    """A member of the socket's group may submit and observe, and nothing else."""

    async def test() -> None:
        async with House() as house:
            member, nobody = house.client(uid=7, roles={SUBMIT, OBSERVE}), house.client(uid=8, roles=())
            for name, method in methods().items():
                if method.role not in (SUBMIT, OBSERVE):
                    assert (await member.refusal(name))["kind"] == "forbidden"
                assert (await nobody.refusal(name))["kind"] == "forbidden"
            assert (await member.call("status"))["draining"] is False

    run(test)


def test_speech_is_not_served_on_the_control_socket() -> None:
    """It has its own reader, never behind queued work."""

    async def test() -> None:
        async with House() as house:
            operator = house.client(control=True)
            for method in ("transcribe", "detect_language"):
                assert (await operator.refusal(method, audio=CLIP))["kind"] == "method_not_found"
            assert (await operator.call("ping"))["pong"] is True

    run(test)


def test_a_client_of_another_user_may_not_name_paths(tmp_path: Path) -> None:
    """Neither for audio nor for models: the daemon would open them with rights that the client may lack."""
    file = tmp_path / "clip.wav"
    file.write_bytes(audio())

    async def test() -> None:
        async with House() as house:
            stranger = house.client(uid=7, roles={SUBMIT}, same_user=False)
            error = await stranger.refusal("transcribe", audio={"path": str(file)})
            assert error["kind"] == "forbidden"
            assert "descriptor" in error["message"]
            assert (await stranger.refusal("transcribe", audio=CLIP, model=str(tmp_path)))["kind"] == "forbidden"
            fd = os.open(file, os.O_RDONLY)
            id = stranger.send("transcribe", audio={"fd": 0}, fds=[fd])
            assert (await stranger.result(id))["text"].startswith(digest_of(audio()))
            await stranger.call("detect_language", audio=CLIP)
            house.in_order()

    run(test)


# -- backlog and quota -------------------------------------------------------------------------------------------


def test_on_stdio_what_is_beyond_the_queue_waits_and_is_served_in_order() -> None:
    """Control methods and cancel overtake it."""

    async def test() -> None:
        async with House(queue_max=3) as house:
            engine = await house.loaded()
            engine.gate.clear()
            parent = house.client(stdio=True)
            ids = [parent.transcribe(audio(1.0, str(n))) for n in range(10)]
            await settle()
            status = await parent.call("status")
            assert status["queue"]["depth"] == 3
            assert status["queue"]["backlog"] == 7
            assert await parent.call("cancel", id=ids[5]) == {"cancelled": True}
            engine.gate.set()
            for number, id in enumerate(ids):
                reply = await parent.reply(id)
                assert ("result" in reply) == (number != 5)
            assert parent.session.backlog_bytes == 0
            house.in_order()

    run(test)


def test_only_a_full_backlog_stops_reading_and_room_starts_it_again() -> None:
    """By count, and by bytes."""

    async def test() -> None:
        for limits in ({"backlog_requests": 4}, {"backlog_bytes": 4 * 42_000}):
            async with House(queue_max=1, **limits) as house:
                engine = await house.loaded()
                engine.gate.clear()
                parent = house.client(stdio=True)
                ids = [parent.transcribe() for _ in range(4)]
                assert not parent.link.paused
                ids.append(parent.transcribe())
                assert parent.link.paused
                operator = house.client(control=True)
                assert (await operator.call("status"))["queue"]["backlog"] == 4
                engine.gate.set()
                await parent.result(ids[0])
                assert not parent.link.paused
                for id in ids:
                    await parent.result(id)
                house.in_order()

    run(test)


def test_cancelling_in_a_full_backlog_makes_room() -> None:
    """The cancel may have come in the same chunk as what filled it."""

    async def test() -> None:
        async with House(queue_max=1, backlog_requests=2) as house:
            engine = await house.loaded()
            engine.gate.clear()
            parent = house.client(stdio=True)
            ids = [parent.transcribe() for _ in range(3)]
            assert parent.link.paused
            parent.notify("cancel", id=ids[1])
            assert not parent.link.paused
            engine.gate.set()
            for id in ids:
                await parent.reply(id)
            house.in_order()

    run(test)


def test_a_deadline_runs_in_the_backlog_too() -> None:
    """It counts from arrival, and is told when it is reached, not when the turn comes."""

    async def test() -> None:
        async with House(queue_max=1) as house:
            (await house.loaded()).gate.clear()
            parent = house.client(stdio=True)
            first, late = parent.transcribe(), parent.transcribe(deadline_ms=1)
            assert (await parent.error(late))["kind"] == "deadline_exceeded"
            assert len(parent.replies) == 1
            house.engine.gate.set()
            await parent.result(first)
            house.in_order()

    run(test)


def test_what_cannot_be_admitted_when_its_turn_comes_is_told() -> None:
    """And those behind it go on."""

    async def test() -> None:
        async with House(queue_max=1) as house:
            (await house.loaded()).gate.clear()
            parent = house.client(stdio=True)
            ids = [
                parent.transcribe(),
                parent.send("transcribe", audio={"fd": 0}),
                parent.send("transcribe", audio={"fd": 1}),
                parent.transcribe(),
            ]
            house.engine.gate.set()
            kinds = ["result" if "result" in (await parent.reply(id)) else "error" for id in ids]
            assert kinds == ["result", "error", "error", "result"]
            house.in_order()

    run(test)


def test_a_socket_client_over_its_quota_is_told_when_to_come_back() -> None:
    """Others are served, and control methods are not counted."""

    async def test() -> None:
        async with House(client_quota=3, queue_max=5) as house:
            engine = await house.loaded()
            engine.gate.clear()
            greedy, modest = house.client(), house.client()
            ids = [greedy.transcribe() for _ in range(3)]
            error = await greedy.error(greedy.transcribe())
            assert (error["kind"], error["retryable"]) == ("overloaded", True)
            assert 100 <= error["retry_after_ms"] <= 30_000
            await greedy.call("ping")
            ids_of_modest = [modest.transcribe() for _ in range(2)]
            assert (await modest.error(modest.transcribe()))["kind"] == "overloaded"  # the queue itself is full
            engine.gate.set()
            for client, mine in ((greedy, ids), (modest, ids_of_modest)):
                for id in mine:
                    await client.result(id)
            await greedy.result(greedy.transcribe())
            house.in_order()

    run(test)


def test_what_would_pile_up_for_a_client_that_does_not_read_waits_until_it_does() -> None:
    """On stdio, where replies cannot be left out and the parent cannot be dropped for being slow."""

    async def test() -> None:
        async with House() as house:
            parent, other = house.client(stdio=True), house.client()
            parent.link.unread = 2 << 20
            id = parent.transcribe()
            await other.result(other.transcribe())
            assert (len(parent.session.backlog), parent.replies) == (1, [])
            parent.link.unread = 0
            parent.session.drained()
            await parent.result(id)
            parent.session.lost()
            parent.session.drained()
            house.in_order()

    run(test)


# -- leaving -----------------------------------------------------------------------------------------------------


def test_the_work_of_a_client_that_is_gone_is_cancelled() -> None:
    """Running and waiting; others are not touched."""

    async def test() -> None:
        async with House(queue_max=3) as house:
            engine = await house.loaded()
            engine.gate.clear()
            gone, other = house.client(stdio=True), house.client()
            kept = other.transcribe()
            for _ in range(5):
                gone.transcribe()
            await settle()
            gone.session.lost()
            assert [job.client for job in house.service.jobs.values()] == [other.session]
            assert gone.session not in house.service.sessions
            engine.gate.set()
            await other.result(kept)
            await settle()
            assert gone.link.messages == []
            assert house.service.metrics.snapshot(0.0, {})["requests"]["cancelled"] == 2
            house.in_order()

    run(test)


def test_a_client_that_does_not_read_its_replies_is_dropped_with_its_work() -> None:
    """Its connection is closed when the limit is passed, and nobody else notices."""

    async def test() -> None:
        async with House() as house:
            engine = await house.loaded()
            deaf, other = house.client(output_max_bytes=1000), house.client()
            engine.gate.clear()
            for _ in range(3):
                deaf.transcribe()
            id = other.transcribe()
            await settle()
            deaf.link.unread = 1001
            deaf.send("ping")
            assert deaf.link.aborted
            engine.gate.set()
            await other.result(id)
            await settle()
            house.in_order()

    run(test)


def test_after_a_half_close_the_replies_still_come_and_then_the_connection_is_closed() -> None:
    """At once, if nothing is owed."""

    async def test() -> None:
        async with House() as house:
            client, idle, parent = house.client(), house.client(), house.client(stdio=True)
            id = client.transcribe()
            for one in (client, idle, parent):
                one.session.ended()
            assert (client.link.closed, idle.link.closed, parent.link.closed) == (False, True, False)
            await client.result(id)
            assert client.link.closed
            assert house.service.sessions == {parent.session}

    run(test)


def test_a_client_that_has_not_read_all_when_its_connection_is_closed_is_waited_for() -> None:
    """It is owed nothing, but what it was sent is still on its way."""

    async def test() -> None:
        async with House() as house:
            client = house.client()
            id = client.transcribe()
            client.session.ended()
            client.link.unread = 500
            await client.result(id)
            assert client.link.closed
            assert house.service.sessions == set()
            await settle()
            assert house.service.closing == set()  # this link says at once that everything was read
            house.in_order()

    run(test)


def test_a_store_that_breaks_costs_nobody_a_reply() -> None:
    """Nor the next one its turn."""

    class Broken:
        def record_request(self, _row: object) -> None:
            raise OSError(28, "No space left on device")

    async def test() -> None:
        async with House(queue_max=1) as house:
            house.service.store = Broken()  # type: ignore[assignment]
            parent = house.client(stdio=True)
            for id in [parent.transcribe() for _ in range(3)]:
                await parent.result(id)
            house.in_order()

    run(test)


def test_quiet_is_told_when_nothing_is_owed_to_anybody_any_more() -> None:
    """That is when a draining daemon may end."""

    async def test() -> None:
        async with House(queue_max=1) as house:
            quiet = 0

            def tell() -> None:
                nonlocal quiet
                quiet += 1

            house.service.on_quiet, house.service.stopping = tell, True
            client, parent = house.client(), house.client(stdio=True)
            first, second, bad = parent.transcribe(), parent.transcribe(), parent.send("transcribe", audio={"fd": 0})
            await parent.result(second)
            assert quiet == 1
            await parent.error(bad)
            client.session.ended()
            assert quiet == 2
            assert first in [reply["id"] for reply in parent.replies]

    run(test)


def test_draining_refuses_new_work_and_finishes_what_was_accepted() -> None:
    """The backlog was accepted; resume takes it back."""

    async def test() -> None:
        async with House(queue_max=1) as house:
            engine = await house.loaded()
            engine.gate.clear()
            parent, client = house.client(stdio=True), house.client()
            ids = [parent.transcribe() for _ in range(3)]
            assert await client.call("drain") == {"draining": True}
            for one in (parent, client):
                error = await one.error(one.transcribe())
                assert (error["kind"], error["retryable"]) == ("draining", True)
            assert (await client.call("health"))["ready"] is False
            engine.gate.set()
            for id in ids:
                await parent.result(id)
            assert await client.call("resume") == {"draining": False}
            await client.result(client.transcribe())
            house.service.stopping = True
            assert (await client.refusal("resume"))["kind"] == "draining"
            house.in_order()

    run(test)


def test_whatever_is_abandoned_is_answered_with_draining() -> None:
    """Running, waiting and pending control requests; in order, where order was promised."""

    async def test() -> None:
        async with House(queue_max=3) as house:
            (await house.loaded()).gate.clear()

            async def never(_session: object, _params: object) -> Mapping[str, Any]:
                await asyncio.Event().wait()
                raise AssertionError

            house.service.handlers["models.list"] = never
            parent, client = house.client(stdio=True, ordered=True), house.client()
            other, pending = client.transcribe(), client.send("models.list")
            ids = [parent.transcribe() for _ in range(4)]
            await settle()
            assert house.service.abandon_all("the daemon ends") == 6
            assert [reply["id"] for reply in parent.replies] == ids
            for one, mine in ((parent, ids), (client, [other, pending])):
                for id in mine:
                    assert (await one.error(id))["kind"] == "draining"
            assert house.service.abandon_all("again") == 0
            await settle()
            house.in_order()

    run(test)


# -- the control methods -----------------------------------------------------------------------------------------


PARAMS: dict[str, Json] = {
    "cancel": {"id": "none"},
    "models.load": {"model": "fake"},
    "models.unload": {"model": "fake"},
    "config.get": {"key": "model"},
}
CONTROL = sorted(set(methods()) - {"transcribe", "detect_language"})


@pytest.mark.parametrize("name", CONTROL)
def test_every_control_method_answers_as_its_schema_says(name: str) -> None:
    """With the whole service behind it, idle and at work."""

    async def test() -> None:
        async with House() as house:
            client = house.client()
            await client.result(client.transcribe())
            check = Draft202012Validator(find_method(name).result_schema).validate
            check(await client.call(name, **PARAMS.get(name, {})))
            if name != "models.unload":
                client.transcribe()
                check(await client.call(name, **PARAMS.get(name, {})))
            assert house.stops == (2 if name == "shutdown" else 0)

    run(test)


def test_every_method_that_has_a_schema_has_somebody_to_do_it() -> None:
    """And nothing is done that has no schema."""

    async def test() -> None:
        async with House() as house:
            assert set(house.service.handlers) | {"transcribe", "detect_language"} == set(methods())

    run(test)


def test_status_shows_only_one_s_own_jobs_to_who_may_only_observe() -> None:
    """An operator sees all."""

    async def test() -> None:
        async with House() as house:
            (await house.loaded()).gate.clear()
            one, other = house.client(uid=7, roles={SUBMIT, OBSERVE}), house.client(uid=8, roles={SUBMIT, OBSERVE})
            operator = house.client(uid=9)
            one.transcribe()
            other.transcribe()
            await settle()
            assert len((await one.call("status"))["jobs"]) == 1
            jobs = (await operator.call("status"))["jobs"]
            assert [job["state"] for job in jobs] == ["running", "running"]

    run(test)


def test_counters_tell_what_came_in_and_what_became_of_it() -> None:
    """Each request is counted once on each side."""

    async def test() -> None:
        async with House() as house:
            client = house.client()
            for content in (audio(), audio(2.0), b"BAD"):
                await client.reply(client.transcribe(content))
            client.line(b"{")
            await client.refusal("transcribe")
            metrics = await client.call("metrics.current")
            counts = {name: metrics["requests"][name] for name in ("accepted", "succeeded", "failed", "cancelled")}
            assert counts == {"accepted": 3, "succeeded": 2, "failed": 1, "cancelled": 0}
            assert metrics["requests"]["failed_by_kind"] == {"audio_unreadable": 1}
            assert metrics["lines"] == {"received": 6, "parse_errors": 1, "invalid": 1}
            assert metrics["audio_s"] == 3.0
            assert metrics["queue_depth"] == 0

    run(test)


def test_a_service_without_a_model_serves_those_who_name_one() -> None:
    """Requests that name none are refused at once, and health says why."""

    async def test() -> None:
        async with House(model=None) as house:
            house.service.fleet.default_name = no_model  # type: ignore[method-assign]
            client = house.client()
            assert (await client.error(client.transcribe()))["kind"] == "model_not_found"
            await client.result(client.transcribe(model="fake"))
            assert (await client.call("health"))["status"] == "unhealthy"
            house.in_order()

    run(test)


def no_model() -> str:
    """As where no model is installed."""
    raise WhisperdError("model_not_found", "no model is installed")

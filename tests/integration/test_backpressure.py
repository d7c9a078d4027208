"""Too much of everything: requests, bytes, clients, readers that do not read. Bounds hold, and nobody is forgotten."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from daemon import Client, Daemon, Start, audio, digest_of, request, transcription

pytestmark = pytest.mark.integration
MIB = 1 << 20


def test_a_client_over_its_quota_is_told_when_to_come_back(start: Start) -> None:
    """Others are not concerned, control methods are not counted, and afterwards there is room again."""
    daemon = start(client_quota=3)
    greedy, modest = daemon.connect(), daemon.connect()
    held = [greedy.submit(b"HOLD %d" % number) for number in range(3)]
    error = greedy.refusal("transcribe", audio=audio(b"one too many"))
    assert (error["kind"], error["retryable"]) == ("overloaded", True)
    assert 0 < error["retry_after_ms"] <= 30_000
    assert greedy.call("status")["queue"]["depth"] == 3
    assert modest.call("transcribe", audio=audio(b"modest"))["text"] == digest_of(b"modest")
    daemon.wait_until_held(3)
    daemon.release()
    assert [greedy.result(id)["text"] for id in held] == [digest_of(b"HOLD %d" % number) for number in range(3)]
    assert greedy.call("transcribe", audio=audio(b"again"))["text"] == digest_of(b"again")


def test_a_cancelled_request_gives_its_place_back(start: Start) -> None:
    """At once, even while the engine still has it in hand."""
    daemon = start(client_quota=1)
    client = daemon.connect()
    held = client.submit(b"HOLD")
    daemon.wait_until_held()
    assert client.call("cancel", id=held) == {"cancelled": True}
    assert client.error(held)["kind"] == "cancelled"
    assert client.call("cancel", id=held) == {"cancelled": False}
    assert client.call("transcribe", audio=audio(b"next"))["text"] == digest_of(b"next")


def test_a_cancel_notification_acts_without_being_answered(start: Start) -> None:
    """The request itself is, once."""
    daemon = start("--stdio")
    held = daemon.stdio.submit(b"HOLD")
    daemon.wait_until_held()
    daemon.stdio.send(request("cancel", id=held))
    assert daemon.stdio.error(held)["kind"] == "cancelled"
    assert daemon.stdio.call("ping")["pong"] is True


def test_a_full_queue_refuses_sockets_and_not_their_control_methods(start: Start) -> None:
    """All clients together; the control socket answers as ever."""
    daemon = start(queue_max=4)
    clients = [daemon.connect() for _ in range(5)]
    held = [(client, client.submit(b"HOLD")) for client in clients[:4]]
    daemon.wait_until_held(4)
    error = clients[4].refusal("transcribe", audio=audio(b"x"))
    assert error["kind"] == "overloaded"
    assert error["retry_after_ms"] > 0
    assert clients[4].call("ping")["pong"] is True
    assert daemon.control().call("status")["queue"]["depth"] == 4
    daemon.release()
    for client, id in held:
        assert client.result(id)["text"] == digest_of(b"HOLD")
    assert clients[4].call("transcribe", audio=audio(b"x"))["text"] == digest_of(b"x")


def test_bytes_in_the_queue_are_bounded_like_requests(start: Start) -> None:
    """But a single large request is always taken: it could never fit otherwise."""
    daemon = start(backlog_bytes=100_000)
    client = daemon.connect()
    large = client.submit(b"HOLD" + bytes(200_000))
    daemon.wait_until_held()
    assert client.refusal("transcribe", audio=audio(b"x"))["kind"] == "overloaded"
    daemon.release()
    assert client.result(large)


def test_ten_thousand_requests_piped_at_once_are_answered_once_each(start: Start) -> None:
    """With the default limits; meanwhile control methods overtake them on stdio, and control.sock answers."""
    daemon = start("--stdio", "--control-socket", "control.sock", environ={"GATE_LANES": "1"})
    client = daemon.stdio
    control = daemon.connect(daemon.home / "control.sock")
    client.send(transcription("first", b"HOLD"))
    daemon.wait_until_held()
    lines = [transcription(number, b"%d" % number) for number in range(10_500)]
    for number in range(10_500):
        client.expect(number, "transcribe")
    client.send_bytes(b"".join(lines))
    assert client.call("ping")["pong"] is True
    queue = control.call("status")["queue"]
    assert queue["depth"] + queue["backlog"] == 10_501
    client.send(request("cancel", "cancel", id=10_499))
    assert client.error(10_499)["kind"] == "cancelled"
    assert client.result("cancel") == {"cancelled": True}
    daemon.release()
    assert client.result("first")["text"] == digest_of(b"HOLD")
    for number in range(10_499):
        assert client.result(number)["text"] == digest_of(b"%d" % number)


@pytest.mark.parametrize("limit", [{"backlog_requests": 100}, {"backlog_bytes": 10_000}])
def test_a_full_backlog_stops_reading_and_control_still_answers(start: Start, limit: dict[str, int]) -> None:
    """By number and by bytes; then all is answered, in spite of a parent that wrote before it read."""
    daemon = start("--stdio", "--control-socket", "control.sock", queue_max=10, **limit)
    client = daemon.stdio
    control = daemon.connect(daemon.home / "control.sock")
    lines = [transcription(number, b"HOLD %d" % number, initial_prompt="x" * 1000) for number in range(1_200)]
    for line in lines:
        client.note(line)
    writing = client.send_in_background(lines)
    control.until("status", lambda status: status["queue"]["backlog"] >= 9)
    for _ in range(50):
        received = control.call("metrics.current")["lines"]["received"]
    assert received < 600  # the limit, and what one read may bring beyond it
    assert writing.is_alive()
    daemon.release()
    texts = {number: client.result(number)["text"] for number in range(1_200)}
    assert texts == {number: digest_of(b"HOLD %d" % number) for number in range(1_200)}
    writing.join()


def test_a_request_that_is_cancelled_in_the_backlog_makes_room(start: Start) -> None:
    """The one that could not be read then is."""
    daemon = start("--stdio", queue_max=1, backlog_requests=3)
    client = daemon.stdio
    client.send(transcription("busy", b"HOLD"))
    daemon.wait_until_held()
    client.send(transcription(1, b"1") + transcription(2, b"2") + transcription(3, b"3", deadline_ms=200))
    assert client.error(3)["kind"] == "deadline_exceeded"
    assert client.call("cancel", id=2) == {"cancelled": True}
    assert client.error(2)["kind"] == "cancelled"
    assert client.call("cancel", id="busy") == {"cancelled": True}
    assert client.error("busy")["kind"] == "cancelled"
    assert client.result(1)["text"] == digest_of(b"1")


def audio_file(home: Path, windows: int) -> Path:
    """A file that costs no disk, of so many windows of a second."""
    path = home / f"{windows} windows"
    with open(path, "wb") as file:
        file.truncate(windows * 32_000)
    return path


def test_news_is_left_out_for_a_client_that_reads_late_and_replies_are_not(start: Start, home: Path) -> None:
    """Progress is dropped and counted; every reply is whole."""
    daemon = start(window_s=1, environ={"GATE_LANES": "1"})
    control, client = daemon.control(), daemon.connect()
    path = audio_file(home, 100)
    ids = [client.ask("transcribe", audio={"path": str(path)}, progress=True, timestamps="word") for _ in range(30)]
    daemon.log.wait_for("outcome=ok", 30)
    metrics = control.call("metrics.current")
    assert metrics["notifications"]["dropped"] > 0
    for id in ids:
        assert len(client.result(id)["segments"]) == 100
    assert len(client.notifications) == 2 * 30 * 100 - metrics["notifications"]["dropped"]
    assert client.call("ping")["pong"] is True


def test_a_client_that_never_reads_is_dropped_and_its_work_cancelled(start: Start) -> None:
    """Past the output limit; the work of others goes on."""
    daemon = start(output_max_bytes=300_000)
    control, deaf, other = daemon.control(), daemon.connect(), daemon.connect()
    held = other.submit(b"HOLD by another")
    deaf.submit(b"HOLD")
    daemon.wait_until_held(2)
    for _ in range(40):
        deaf.send(request("rpc.discover"))
        deaf.ask("rpc.discover")
    control.until("metrics.current", lambda metrics: metrics["requests"]["cancelled"] == 1)
    assert control.call("status")["connections"] == 2
    assert daemon.log.count("does not read") == 1
    daemon.release()
    assert other.result(held)["text"] == digest_of(b"HOLD by another")


def test_a_burst_of_small_requests_with_large_replies_is_no_offence(client: Client) -> None:
    """93 MB of replies to 180 kB of requests, for a client that reads as it should."""
    for number in range(3_000):
        client.expect(number, "rpc.discover")
    writing = client.send_in_background([b"".join(request("rpc.discover", number) for number in range(3_000))])
    assert [client.result(number)["protocol"] for number in range(3_000)] == ["1"] * 3_000
    writing.join()


def test_a_parent_that_never_reads_ends_its_daemon(start: Start) -> None:
    """Past the output limit: as if stdout had vanished."""
    daemon = start("--stdio", output_max_bytes=300_000)
    daemon.stdio.submit(b"HOLD")
    daemon.wait_until_held()
    for _ in range(20):
        daemon.stdio.ask("rpc.discover")
    assert daemon.wait() == 74
    assert daemon.log.count("outcome=cancelled") == 1


def test_a_parent_that_reads_late_loses_nothing(start: Start, home: Path) -> None:
    """What waits in the backlog is not begun while the replies of what was done are not read."""
    limits = {"queue_max": 4, "output_max_bytes": 3 * MIB // 2}
    daemon = start("--stdio", "--control-socket", "control.sock", window_s=1, **limits)
    client = daemon.stdio
    control = daemon.connect(daemon.home / "control.sock")
    path = audio_file(home, 300)
    ids = [client.ask("transcribe", audio={"path": str(path)}, timestamps="word") for _ in range(40)]
    control.until("status", lambda status: status["queue"]["depth"] == 0 and status["queue"]["backlog"] > 0)
    for id in ids:
        assert len(client.result(id)["segments"]) == 300


def test_answers_that_wait_for_an_earlier_one_are_bounded(start: Start) -> None:
    """With --ordered a single long file could make the daemon keep any number of replies."""
    daemon = start("--stdio", "--ordered", "--control-socket", "control.sock")
    client = daemon.stdio
    control = daemon.connect(daemon.home / "control.sock")
    client.send(transcription("held", b"HOLD"))
    daemon.wait_until_held()
    before = daemon.status_bytes("VmRSS")
    writing = client.send_in_background(request("rpc.discover", number) for number in range(3_000))
    for number in range(3_000):
        client.expect(number, "rpc.discover")
    received = [control.call("metrics.current")["lines"]["received"] for _ in range(2)]
    while received[-1] != received[-2] + 1 or received[-1] < 35:  # each asking counts as one
        received.append(control.call("metrics.current")["lines"]["received"])
    assert daemon.status_bytes("VmRSS") - before < 60 * MIB
    daemon.release()
    assert client.result("held")["text"] == digest_of(b"HOLD")
    assert [client.result(number)["protocol"] for number in range(3_000)] == ["1"] * 3_000
    writing.join()


def test_backlogged_work_is_answered_in_order_too(start: Start) -> None:
    """--ordered and a backlog together."""
    daemon = start("--stdio", "--ordered", queue_max=2, backlog_requests=50)
    client = daemon.stdio
    lines = [transcription(number, b"%d" % number) for number in range(500)]
    for line in lines:
        client.note(line)
    writing = client.send_in_background(lines)
    assert [reply and reply["id"] for reply in (client.receive() for _ in range(500))] == list(range(500))
    writing.join()


def test_a_crowd_is_served_and_the_refused_come_back(start: Start) -> None:
    """Eight clients with sixty requests each, quotas of ten: who retries what was refused gets everything."""
    daemon = start(client_quota=10, queue_max=40)
    clients = [daemon.connect() for _ in range(8)]
    left: dict[int, Client] = dict(enumerate(clients))
    refusals: Counter[str] = Counter()
    for number, client in left.items():
        todo = {client.submit(b"%d of %d" % (n, number)): b"%d of %d" % (n, number) for n in range(60)}
        while todo:
            again = []
            for id, data in todo.items():
                reply = client.reply(id)
                if "result" in reply:
                    assert reply["result"]["text"] == digest_of(data)
                else:
                    refusals[reply["error"]["data"]["kind"]] += 1
                    again.append(data)
            todo = {client.submit(data): data for data in again}
    assert set(refusals) <= {"overloaded"}


def test_limits_hold_for_the_sum_of_everything(everyday: Daemon) -> None:
    """After all the others: the everyday daemon owes nothing and holds nothing."""
    status = everyday.stdio.call("status")
    assert (status["queue"]["depth"], status["queue"]["backlog"]) == (0, 0)

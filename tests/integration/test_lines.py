"""Lines on the wire, on stdio and on a socket alike: what counts as one, what is answered, and with what."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from daemon import Client, Daemon, SocketClient, Start, audio, digest_of, request, transcription

pytestmark = pytest.mark.integration
MIB = 1 << 20


def kind_of(reply: dict[str, object] | None) -> object:
    """The error's kind, and that it says nothing else than an error without an id."""
    assert reply is not None
    assert reply["id"] is None
    return reply["error"]["data"]["kind"]  # type: ignore[index]


def test_a_request_gets_the_reply_to_its_own_input(client: Client) -> None:
    """The fake engine's text is a digest of the input, so a mix-up would show."""
    ids = {client.submit(b"input %d" % number): b"input %d" % number for number in range(20)}
    assert {id: client.result(id)["text"] for id in ids} == {id: digest_of(data) for id, data in ids.items()}


@pytest.mark.parametrize(
    "line",
    [
        b"{not json",
        b'{"jsonrpc": "2.0", "id": 7, "method": "ping"',
        b'{"jsonrpc": "2.0", "id": 7, "method": "pi\xffng"}',
        b'{"jsonrpc": "2.0", "id": 7, "method": "ping", "params": {"a": "\xed\xa0\x80"}}',
        b'{"jsonrpc": "2.0", "id": NaN, "method": "ping"}',
        b"\xef\xbb\xbf{}",
        b"[" * 5000,
    ],
)
def test_what_is_not_json_in_utf8_is_a_parse_error_and_the_connection_goes_on(client: Client, line: bytes) -> None:
    """Bad JSON, bad UTF-8, an encoded surrogate, NaN, a byte order mark, brackets without end."""
    client.send_bytes(line + b"\n")
    assert kind_of(client.receive()) == "parse_error"
    assert client.call("ping")["pong"] is True


def test_a_newline_inside_a_request_makes_two_bad_lines(client: Client) -> None:
    """A newline always ends a line, so a pretty-printed request is none."""
    client.send_bytes(b'{"jsonrpc": "2.0", "id": 7,\n"method": "ping"}\n')
    assert [kind_of(client.receive()), kind_of(client.receive())] == ["parse_error", "parse_error"]
    assert client.call("ping")["pong"] is True


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]',
        b'"ping"',
        b"1",
        b"null",
        b"true",
        b"{}",
        b'{"method": "ping"}',
        b'{"jsonrpc": "1.0", "method": "ping"}',
        b'{"jsonrpc": "2.0", "id": null, "method": "ping"}',
        b'{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}',
        b'{"jsonrpc": "2.0", "id": true, "method": "ping"}',
        b'{"jsonrpc": "2.0", "id": {}, "method": "ping"}',
        b'{"jsonrpc": "2.0", "id": "' + b"x" * 129 + b'", "method": "ping"}',
        b'{"jsonrpc": "2.0", "id": 1e2, "method": "ping"}',
    ],
)
def test_what_is_no_request_is_invalid_and_answered_with_null(client: Client, line: bytes) -> None:
    """Batches, bare values, missing members and ids that are none."""
    client.send_bytes(line + b"\n")
    assert kind_of(client.receive()) == "invalid_request"
    assert client.call("ping")["pong"] is True


@pytest.mark.parametrize("extra", ['"method": 5', '"method": ""', '"method": "ping", "verbose": true'])
def test_an_invalid_request_with_a_readable_id_is_answered_with_it(client: Client, extra: str) -> None:
    """Who can be told, is told."""
    client.send(f'{{"jsonrpc": "2.0", "id": "mine", {extra}}}\n'.encode())
    assert client.error("mine")["kind"] == "invalid_request"


@pytest.mark.parametrize("params", ["[1]", "[]", "5", "null", '"a"'])
def test_params_that_are_no_object_are_invalid_params(client: Client, params: str) -> None:
    """Parameters have names; there are no positions."""
    client.send(f'{{"jsonrpc": "2.0", "id": 1001, "method": "ping", "params": {params}}}\n'.encode())
    error = client.error(1001)
    assert (error["kind"], error["pointer"]) == ("invalid_params", "")


@pytest.mark.parametrize(
    ("params", "pointer", "hint"),
    [
        ({"audio": {"path": "/a"}, "lanuage": "en"}, "/lanuage", "language"),
        ({"audio": {"pth": "/a"}}, "/audio", ""),
        ({"audio": {"path": "/a", "x/y~z": 1}}, "/audio", ""),
        ({"audio": {"path": "/a"}, "beam_size": "5"}, "/beam_size", "integer"),
        ({"audio": {"path": "/a"}, "beam_size": 5.0}, "/beam_size", "integer"),
        ({"audio": {"path": "/a"}, "temperature": [0, 7]}, "/temperature/1", "at most 1"),
        ({"audio": {"path": "/a", "data": "AAAA"}}, "/audio", ""),
        ({}, "", "audio"),
        ({"audio": {"path": "/a"}, "timestamps": "none", "render": ["srt"]}, "", ""),
    ],
)
def test_a_wrong_parameter_is_pointed_at(
    client: Client, params: dict[str, object], pointer: str, hint: str
) -> None:
    """Unknown, misspelt, mistyped and out of range."""
    error = client.refusal("transcribe", **params)
    assert error["kind"] == "invalid_params"
    assert error["pointer"].startswith(pointer)
    assert hint in error["message"]


def test_an_unknown_method_is_told_with_the_nearest_name(client: Client) -> None:
    """A typing error is mended by the message."""
    error = client.refusal("transcrib")
    assert error["kind"] == "method_not_found"
    assert "'transcribe'" in error["message"]


@pytest.mark.parametrize("id", ["", 0, -1, 2**63, "x" * 128, "ä\u2028\u0000", "1"])
def test_ids_are_echoed_as_they_came(client: Client, id: str | int) -> None:
    """Strings of up to 128 characters, the empty one too, and integers of 64 bits."""
    client.send(transcription(id, b"whatever"))
    assert client.result(id)["text"] == digest_of(b"whatever")


def test_crlf_and_blank_lines_are_taken(client: Client) -> None:
    """A line may end in CRLF; empty ones, and those of white space, are ignored."""
    client.send(b"\n\r\n  \t \n")
    client.send(b'{"jsonrpc": "2.0", "id": 1002, "method": "ping"}\r\n\r\n')
    assert client.result(1002)["pong"] is True
    assert client.call("ping")["pong"] is True


def test_a_line_may_come_in_many_pieces(client: Client) -> None:
    """Byte for byte, and two and a half lines at a time."""
    for byte in transcription("slow", b"drop by drop"):
        client.send_bytes(bytes([byte]))
    client.expect("slow", "transcribe")
    assert client.result("slow")["text"] == digest_of(b"drop by drop")
    lines = b"".join(transcription(f"part {n}", b"part %d" % n) for n in range(4))
    cut = len(lines) * 5 // 8
    for line in lines.splitlines():
        client.note(line)
    client.send_bytes(lines[:cut])
    assert client.result("part 0")["text"] == digest_of(b"part 0")
    client.send_bytes(lines[cut:])
    assert [client.result(f"part {n}")["text"] for n in (1, 2, 3)] == [digest_of(b"part %d" % n) for n in (1, 2, 3)]


def test_notifications_are_never_answered(client: Client) -> None:
    """Not even with an error; only `cancel` acts, and they are counted."""
    before = client.call("metrics.current")["notifications"]["ignored"]
    client.send(request("ping"))
    client.send(request("no.such.method"))
    client.send(request("transcribe", lanuage=3))
    client.send(request("cancel", job="nobody's"))
    client.send(request("cancel", nonsense=True))
    client.send(b'{"jsonrpc": "2.0", "method": "ping", "params": [1]}\n')
    assert client.call("ping")["pong"] is True
    assert client.call("metrics.current")["notifications"]["ignored"] - before >= 3


def test_deep_nesting_is_refused_like_any_wrong_value(client: Client) -> None:
    """What the JSON reader still takes must not exhaust whoever words the refusal."""
    for depth in (200, 900, 1020):
        nested = "[" * depth + "]" * depth
        for rest in (f'"params": {{"audio": {nested}}}', f'"params": {{"x": {nested}}}', f'"x": {nested}'):
            client.expect("deep", "transcribe")
            client.send_bytes(f'{{"jsonrpc": "2.0", "id": "deep", "method": "transcribe", {rest}}}\n'.encode())
            reply = client.receive()
            assert reply is not None
            assert reply["error"]["data"]["kind"] in ("invalid_params", "invalid_request", "parse_error")
            client.forget("deep")


def test_a_path_with_a_null_byte_is_no_defect_of_the_daemon(client: Client) -> None:
    """No file has such a name."""
    assert client.refusal("transcribe", audio={"path": "/a\0b"})["kind"] == "invalid_params"
    assert client.refusal("transcribe", audio=audio(b"x"), model="/a\0b")["kind"] == "invalid_params"


@pytest.fixture
def held(start: Start) -> Daemon:
    """A daemon whose one request, "busy", is held in the engine."""
    daemon = start("--stdio")
    daemon.stdio.send(transcription("busy", b"HOLD"))
    daemon.wait_until_held()
    return daemon


def test_an_id_in_use_is_a_conflict_and_the_first_is_unharmed(held: Daemon) -> None:
    """With id null, because the id belongs to somebody; whatever the method. Once answered it is free again."""
    client = held.stdio
    client.send(request("ping", "busy"))
    assert (error := client.error(None))["kind"] == "conflict"
    assert error["id"] == "busy"
    client.send(transcription("busy", b"another"))
    assert client.error(None)["id"] == "busy"
    held.release()
    assert client.result("busy")["text"] == digest_of(b"HOLD")
    client.send(transcription("busy", b"another"))
    assert client.result("busy")["text"] == digest_of(b"another")


def test_an_id_of_a_control_method_under_way_is_in_use(held: Daemon) -> None:
    """Some control methods take time too, and have one reply like any request."""
    client = held.stdio
    client.send(request("models.load", "load", model="slow"))
    held.log.wait_for("gate: the slow model is wanted")
    client.send(request("ping", "load"))
    assert client.error(None)["id"] == "load"
    held.release()
    assert client.result("load") == {"model": "slow", "state": "loaded"}
    assert client.result("busy")


def test_the_empty_id_and_zero_are_different_ids(start: Start) -> None:
    """Also while they wait in the backlog of stdio."""
    daemon = start("--stdio", queue_max=1)
    client = daemon.stdio
    client.send(transcription("busy", b"HOLD"))
    daemon.wait_until_held()
    client.send(transcription("", b"empty") + transcription(0, b"zero") + transcription("0", b"digit"))
    client.send(transcription("", b"again") + transcription(0, b"again"))
    assert [client.error(None)["id"], client.error(None)["id"]] == ["", 0]
    daemon.release()
    assert client.result("")["text"] == digest_of(b"empty")
    assert client.result(0)["text"] == digest_of(b"zero")
    assert client.result("0")["text"] == digest_of(b"digit")
    assert client.result("busy")


def test_each_connection_has_its_own_ids(everyday: Daemon) -> None:
    """The same id from two clients is no conflict."""
    first, second = everyday.connect(), everyday.connect()
    first.send(transcription("same", b"first"))
    second.send(transcription("same", b"second"))
    assert first.result("same")["text"] == digest_of(b"first")
    assert second.result("same")["text"] == digest_of(b"second")


def test_replies_come_when_they_are_ready(held: Daemon) -> None:
    """A held request does not hold up the next."""
    client = held.stdio
    client.send(transcription("quick", b"quick"))
    first = client.receive()
    held.release()
    second = client.receive()
    assert first is not None
    assert second is not None
    assert [first["id"], second["id"]] == ["quick", "busy"]


def test_ordered_replies_come_in_the_order_of_the_requests(start: Start) -> None:
    """Also those to control methods, to bad lines, and the one that is cancelled."""
    daemon = start("--stdio", "--ordered")
    client = daemon.stdio
    client.send(transcription("held", b"HOLD"))
    daemon.wait_until_held()
    client.send(b"{bad\n" + request("ping", "ping") + transcription("quick", b"quick"))
    client.send(b"[]\n" + request("cancel", "cancel", id="held"))
    assert [reply and reply["id"] for reply in (client.receive() for _ in range(6))] == [
        "held", None, "ping", "quick", None, "cancel",
    ]  # fmt: skip


def test_an_unterminated_last_line_counts(start: Start) -> None:
    """The end of the input ends the line; then the daemon ends."""
    daemon = start("--stdio")
    daemon.stdio.send(transcription("last", b"last")[:-1])
    daemon.stdio.end_input()
    assert daemon.stdio.result("last")["text"] == digest_of(b"last")
    assert daemon.stdio.rest() == []
    assert daemon.wait() == 0


def test_an_unterminated_last_line_counts_on_a_socket(main_client: SocketClient) -> None:
    """The same after a half-close; then the daemon closes the connection."""
    main_client.send(transcription("last", b"last")[:-1])
    main_client.end_input()
    assert main_client.result("last")["text"] == digest_of(b"last")
    assert main_client.rest() == []


def long_line(count: int) -> Iterator[bytes]:
    """A request line of so many MiB of audio that never was in memory."""
    yield b'{"jsonrpc": "2.0", "id": "long", "method": "transcribe", "params": {"audio": {"data": "'
    piece = b"A" * MIB
    for _ in range(count):
        yield piece
    yield b'"}}}\n'


@pytest.mark.parametrize("mebibytes", [100, 1024])
def test_a_line_over_the_limit_costs_no_more_than_the_limit(client: Client, everyday: Daemon, mebibytes: int) -> None:
    """Peak memory: the limit of 64 MiB and less than 20 MB beside it, for 100 MiB and for 1 GiB."""
    client.call("ping")
    everyday.forget_peak()
    before = everyday.status_bytes("VmRSS")
    sending = client.send_in_background(long_line(mebibytes))
    assert kind_of(client.receive()) == "line_too_long"
    sending.join()
    assert client.call("ping")["pong"] is True
    assert everyday.status_bytes("VmHWM") - before < 64 * MIB + 20_000_000


def test_a_line_just_under_the_limit_works_and_control_answers_meanwhile(client: Client, everyday: Daemon) -> None:
    """60 MB of base64 in one line."""
    control = everyday.control()
    data = os.urandom(1 << 16) * 700
    line = transcription("large", data)
    assert 58 * MIB < len(line) < 64 * MIB
    client.expect("large", "transcribe")
    sending = client.send_in_background([line])
    for _ in range(20):
        assert control.call("ping")["pong"] is True
    assert client.result("large")["text"].startswith(digest_of(data))
    sending.join()


def test_the_line_limit_can_be_set_and_is_exact(start: Start) -> None:
    """A line of the limit's length works; with one byte more it does not, in one piece or in several."""
    daemon = start("--stdio", "--max-line-bytes", "2048")
    line = request("ping", "exact")[:-1].ljust(2048)
    daemon.stdio.send(line + b"\r\n")
    assert daemon.stdio.result("exact")["pong"] is True
    daemon.stdio.send_bytes(line + b" \n")
    assert kind_of(daemon.stdio.receive()) == "line_too_long"
    daemon.stdio.send_bytes(line[:1000])
    daemon.stdio.send_bytes(line[1000:])
    daemon.stdio.send_bytes(b"  \n" + request("ping", "after"))
    daemon.stdio.expect("after", "ping")
    assert kind_of(daemon.stdio.receive()) == "line_too_long"
    assert daemon.stdio.result("after")["pong"] is True


def test_bad_lines_are_counted_by_kind(main_client: SocketClient) -> None:
    """`parse_errors`: not JSON, not UTF-8 or too long. `invalid`: JSON, but not a valid request."""
    before = main_client.call("metrics.current")["lines"]
    main_client.send_bytes(b"{\n\xff\n" + b"x" * (65 * MIB) + b"\n[]\n")
    for _ in range(4):
        main_client.receive()
    main_client.refusal("nonsense")
    after = main_client.call("metrics.current")["lines"]
    assert after["parse_errors"] - before["parse_errors"] == 3
    assert after["invalid"] - before["invalid"] == 2


def test_too_many_values_in_a_long_line_are_refused_unread(main_client: SocketClient) -> None:
    """Megabytes of tiny values would become gigabytes of objects."""
    values = b"[" + b"0," * (2 * MIB) + b"0]"
    main_client.send_bytes(b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"a": ' + values + b"}}\n")
    assert kind_of(main_client.receive()) == "invalid_request"


def test_discover_tells_the_truth_about_limits_and_methods(client: Client) -> None:
    """What a program can ask for is what it gets."""
    found = client.call("rpc.discover")
    assert found["limits"]["max_line_bytes"] == 64 * MIB
    assert {"transcribe", "detect_language", "cancel", "ping", "health", "status", "shutdown"} <= set(found["methods"])
    assert json.dumps(found["methods"]["transcribe"]["params"])


def test_detect_language_answers(client: Client) -> None:
    """The other method that takes audio."""
    result = client.call("detect_language", audio=audio(b"bonjour"))
    assert (result["language"], result["languages"][0]["language"]) == ("en", "en")

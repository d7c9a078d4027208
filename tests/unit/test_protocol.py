"""Lines into requests: what is refused, how the refusal is told, and that nothing else can happen."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema.exceptions import ValidationError

from whisperd.errors import KINDS, WhisperdError
from whisperd.protocol import (
    Method,
    ProtocolError,
    check_params,
    error_line,
    explain,
    find_method,
    load_schemas,
    methods,
    notification_line,
    parse_request,
    result_line,
    schema_dir,
)
from whisperd.protocol import _Validator as Validator

LONG = 2**14  # characters; nothing of this length belongs into an error message
# orjson refuses more levels than about a thousand; Python's own recursion limit is just below that
DEEPEST = 1021

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TRANSCRIBE_NAMES = sorted(find_method("transcribe").params_schema["properties"])
likely_params = st.dictionaries(st.sampled_from([*TRANSCRIBE_NAMES, "id", "job", "key"]), json_values, max_size=5)
likely_ids = st.sampled_from([0, 1, -(2**63), 2**64 - 1, 2**64, 10**30, "a", "", "x" * 129, None, True, 1.5, [], {}])
envelopes = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.sampled_from(["2.0", "2.0", "2.0", "1.0", 2]),
        "id": likely_ids,
        "method": st.sampled_from([*methods(), "no.such", "", "x" * 129, 7]),
        "params": likely_params | json_values,
        "extra": st.just(1),
    },
)


def line(**members: Any) -> bytes:
    """A request with id 1 for ping, with these members changed; None leaves a member out."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "ping", **members}
    return json.dumps({name: value for name, value in message.items() if value is not ...}).encode()


def refusal(data: bytes) -> ProtocolError:
    """What a line is refused with."""
    with pytest.raises(ProtocolError) as caught:
        parse_request(data)
    return caught.value


def complaint(method: str, params: dict[str, Any]) -> WhisperdError:
    """What params are refused with."""
    with pytest.raises(WhisperdError) as caught:
        check_params(find_method(method), params)
    assert caught.value.kind == "invalid_params"
    return caught.value


def readable_id(data: bytes) -> str | int | None:
    """The id that the contract wants echoed, read by the standard library's own parser."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return None
    id = message.get("id") if isinstance(message, dict) else None
    if isinstance(id, str) and len(id) <= 128:
        return id
    if type(id) is int and -(2**63) <= id < 2**64:
        return id
    return None


def judged(data: bytes) -> tuple[Any, WhisperdError | None]:
    """The id of a line, and what it is refused with at whichever stage. Anything that is not ours gets through."""
    try:
        request = parse_request(data)
    except ProtocolError as error:
        return error.id, error
    try:
        check_params(find_method(request.method), request.params)
    except WhisperdError as error:
        return request.id, error
    return request.id, None


def attempt(data: bytes, id: Any = ...) -> None:
    """Whatever is refused gets the right id and a short error that can be sent."""
    seen, error = judged(data)
    if error is not None:
        assert error.kind in {"parse_error", "invalid_request", "invalid_params", "method_not_found"}
        assert len(orjson.loads(error_line(seen, error))["error"]["message"]) < 1000
    if error is None or error.kind != "parse_error":
        assert seen == (readable_id(data) if id is ... else id)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_with_an_error_of_ours(data: bytes) -> None:
    """Nothing but ProtocolError comes out."""
    attempt(data)


@given(json_values)
def test_arbitrary_json_is_refused_with_an_error_of_ours(value: Any) -> None:
    """Valid JSON that is no request, including numbers of any size."""
    attempt(json.dumps(value).encode())


@given(envelopes)
def test_requests_with_anything_in_them_get_an_error_of_ours_and_their_id(message: dict[str, Any]) -> None:
    """The id is echoed exactly when it can be read."""
    attempt(json.dumps(message).encode())


@given(envelopes, st.integers(0, 400), st.binary(min_size=1, max_size=3))
def test_damaged_requests_get_an_error_of_ours(message: dict[str, Any], at: int, noise: bytes) -> None:
    """A few bytes overwritten in a line that was nearly right."""
    data = json.dumps(message).encode()
    attempt(data[:at] + noise + data[at + len(noise) :])


@given(likely_params)
def test_params_of_any_shape_are_accepted_or_refused_with_a_pointer(params: dict[str, Any]) -> None:
    """Each method's schema meets values that it never expected."""
    params = json.loads(json.dumps(params))
    for name in methods():
        _, error = judged(json.dumps({"jsonrpc": "2.0", "id": 1, "method": name, "params": params}).encode())
        assert error is None or error.kind == "parse_error" or error.data["pointer"] is not None


# -- envelope ----------------------------------------------------------------------------------------------------


def test_a_request_is_taken_apart() -> None:
    """Id, method and params come out as they are."""
    request = parse_request(line(id="a", method="cancel", params={"id": 4}))
    assert (request.id, request.method, request.params, request.notification) == ("a", "cancel", {"id": 4}, False)


def test_params_may_be_left_out() -> None:
    """That means an empty object."""
    assert parse_request(line()).params == {}


def test_a_bytearray_is_as_good_as_bytes() -> None:
    """Long lines come in the buffer that they were collected in."""
    assert parse_request(bytearray(line())).method == "ping"


@pytest.mark.parametrize("id", [0, 1, -1, 2**63, 2**64 - 1, -(2**63), "", "x" * 128, "ü" * 128, "0"])
def test_ids_are_echoed_as_they_came(id: str | int) -> None:
    """Also in an error, and 0 and the empty string are ids like any other."""
    assert parse_request(line(id=id)).id == id
    error = refusal(line(id=id, jsonrpc="1.0"))
    assert error.id == id
    assert orjson.loads(error_line(error.id, error))["id"] == id


@pytest.mark.parametrize("id", [2**64, -(2**63) - 1, 10**300, "x" * 129, None, True, False, 1.0, 1.5, [1], {"a": 1}])
def test_what_is_no_id_is_refused_and_answered_with_null(id: Any) -> None:
    """Integers over 64 bits would come back rounded, so they are no ids; null would be nobody's."""
    error = refusal(json.dumps({"jsonrpc": "2.0", "id": id, "method": "ping"}).encode())
    assert (error.kind, error.id, error.data["pointer"]) == ("invalid_request", None, "/id")


def test_a_message_without_id_is_a_notification() -> None:
    """Its id is None, and it knows that it is owed no answer."""
    request = parse_request(line(id=...))
    assert request.notification
    assert request.id is None


def test_a_notification_with_params_of_the_wrong_type_stays_a_notification() -> None:
    """It is never answered, so it cannot be refused."""
    request = parse_request(line(id=..., method="cancel", params=[1]))
    assert request.notification
    assert request.params == {}


@pytest.mark.parametrize("params", [[1], [], None, 7, "x", True])
def test_params_that_are_no_object_are_invalid_params(params: Any) -> None:
    """By position is not supported; the id is echoed."""
    error = refusal(line(params=params))
    assert (error.kind, error.id, error.data["pointer"]) == ("invalid_params", 1, "")


@pytest.mark.parametrize("data", [b"[]", b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]'])
def test_batch_arrays_are_invalid_requests(data: bytes) -> None:
    """The message says what to do instead."""
    error = refusal(data)
    assert (error.kind, error.id) == ("invalid_request", None)
    assert "one request per line" in error.message


@pytest.mark.parametrize("data", [b"1", b'"ping"', b"null", b"true", b"1.5"])
def test_json_that_is_no_object_is_an_invalid_request(data: bytes) -> None:
    """It was JSON, so it is no parse error."""
    assert refusal(data).kind == "invalid_request"


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b'{"id": 1,}',
        b"hello",
        b'{"id": NaN}',
        b'{"id": 1} {"id": 2}',
        b'"\xff"',
        b'{"id": "\xed\xa0\x80"}',
        b'{"id": "\\ud800"}',
        b'{"id": 1, "x": 1e999}',
        b"\x00",
        b"\xef\xbb\xbf{}",
        b"[" * 5000,
        b"[" * 5000 + b"]" * 5000,
    ],
)
def test_what_is_no_json_is_a_parse_error(data: bytes) -> None:
    """Bad UTF-8, lone surrogates, NaN, two documents, and nesting that no reader should follow."""
    error = refusal(data)
    assert (error.kind, error.id) == ("parse_error", None)


@pytest.mark.parametrize(
    ("members", "pointer", "said"),
    [
        ({"jsonrpc": "1.0"}, "/jsonrpc", "must be 2.0"),
        ({"jsonrpc": ...}, "", "'jsonrpc' is required"),
        ({"method": ...}, "", "'method' is required"),
        ({"method": ""}, "/method", "at least 1 character"),
        ({"method": "x" * 200}, "/method", "at most 128 characters"),
        ({"method": 7}, "/method", "must be of type string"),
        ({"parms": {}}, "/parms", "did you mean 'params'?"),
        ({"zzzzzz": 1}, "/zzzzzz", "known are jsonrpc, method, id, params"),
    ],
)
def test_a_bad_envelope_is_explained(members: dict[str, Any], pointer: str, said: str) -> None:
    """Where it is wrong and what was expected there."""
    error = refusal(line(**members))
    assert (error.kind, error.id, error.data["pointer"]) == ("invalid_request", 1, pointer)
    assert said in error.message


# -- size and depth ----------------------------------------------------------------------------------------------


def deep(levels: int, opening: str = "[", closing: str = "]", core: str = "") -> str:
    """JSON nested so deeply."""
    return opening * levels + core + closing * levels


@pytest.mark.parametrize("levels", [100, 500, 990, 1000, 1010, DEEPEST])
@pytest.mark.parametrize("shape", [("[", "]", ""), ('{"a":', "}", "1")], ids=["lists", "objects"])
def test_depth_bombs_get_an_ordinary_error_wherever_they_are(levels: int, shape: tuple[str, str, str]) -> None:
    """The validator recurses when it prints and compares values; two kilobytes must not end the reader."""
    bomb = deep(levels, shape[0], shape[1], shape[2])
    head = '{"jsonrpc":"2.0","id":1,"method":"transcribe"'
    audio = '"audio":{"path":"a"}'
    spots = [f'{head},"x":{bomb}}}', f'{{"jsonrpc":"2.0","id":1,"method":{bomb}}}', f'{head},"params":{bomb}}}']
    spots += [
        f'{head},"params":{{{audio},"{name}":{bomb}}}}}'
        for name in [*TRANSCRIBE_NAMES, "unknown"]
        if name not in ("audio", "render")
    ]
    spots += [
        f'{head},"params":{{"audio":{bomb}}}}}',
        f'{head},"params":{{"audio":{{"path":{bomb}}}}}}}',
        f'{head},"params":{{{audio},"render":[{bomb},{bomb}]}}}}',
        f'{head},"params":{{{audio},"suppress_tokens":[{bomb}]}}}}',
    ]
    for spot in spots:
        attempt(spot.encode(), id=1)
        assert judged(spot.encode())[1] is not None


def test_a_depth_that_the_validator_cannot_follow_is_said() -> None:
    """The client learns that it was the nesting."""
    bombs = [json.loads(deep(500)) for _ in range(2)]
    error = complaint("transcribe", {"audio": {"path": "a"}, "render": bombs})
    assert "nested" in error.message


def test_many_values_in_a_long_line_are_refused_before_they_become_objects() -> None:
    """64 MiB of `0,` would be gigabytes of Python; a long line is long because of one string."""
    body = b",".join([b"0"] * 600_000)
    error = refusal(b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":[' + body + b"]}}")
    assert (error.kind, error.id) == ("invalid_request", None)
    assert "too many values" in error.message


def test_a_long_line_with_one_long_string_is_fine() -> None:
    """Base64 has no commas."""
    data = line(method="transcribe", params={"audio": {"data": "A" * (3 << 20)}})
    request = parse_request(data)
    check_params(find_method("transcribe"), request.params)
    assert len(request.params["audio"]["data"]) == 3 << 20


def test_a_short_line_may_have_many_values() -> None:
    """The guard is for long lines; a short one is refused by its schema, with its id."""
    error = refusal(line(x=[0] * 20_000))
    assert (error.kind, error.id) == ("invalid_request", 1)


@pytest.mark.parametrize(
    "params",
    [
        {"audio": {"path": "a"}, "language": "q" * LONG},
        {"audio": {"path": "q" * LONG}},
        {"audio": {"data": "q" * LONG, "fd": 0}},
        {"audio": {"data": "q" * LONG, "q" * LONG: 1}},
        {"audio": {"data": 7, "format": "q" * LONG}},
        {"audio": "q" * LONG},
        {"audio": {"path": "a"}, "model": "q" * LONG},
        {"audio": {"path": "a"}, "initial_prompt": "q" * LONG},
        {"audio": {"path": "a"}, "hotwords": ["q" * LONG]},
        {"audio": {"path": "a"}, "task": "q" * LONG},
        {"audio": {"path": "a"}, "render": ["q" * LONG]},
        {"audio": {"path": "a"}, "suppress_tokens": [0] * 2000},
        {"audio": {"path": "a"}, "q" * LONG: 1},
        {"audio": {"path": "a"}, "temperature": "q" * LONG},
    ],
)
def test_messages_never_hold_the_offending_value(params: dict[str, Any]) -> None:
    """It may be audio, or somebody's words; where it is and what was expected is enough."""
    error = complaint("transcribe", params)
    assert "qqq" not in error.message.replace("q" * 128, "", 1)  # a name, cut short, may be in the pointer
    assert len(error.message) < 600
    assert len(error_line(1, error)) < 1000


def test_methods_that_do_not_exist_are_cut_short_in_the_message() -> None:
    """The name is the client's own text."""
    with pytest.raises(WhisperdError) as caught:
        find_method("q" * LONG)
    assert len(caught.value.message) < 200


# -- methods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [("transcrib", "'transcribe'"), ("model.list", "'models.list'"), ("Ping", "'ping'"), ("rpc.discove", "discover")],
)
def test_an_unknown_method_is_told_the_nearest(name: str, hint: str) -> None:
    """A slip of the pen costs one look."""
    with pytest.raises(WhisperdError, match=hint) as caught:
        find_method(name)
    assert caught.value.kind == "method_not_found"


def test_an_unknown_method_far_from_all_is_told_where_the_list_is() -> None:
    """There is no nearest one to guess."""
    with pytest.raises(WhisperdError, match=r"rpc\.discover"):
        find_method("zzzzzzzz")


def test_every_method_is_found_with_its_role_and_place() -> None:
    """Speech needs the main socket; everything else is served everywhere."""
    for name, method in methods().items():
        assert find_method(name) is method
        assert method.role in {"submit", "observe", "operate", "admin"}
        assert method.main_only == (name in {"transcribe", "detect_language"})


def test_method_schemas_stand_alone() -> None:
    """What rpc.discover sends has no references into files that the client does not have."""
    for method in methods().values():
        assert "$ref" not in json.dumps([method.params_schema, method.result_schema])


def test_schemas_are_read_once_from_where_they_are() -> None:
    """Inside an installed package or beside it in a checkout."""
    assert (schema_dir() / "envelope.json").is_file()
    assert load_schemas() is load_schemas()
    assert "methods/ping" in load_schemas()


# -- params ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "pointer", "said"),
    [
        ({}, "", "'audio' is required"),
        ({"audio": {}}, "/audio", "exactly one of path, data and fd"),
        ({"audio": {"path": "a", "fd": 0}}, "/audio/fd", "exactly one of"),
        ({"audio": {"path": "a", "data": "AAAA"}}, "/audio/data", "exactly one of"),
        ({"audio": {"path": "a", "sample_rate": 8000}}, "/audio/sample_rate", "needs 'format'"),
        ({"audio": {"data": "A", "format": "pcm_s16le"}}, "/audio", "'sample_rate' is required"),
        ({"audio": {"path": "a"}, "beam_size": 0}, "/beam_size", "at least 1"),
        ({"audio": {"path": "a"}, "beam_size": 99}, "/beam_size", "at most 16"),
        ({"audio": {"path": "a"}, "beam_size": 5.0}, "/beam_size", "of type integer"),
        ({"audio": {"path": "a"}, "beam_size": True}, "/beam_size", "of type integer"),
        ({"audio": {"path": "a"}, "task": "sing"}, "/task", '["transcribe", "translate"]'),
        ({"audio": {"path": "a"}, "vad": 1}, "/vad", '["auto", true, false]'),
        ({"audio": {"path": "a"}, "vad": 0}, "/vad", '["auto", true, false]'),
        ({"audio": {"path": "a"}, "temperature": [0, 2]}, "/temperature/1", "at most 1"),
        ({"audio": {"path": "a"}, "temperature": []}, "/temperature", "1 to 10"),
        ({"audio": {"path": "a"}, "render": ["srt", "srt"]}, "/render", "must not repeat"),
        ({"audio": {"path": "a"}, "render": ["doc"]}, "/render/0", '"srt"'),
        ({"audio": {"path": "a"}, "render": ["srt"], "timestamps": "none"}, "/render/0", "txt, the only format"),
        ({"audio": {"path": "a"}, "suppress_tokens": [0, "x"]}, "/suppress_tokens/1", "of type integer"),
        ({"audio": {"path": "a"}, "langauge": "en"}, "/langauge", "did you mean 'language'?"),
        ({"audio": {"pth": "a"}}, "/audio/pth", "did you mean 'path'?"),
        ({"audio": {"path": "a"}, "a/b~c": 1}, "/a~1b~0c", "known are audio"),
        ({"audio": {"path": "a\x00b"}}, "/audio/path", "without a NUL"),
    ],
)
def test_bad_params_are_told_where_and_what(params: dict[str, Any], pointer: str, said: str) -> None:
    """A JSON pointer to the first thing to mend and what was expected there."""
    error = complaint("transcribe", params)
    assert error.data["pointer"] == pointer
    assert said in error.message


def test_integers_are_integers_also_beyond_what_json_readers_keep() -> None:
    """orjson makes floats of them, which then are no integers."""
    request = parse_request(line(method="cancel", params={"id": 10**30}))
    assert complaint("cancel", request.params).data["pointer"] == "/id"


@pytest.mark.parametrize("params", [{}, {"id": 1, "job": "x"}])
def test_cancel_wants_exactly_one_name(params: dict[str, Any]) -> None:
    """Both or none say nothing."""
    assert "exactly one of id and job" in complaint("cancel", params).message


def test_long_audio_beside_a_mistake_does_not_reach_the_validator() -> None:
    """The mistake is found all the same."""
    params = {"audio": {"data": "A" * (8 << 20)}, "beam_size": "five"}
    assert complaint("transcribe", params).data["pointer"] == "/beam_size"
    assert len(params["audio"]["data"]) == 8 << 20  # type: ignore[index]


# -- explain -----------------------------------------------------------------------------------------------------


def explained(schema: dict[str, Any], instance: Any) -> tuple[str, str]:
    """How the first violation of a schema is told."""
    error = next(Validator(schema).iter_errors(instance))
    assert isinstance(error, ValidationError)
    return explain(error)


@pytest.mark.parametrize(
    ("schema", "instance", "pointer", "expected"),
    [
        ({"type": "string"}, 1, "", "must be of type string"),
        ({"type": ["string", "null"]}, 1, "", "must be of type string or null"),
        ({"enum": ["a", 1]}, 2, "", 'must be one of ["a", 1]'),
        ({"const": "x"}, "y", "", "must be x"),
        ({"minimum": 3}, 2, "", "must be at least 3"),
        ({"maximum": 3}, 4, "", "must be at most 3"),
        ({"exclusiveMinimum": 3}, 3, "", "must be more than 3"),
        ({"exclusiveMaximum": 3}, 3, "", "must be less than 3"),
        ({"minLength": 3}, "a", "", "must have at least 3 characters"),
        ({"maxLength": 3}, "abcd", "", "must have at most 3 characters"),
        ({"minItems": 1}, [], "", "must have at least 1 items"),
        ({"maxItems": 1}, [1, 2], "", "must have at most 1 items"),
        ({"uniqueItems": True}, [1, 1], "", "must not repeat an item"),
        ({"minProperties": 1}, {}, "", "must have at least 1 of its members"),
        ({"maxProperties": 1}, {"a": 1, "b": 2}, "", "must have at most 1 of its members"),
        ({"multipleOf": 2}, 3, "", "must satisfy multipleOf 2"),
        ({"required": ["a", "b"]}, {"a": 1}, "", "'b' is required"),
        ({"dependentRequired": {"x": ["a"], "b": ["a"]}}, {"b": 1}, "/b", "'b' needs 'a' beside it"),
        ({"type": "string", "x-expected": "a name"}, 1, "", "must be a name"),
        ({"properties": {"a": {"items": {"type": "null"}}}}, {"a": [None, 1]}, "/a/1", "must be of type null"),
        (
            {"properties": {"path": {}}, "additionalProperties": False},
            {"pth": 1},
            "/pth",
            "there is no such name; did you mean 'path'?",
        ),
        (
            {"properties": {"a": {}}, "unevaluatedProperties": False},
            {"zz": 1},
            "/zz",
            "there is no such name; known are a",
        ),
        (
            {"propertyNames": {"enum": ["alpha", "beta"]}},
            {"alpa": 1},
            "",
            'must be one of ["alpha", "beta"]',
        ),
    ],
)
def test_each_keyword_is_told_in_words(schema: dict[str, Any], instance: Any, pointer: str, expected: str) -> None:
    """Keywords that the schemas use, and a fallback for one that they do not."""
    assert explained(schema, instance) == (pointer, expected)


def test_what_was_expected_is_cut_short_too() -> None:
    """A list of a thousand names helps nobody."""
    _, expected = explained({"enum": [f"name-{number}" for number in range(1000)]}, "x")
    assert len(expected) < 250
    assert expected.endswith("…")


# -- replies -----------------------------------------------------------------------------------------------------


def test_replies_are_one_line_each() -> None:
    """A newline in the text does not become one on the wire."""
    for data in (
        result_line(1, {"text": "a\nb\r\n"}),
        error_line(None, WhisperdError("internal", "a\nb", pointer="/x")),
        notification_line("transcribe.progress", {"id": "a\nb"}),
    ):
        assert data.endswith(b"\n")
        assert data.count(b"\n") == 1
        assert orjson.loads(data)["jsonrpc"] == "2.0"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_kind_has_the_shape_of_the_contract(kind: str) -> None:
    """Code in the allowed ranges, kind and retryable in data, and what the kind adds."""
    error = orjson.loads(error_line("a", WhisperdError(kind, "why", retry_after_ms=5)))["error"]
    assert error["code"] in {-32700, -32600, -32601, -32602, -32603} or -32099 <= error["code"] <= -32000
    assert error["message"] == "why"
    assert error["data"] == {"kind": kind, "retryable": KINDS[kind][1], "retry_after_ms": 5}


def test_error_codes_tell_kinds_apart() -> None:
    """A client that only looks at codes sees as much as one that looks at kinds."""
    codes = [code for code, _ in KINDS.values()]
    assert len(set(codes)) == len(codes)


def test_methods_are_values_that_can_be_shown() -> None:
    """A method knows its schemas and its compiled validator."""
    method = find_method("ping")
    assert isinstance(method, Method)
    assert method.params.is_valid({})

"""The wire contract as data: every schema is sound, closed where it must be, and says usefully what is wrong.

The first error that a validator yields must be the one to report. The daemon may stop there then, so that a
list of a million wrong items costs no more than a short one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry, Resource

from whisperd.errors import KINDS, WhisperdError
from whisperd.messages import DecodeOptions, Segment, Word

ROOT = Path(__file__).resolve().parents[2] / "schemas"
FILES = {
    file.relative_to(ROOT).as_posix(): json.loads(file.read_text("utf-8"))
    for file in sorted(ROOT.rglob("*.json"))
}
BY_ID = {schema["$id"]: schema for schema in FILES.values()}
REGISTRY: Registry[Any] = Registry().with_resources(
    (urn, Resource.from_contents(schema)) for urn, schema in BY_ID.items()
)
METHODS = {
    name.removeprefix("methods/").removesuffix(".json"): schema
    for name, schema in FILES.items()
    if name.startswith("methods/")
}
ROLES = {
    "transcribe": "submit", "detect_language": "submit", "cancel": "submit", "ping": "submit",
    "rpc.discover": "submit", "health": "submit", "status": "observe", "models.list": "observe",
    "metrics.current": "observe", "models.load": "operate", "models.unload": "operate", "drain": "operate",
    "resume": "operate", "config.get": "admin", "shutdown": "admin",
}  # fmt: skip
ANNOTATIONS = {"description", "default", "x-expected"}
FLAC = {"path": "a.flac"}
PCM = {"data": "AAAA", "format": "pcm_s16le", "sample_rate": 16000, "channels": 1}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def validator(urn: str, part: str | None = None) -> Draft202012Validator:
    pointer = f"#/$defs/{part}" if part else ""
    return Draft202012Validator({"$ref": urn + pointer}, registry=REGISTRY)


PARAMS = {name: validator(schema["$id"], "params") for name, schema in METHODS.items()}
RESULTS = {name: validator(schema["$id"], "result") for name, schema in METHODS.items()}
ENVELOPE, REPLY, ERROR, NOTIFICATION = (
    validator(f"urn:whisperd:schemas:{name}") for name in ("envelope", "reply", "error", "notification")
)


def place(error: Any) -> str:
    """The pointer to report: an unknown name is pointed at, a missing one is not there to be pointed at."""
    path = list(error.absolute_path)
    if error.validator == "additionalProperties":
        path.append(next(name for name in error.instance if name not in error.schema["properties"]))
    if error.validator == "dependentRequired":
        path.append(next(name for name in error.validator_value if name in error.instance))
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def expected(error: Any) -> str:
    """What the schema says in words, or else the keyword that failed and its value."""
    if error.validator in ("required", "additionalProperties", "dependentRequired"):
        return str(error.validator)
    return str(error.schema.get("x-expected") or f"{error.validator} {error.validator_value}")


def complaint(method: str, params: Any) -> tuple[str, str]:
    """(pointer, expected) of the first error, which must be the one that best_match prefers as well."""
    errors = list(PARAMS[method].iter_errors(params))
    assert errors, f"{params} was accepted"
    best = best_match(errors)
    assert (place(best), expected(best)) == (place(errors[0]), expected(errors[0]))
    return place(errors[0]), expected(errors[0])


def subschemas(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from subschemas(child)
    elif isinstance(node, list):
        for child in node:
            yield from subschemas(child)


def expand(node: Any, home: str, trail: tuple[str, ...] = ()) -> Any:
    """The schema with each reference replaced by what it names; annotations beside a reference win."""
    if isinstance(node, list):
        return [expand(child, home, trail) for child in node]
    if not isinstance(node, dict):
        return node
    own = {key: expand(child, home, trail) for key, child in node.items() if key != "$ref"}
    if "$ref" not in node:
        return own
    urn, _, pointer = node["$ref"].partition("#")
    urn = urn or home
    target: Any = BY_ID[urn]
    for part in pointer.split("/")[1:]:
        target = target[part]
    assert f"{urn}#{pointer}" not in trail, f"{pointer} refers to itself"
    return {**expand(target, urn, (*trail, f"{urn}#{pointer}")), **own}


EXPANDED = {
    (name, part): expand(schema["$defs"][part], schema["$id"])
    for name, schema in METHODS.items()
    for part in ("params", "result")
}


def described(schema: dict[str, Any], where: str = "") -> Iterator[tuple[str, bool]]:
    """Each property, item and entry below a schema, and whether it has a description."""
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield f"{where}/{key}", bool(schema[key].get("description"))
            yield from described(schema[key], f"{where}/{key}")
    for name, child in schema.get("properties", {}).items():
        yield f"{where}/{name}", bool(child.get("description"))
        yield from described(child, f"{where}/{name}")


# --- the files ---


@pytest.mark.parametrize("name", sorted(FILES))
def test_schema_is_valid_draft_2020_12(name: str) -> None:
    """The metaschema accepts it, and it says which draft it is."""
    assert FILES[name]["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(FILES[name])


@pytest.mark.parametrize("name", sorted(FILES))
def test_id_follows_from_the_file_name(name: str) -> None:
    """Ids are URNs, so nobody tries to fetch them."""
    assert FILES[name]["$id"] == "urn:whisperd:schemas:" + name.removesuffix(".json").replace("/", ":")


@pytest.mark.parametrize("name", sorted(FILES))
def test_references_stay_inside_the_folder(name: str) -> None:
    """Each one names a definition that is there, and has only annotations beside it."""
    resolver = REGISTRY.resolver(FILES[name]["$id"])
    for node in subschemas(FILES[name]):
        if "$ref" in node:
            resolver.lookup(node["$ref"])
            assert set(node) - {"$ref"} <= ANNOTATIONS


def test_every_method_has_its_file_and_no_other() -> None:
    """The methods of this version, each with its role."""
    assert {name: schema["x-role"] for name, schema in METHODS.items()} == ROLES
    assert set(FILES) - {f"methods/{name}.json" for name in METHODS} == {
        "common.json", "envelope.json", "error.json", "notification.json", "reply.json",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(METHODS))
def test_method_file_keeps_the_layout(name: str) -> None:
    """The loader and other readers may rely on these keys."""
    schema = METHODS[name]
    assert list(schema) == ["$schema", "$id", "title", "description", "x-role", "x-socket", "$defs"]
    assert schema["title"] == name
    assert list(schema["$defs"]) == ["params", "result"]
    assert schema["x-socket"] == ("main" if "audio" in EXPANDED[name, "params"]["properties"] else "any")


@pytest.mark.parametrize(("name", "part"), sorted(EXPANDED))
def test_everything_is_described(name: str, part: str) -> None:
    """A stranger can read the schemas alone."""
    schema = EXPANDED[name, part]
    assert schema["description"]
    assert [where for where, has in described(schema) if not has] == []


@pytest.mark.parametrize("name", ["envelope", "error", "reply", "notification"])
def test_every_message_member_is_described(name: str) -> None:
    """The same for the messages around the methods."""
    urn = f"urn:whisperd:schemas:{name}"
    assert [where for where, has in described(expand(BY_ID[urn], urn)) if not has] == []


@pytest.mark.parametrize("name", sorted(METHODS))
def test_params_are_closed_and_results_open(name: str) -> None:
    """Unknown params are mistakes; unknown members of a result are a newer daemon."""
    params, result = EXPANDED[name, "params"], EXPANDED[name, "result"]
    for node in subschemas(params):
        if node.get("type") == "object":
            assert node["additionalProperties"] is False
    assert result["type"] == "object"
    assert result["required"]
    for node in subschemas(result):
        assert node.get("additionalProperties") is not False
        assert set(node.get("required", ())) <= set(node.get("properties", ()))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_cheap_and_telling_keywords_come_first(name: str) -> None:
    """A validator follows the order in the file, so the first error is the most useful and the cheapest."""
    order = ["type", "properties", "additionalProperties", "minProperties", "required", "if"]
    lists = ["type", "minItems", "maxItems", "uniqueItems", "items"]
    for node in subschemas(EXPANDED[name, "params"]):
        kind = node.get("type")
        if not isinstance(kind, str | list):
            continue
        wanted = order if kind == "object" else lists
        present = [key for key in node if key in wanted]
        assert present == sorted(present, key=wanted.index)
        if "array" in kind:
            assert "maxItems" in node
        if "string" in kind and "contentEncoding" not in node and "pattern" not in node:
            assert "maxLength" in node


# --- errors ---


def test_error_kinds_are_those_of_the_code() -> None:
    """In the same order, so that none is forgotten."""
    assert FILES["error.json"]["properties"]["data"]["properties"]["kind"]["enum"] == list(KINDS)


def test_error_codes_are_those_of_the_code() -> None:
    """Code and retryability belong to the kind."""
    told = {}
    for case in FILES["error.json"]["oneOf"]:
        data = case["properties"]["data"]["properties"]
        told[data["kind"]["const"]] = (case["properties"]["code"]["const"], data["retryable"]["const"])
        assert case["description"]
    assert told == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_error_of_each_kind_matches(kind: str) -> None:
    """What the code sends is what the schema says, and a wrong code or retryability is caught."""
    wire = WhisperdError(kind, "something", pointer="/audio", retry_after_ms=10).to_wire()
    assert ERROR.is_valid(wire)
    assert not ERROR.is_valid({**wire, "code": 1})
    assert not ERROR.is_valid({**wire, "data": {**wire["data"], "retryable": not wire["data"]["retryable"]}})


def test_kinds_bring_what_a_client_needs() -> None:
    """invalid_params points at a place; overloaded says when to come back."""
    assert not ERROR.is_valid(WhisperdError("invalid_params", "wrong").to_wire())
    assert not ERROR.is_valid(WhisperdError("invalid_params", "wrong", pointer="audio").to_wire())
    assert ERROR.is_valid(WhisperdError("invalid_params", "wrong", pointer="").to_wire())
    assert not ERROR.is_valid(WhisperdError("overloaded", "full").to_wire())
    assert ERROR.is_valid(WhisperdError("conflict", "in use", id="a").to_wire())


# --- messages ---


@pytest.mark.parametrize(
    "change",
    [{}, {"id": "a"}, {"id": 0}, {"id": -(2**63)}, {"id": 2**64 - 1}, {"id": "x" * 128}, {"id": ""}],
)
def test_request_is_accepted(change: dict[str, Any]) -> None:
    """With an id, or without one as a notification; params are the method's affair."""
    assert ENVELOPE.is_valid({"jsonrpc": "2.0", "method": "ping", "params": [], **change})
    assert ENVELOPE.is_valid({"jsonrpc": "2.0", "method": "ping", **change})


@pytest.mark.parametrize(
    ("message", "pointer"),
    [
        ({"jsonrpc": "2.0"}, ""),
        ({"method": "ping"}, ""),
        ({"jsonrpc": 2.0, "method": "ping"}, "/jsonrpc"),
        ({"jsonrpc": "2.0", "method": 1}, "/method"),
        ({"jsonrpc": "2.0", "method": ""}, "/method"),
        ({"jsonrpc": "2.0", "method": "ping", "id": None}, "/id"),
        ({"jsonrpc": "2.0", "method": "ping", "id": True}, "/id"),
        ({"jsonrpc": "2.0", "method": "ping", "id": 1.5}, "/id"),
        ({"jsonrpc": "2.0", "method": "ping", "id": 2**64}, "/id"),
        ({"jsonrpc": "2.0", "method": "ping", "id": "x" * 129}, "/id"),
        ({"jsonrpc": "2.0", "method": "ping", "param": {}}, "/param"),
        ([], ""),
        ("ping", ""),
    ],
)
def test_request_is_refused_with_its_place(message: Any, pointer: str) -> None:
    """An envelope that is wrong says where."""
    assert place(next(ENVELOPE.iter_errors(message))) == pointer


@pytest.mark.parametrize(
    ("reply", "valid"),
    [
        ({"id": 1, "result": {}}, True),
        ({"id": None, "error": WhisperdError("parse_error", "no").to_wire()}, True),
        ({"id": "a", "error": WhisperdError("internal", "no").to_wire()}, True),
        ({"id": None, "result": {}}, False),
        ({"id": 1}, False),
        ({"result": {}}, False),
        ({"id": 1, "result": {}, "error": WhisperdError("internal", "no").to_wire()}, False),
        ({"id": 1, "error": {"code": -32603, "message": "no"}}, False),
        ({"id": 1, "result": []}, False),
    ],
)
def test_reply_has_a_result_or_an_error(reply: dict[str, Any], valid: bool) -> None:
    """Exactly one of the two; only an error may have a null id."""
    assert REPLY.is_valid({"jsonrpc": "2.0", **reply}) is valid


def test_notification_matches_its_method() -> None:
    """Each kind of news has its own params, and no id of its own."""
    progress = {"id": 1, "job": "j", "done_s": 1.0, "total_s": 2.0}
    message = {"jsonrpc": "2.0", "method": "transcribe.progress", "params": progress}
    assert NOTIFICATION.is_valid(message)
    assert not NOTIFICATION.is_valid({**message, "id": 1})
    assert not NOTIFICATION.is_valid({**message, "method": "transcribe.segment"})
    assert not NOTIFICATION.is_valid({**message, "method": "ping"})


def test_segment_of_the_code_matches() -> None:
    """What `Segment` puts on the wire is the contract's segment."""
    segment = Segment(0, 0.0, 1.0, "hi", -0.1, 0.01, 0.5, 0.0, (Word(" hi", 0.0, 1.0, 0.9),))
    assert validator("urn:whisperd:schemas:common", "segment").is_valid(segment.to_wire())
    assert set(segment.to_wire()) == set(FILES["common.json"]["$defs"]["segment"]["properties"])


@pytest.mark.parametrize(
    ("param", "field"),
    [
        ("temperature", "temperatures"),
        ("initial_prompt", "initial_prompt"),
        ("hotwords", "hotwords"),
        ("suppress_tokens", "suppress_tokens"),
        ("no_speech_threshold", "no_speech_threshold"),
        ("log_prob_threshold", "log_prob_threshold"),
        ("compression_ratio_threshold", "compression_ratio_threshold"),
    ],
)
def test_default_is_that_of_the_code(param: str, field: str) -> None:
    """The schema tells what `DecodeOptions` does where the client says nothing."""
    default = getattr(DecodeOptions(), field)
    told = EXPANDED["transcribe", "params"]["properties"][param]["default"]
    assert told == (list(default) if isinstance(default, tuple) else default)


# --- params ---


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"audio": {"path": "/ä ö\n.wav"}},
        {"audio": {"data": ""}},
        {"audio": PCM},
        {"audio": {"data": "AAAA", "format": "pcm_f32le", "sample_rate": 48000}},
        {"audio": {"data": "AAAA", "format": "g722"}},
        {"audio": {"path": "a.raw", "format": "mulaw", "sample_rate": 16000}},
        {"audio": {"fd": 3, "format": "alaw"}},
        {"model": None, "language": None, "initial_prompt": None, "hotwords": None},
        {"language": "yue", "task": "translate"},
        {"beam_size": 16, "temperature": 0},
        {"temperature": [0, 0.5, 1]},
        {"suppress_tokens": []},
        {"suppress_tokens": [-1, 50256]},
        {"no_speech_threshold": None, "log_prob_threshold": None, "compression_ratio_threshold": None},
        {"vad": True},
        {"vad": "auto"},
        {"timestamps": "none", "render": ["txt"]},
        {"timestamps": "word", "render": ["txt", "srt", "vtt", "tsv", "lrc"]},
        {"timestamps": "none", "render": []},
        {"deadline_ms": 86_400_000, "priority": "bulk", "progress": True, "encoder_context": "full"},
    ],
)
def test_transcribe_accepts(extra: dict[str, Any]) -> None:
    """Everything that the contract allows."""
    assert [error.message for error in PARAMS["transcribe"].iter_errors({"audio": FLAC, **extra})] == []


SOURCES = "an object with exactly one of path, data and fd"


@pytest.mark.parametrize(
    ("audio", "pointer", "says"),
    [
        ("x.wav", "/audio", SOURCES),
        (None, "/audio", SOURCES),
        ({}, "/audio", SOURCES),
        ({"format": "g722"}, "/audio", SOURCES),
        ({"path": "a", "data": "b"}, "/audio/data", "exactly one"),
        ({"path": "a", "fd": 0}, "/audio/fd", "exactly one"),
        ({"data": "a", "fd": 0}, "/audio/fd", "exactly one"),
        ({"pathh": "a"}, "/audio/pathh", "additionalProperties"),
        ({"path": "a", "url": "b"}, "/audio/url", "additionalProperties"),
        ({"path": ""}, "/audio/path", "1 to 4096"),
        ({"path": 5}, "/audio/path", "1 to 4096"),
        ({"path": "a\0b"}, "/audio/path", "NUL"),
        ({"path": "a\n\0"}, "/audio/path", "NUL"),
        ({"path": "a" * 4097}, "/audio/path", "1 to 4096"),
        ({"data": 5}, "/audio/data", "base64"),
        ({"fd": -1}, "/audio/fd", "minimum 0"),
        ({"fd": 4}, "/audio/fd", "maximum 3"),
        ({"fd": "0"}, "/audio/fd", "type integer"),
        ({"data": "AAAA", "format": "pcm_s16le"}, "/audio", "required"),
        ({"data": "AAAA", "format": "wav"}, "/audio/format", "recognised by themselves"),
        ({"data": "AAAA", "sample_rate": 8000}, "/audio/sample_rate", "dependentRequired"),
        ({"path": "a", "channels": 2}, "/audio/channels", "dependentRequired"),
        ({**PCM, "sample_rate": 4_000_000_000}, "/audio/sample_rate", "maximum"),
        ({**PCM, "sample_rate": 0}, "/audio/sample_rate", "minimum"),
        ({**PCM, "channels": 0}, "/audio/channels", "minimum 1"),
        ({"path": "a", "format": "pcm_s16le", "sample_rate": 16000}, "/audio/format", "with data"),
        ({"fd": 0, "format": "pcm_s16le", "sample_rate": 16000}, "/audio/format", "with data"),
        ({"fd": 0, "format": "g722", "sample_rate": 16000}, "/audio/sample_rate", "one rate"),
        ({"fd": 0, "format": "mulaw", "channels": 2}, "/audio/channels", "pcm formats only"),
    ],
)
@pytest.mark.parametrize("method", ["transcribe", "detect_language"])
def test_audio_mistake_is_pointed_at(method: str, audio: Any, pointer: str, says: str) -> None:
    """Where it is, and what was expected there."""
    where, what = complaint(method, {"audio": audio})
    assert where == pointer
    assert says in what


@pytest.mark.parametrize(
    ("extra", "pointer", "says"),
    [
        ({"lanuage": "en"}, "/lanuage", "additionalProperties"),
        ({"model": ""}, "/model", "1 to 256"),
        ({"model": "x" * 257}, "/model", "1 to 256"),
        ({"model": "a\0"}, "/model", "1 to 256"),
        ({"model": 5}, "/model", "null for the default"),
        ({"language": "EN"}, "/language", "lower-case"),
        ({"language": "english"}, "/language", "lower-case"),
        ({"language": 1}, "/language", "null to detect"),
        ({"task": "translation"}, "/task", "enum ['transcribe', 'translate']"),
        ({"timestamps": True}, "/timestamps", "enum"),
        ({"beam_size": "5"}, "/beam_size", "type integer"),
        ({"beam_size": 0}, "/beam_size", "minimum 1"),
        ({"beam_size": 17}, "/beam_size", "maximum 16"),
        ({"beam_size": True}, "/beam_size", "type integer"),
        ({"temperature": []}, "/temperature", "1 to 10"),
        ({"temperature": [0.1] * 11}, "/temperature", "1 to 10"),
        ({"temperature": 3}, "/temperature", "from 0 to 1"),
        ({"temperature": "0"}, "/temperature", "a list of"),
        ({"temperature": [0, 3]}, "/temperature/1", "maximum 1"),
        ({"initial_prompt": "x" * 4097}, "/initial_prompt", "maxLength 4096"),
        ({"hotwords": ["a"]}, "/hotwords", "type ['string', 'null']"),
        ({"suppress_tokens": -1}, "/suppress_tokens", "type array"),
        ({"suppress_tokens": [-2]}, "/suppress_tokens/0", "minimum -1"),
        ({"suppress_tokens": [10**9]}, "/suppress_tokens/0", "maximum 51865"),
        ({"suppress_tokens": [0] * 1025}, "/suppress_tokens", "maxItems 1024"),
        ({"no_speech_threshold": "0.6"}, "/no_speech_threshold", "type ['number', 'null']"),
        ({"vad": 1}, "/vad", "enum ['auto', True, False]"),
        ({"encoder_context": "short"}, "/encoder_context", "enum"),
        ({"priority": 1}, "/priority", "enum"),
        ({"deadline_ms": 0}, "/deadline_ms", "minimum 1"),
        ({"deadline_ms": 86_400_001}, "/deadline_ms", "maximum 86400000"),
        ({"deadline_ms": 1.5}, "/deadline_ms", "type integer"),
        ({"render": "srt"}, "/render", "type array"),
        ({"render": ["srt", "pdf"]}, "/render/1", "enum"),
        ({"render": ["srt", "srt"]}, "/render", "uniqueItems"),
        ({"timestamps": "none", "render": ["txt", "srt"]}, "/render/1", "timestamps is none"),
        ({"progress": "yes"}, "/progress", "type boolean"),
    ],
)
def test_transcribe_mistake_is_pointed_at(extra: dict[str, Any], pointer: str, says: str) -> None:
    """Where it is, and what was expected there."""
    where, what = complaint("transcribe", {"audio": FLAC, **extra})
    assert where == pointer
    assert says in what


@pytest.mark.parametrize(
    ("method", "params", "pointer", "says"),
    [
        ("transcribe", {}, "", "required"),
        ("transcribe", {"audoi": FLAC}, "/audoi", "additionalProperties"),
        ("transcribe", [FLAC], "", "type object"),
        ("cancel", {}, "", "exactly one of id and job"),
        ("cancel", {"id": 1, "job": "j"}, "", "exactly one of id and job"),
        ("cancel", {"id": None}, "/id", "a string of at most 128"),
        ("cancel", {"job": 5}, "/job", "type string"),
        ("cancel", {"jod": "j"}, "/jod", "additionalProperties"),
        ("models.load", {}, "", "required"),
        ("models.load", {"model": None}, "/model", "1 to 256"),
        ("models.unload", {"name": "base"}, "/name", "additionalProperties"),
        ("config.get", {"key": 1}, "/key", "type string"),
        ("ping", {"a/b~c": 1}, "/a~1b~0c", "additionalProperties"),
    ],
)
def test_other_mistake_is_pointed_at(method: str, params: Any, pointer: str, says: str) -> None:
    """Unknown names before missing ones: a misspelt name is both, and the first tells more."""
    where, what = complaint(method, params)
    assert where == pointer
    assert says in what


@pytest.mark.parametrize("name", ["render", "temperature", "suppress_tokens"])
def test_long_list_is_refused_for_its_length(name: str) -> None:
    """The first error comes before the items are looked at, so a hostile list costs nothing."""
    first = next(PARAMS["transcribe"].iter_errors({"audio": FLAC, name: ["x"] * 100_000}))
    assert first.validator == "maxItems"


@given(method=st.sampled_from(sorted(METHODS)), name=st.text(), value=json_values)
def test_unknown_name_is_pointed_at(method: str, name: str, value: Any) -> None:
    """Whatever the name, and whatever else is missing."""
    if name not in EXPANDED[method, "params"]["properties"]:
        pointer = "/" + name.replace("~", "~0").replace("/", "~1")
        assert place(next(PARAMS[method].iter_errors({name: value}))) == pointer


@given(name=st.sampled_from(sorted(EXPANDED["transcribe", "params"]["properties"])), value=json_values)
def test_wrong_value_is_pointed_at(name: str, value: Any) -> None:
    """A single wrong value is where every complaint points, and there are words for what was expected."""
    for error in PARAMS["transcribe"].iter_errors({"audio": FLAC, name: value}):
        assert f"{place(error)}/".startswith(f"/{name}/")
        assert expected(error)


@given(method=st.sampled_from(sorted(METHODS)), params=json_values)
def test_expanded_schema_decides_the_same(method: str, params: Any) -> None:
    """Replacing the references, which is faster and is what rpc.discover can send, changes no verdict."""
    expanded = Draft202012Validator(EXPANDED[method, "params"])
    for candidate in (params, {"audio": params}, {"model": params}, {"audio": FLAC, "timestamps": params}):
        assert expanded.is_valid(candidate) == PARAMS[method].is_valid(candidate)


@given(audio=st.dictionaries(
    st.sampled_from(["path", "data", "fd", "format", "sample_rate", "channels"]),
    st.sampled_from(["a", "pcm_s16le", "pcm_f32le", "g722", "mulaw", 0, 1, 16000]),
))  # fmt: skip
def test_audio_has_one_source_and_a_fitting_format(audio: dict[str, Any]) -> None:
    """What is accepted keeps every rule, and what is refused is refused at a place in the audio."""
    error = next(PARAMS["detect_language"].iter_errors({"audio": audio}), None)
    if error is not None:
        assert place(error).startswith("/audio")
        return
    assert len(audio.keys() & {"path", "data", "fd"}) == 1
    pcm = str(audio.get("format")).startswith("pcm_")
    assert not pcm or ("data" in audio and "sample_rate" in audio)
    assert pcm or "channels" not in audio
    assert "sample_rate" not in audio or pcm or audio["format"] == "mulaw"


# --- results ---


@pytest.mark.parametrize("name", sorted(METHODS))
def test_result_without_a_required_field_is_caught(name: str) -> None:
    """An empty result is none."""
    missing = {error.validator for error in RESULTS[name].iter_errors({})}
    assert missing == {"required"}


def test_result_may_have_additions() -> None:
    """A newer daemon says more."""
    assert RESULTS["ping"].is_valid({"pong": True, "time": 1.5, "zone": "UTC"})
    assert not RESULTS["ping"].is_valid({"pong": False, "time": 1.5})

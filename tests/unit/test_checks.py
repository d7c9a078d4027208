"""The quick yes or no against jsonschema: for the schemas of the contract, and for any schema of the same keywords."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisperd.checks import Unknown, compiled
from whisperd.protocol import _Validator as Validator
from whisperd.protocol import load_schemas, methods

NAMES = ["a", "b", "c"]
# Values that the schemas of the contract tell apart, right and wrong ones, at any place.
TELLING: list[Any] = [
    "en", "word", "none", "srt", "full", "auto", "bulk", "translate", "/a.wav", "AAAA", "a\0b", "", "x" * 129,
    "x" * 300, "x" * 4097, "pcm_s16le", "mulaw", "g722", "2.0", "ping", True, False, None, 0, 1, 3, 4, 5, 16, 17, 8000,
    384001, -1, -2, 51865, 51866, 86400000, 0.0, 0.5, 1.0, 1.5, -0.0, 2**63, 2**64, 10**30, [], {},
]  # fmt: skip
scalars = st.sampled_from(TELLING) | st.none() | st.booleans() | st.integers() | st.text(max_size=5)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3)
lists = st.lists(scalars | numbers, max_size=12)
audios = st.dictionaries(
    st.sampled_from(["path", "data", "fd", "format", "sample_rate", "channels", "pth"]), scalars, max_size=4
)
anything = st.recursive(
    scalars | numbers,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)


def params_of(name: str) -> st.SearchStrategy[Any]:
    """Params of a method: mostly names that it knows, with values that some schema wants."""
    known = [*methods()[name].params_schema.get("properties", {}), "nonsense"]
    values = scalars | numbers | lists | audios
    sound = st.fixed_dictionaries({}, optional={"audio": audios.filter(lambda audio: len(audio) == 1)})
    return st.builds(
        lambda base, more: {**base, **more}, sound, st.dictionaries(st.sampled_from(known), values, max_size=4)
    )


@pytest.mark.parametrize("name", sorted(methods()))
@given(data=st.data())
def test_params_match_exactly_where_jsonschema_says_so(name: str, data: st.DataObject) -> None:
    """For each method of the contract."""
    method, params = methods()[name], data.draw(params_of(name) | anything)
    assert method.accepts(params) == method.params.is_valid(params)


audio_members = {
    "path": st.sampled_from(["/a.wav", "", "a\0b"]),
    "data": st.sampled_from(["AAAA", 1]),
    "fd": st.integers(-1, 4),
    "format": st.sampled_from(["pcm_s16le", "pcm_f32le", "g722", "mulaw", "alaw", "wav"]),
    "sample_rate": st.sampled_from([1000, 16000, 999]),
    "channels": st.sampled_from([1, 32, 33]),
}


@given(audio=st.fixed_dictionaries({}, optional=audio_members))
def test_every_mixture_of_audio_members_is_judged_the_same(audio: dict[str, Any]) -> None:
    """The densest part of the contract: which of them go together."""
    method = methods()["transcribe"]
    assert method.accepts({"audio": audio}) == method.params.is_valid({"audio": audio})


@given(
    timestamps=st.sampled_from(["none", "segment", "word", None]),
    render=st.lists(st.sampled_from(["txt", "srt", "vtt", "tsv", "lrc", "doc"]), max_size=6),
)
def test_formats_and_timestamps_are_judged_the_same(timestamps: Any, render: list[str]) -> None:
    """The one condition that joins two params."""
    method = methods()["transcribe"]
    params = {"audio": {"fd": 0}, "timestamps": timestamps, "render": render}
    assert method.accepts(params) == method.params.is_valid(params)


members = dict.fromkeys(("jsonrpc", "id", "method", "params", "extra"), scalars | numbers | lists)


@given(message=st.fixed_dictionaries({}, optional={**members, "jsonrpc": st.just("2.0"), "method": st.just("ping")}))
def test_envelopes_match_exactly_where_jsonschema_says_so(message: dict[str, Any]) -> None:
    """The other schema that every line meets."""
    envelope = load_schemas()["envelope"]
    assert compiled(envelope)(message) == Validator(envelope).is_valid(message)


def _leaves() -> st.SearchStrategy[dict[str, Any]]:
    small = st.integers(0, 3)
    kinds = st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null"])
    names = st.lists(st.sampled_from(NAMES), unique=True, max_size=3)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": kinds | st.lists(kinds, min_size=1, max_size=3, unique=True),
            "enum": st.lists(st.sampled_from(["a", "b", "", True, False, None]), min_size=1, max_size=4),
            "const": st.sampled_from(["a", True, False, None]),
            "minimum": small, "maximum": small, "minLength": small, "maxLength": small, "minItems": small,
            "maxItems": small, "minProperties": small, "maxProperties": small,
            "pattern": st.sampled_from(["^a", "b$", "^[a-z]{2,3}$", "^[^\\u0000]*$"]),
            "required": names, "dependentRequired": st.dictionaries(st.sampled_from(NAMES), names, max_size=2),
            "description": st.just("a note"), "x-expected": st.just("another"),
        },
    )  # fmt: skip


def _nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    some, named = st.lists(inner, min_size=1, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
    outer = st.fixed_dictionaries(
        {},
        optional={
            "properties": named, "additionalProperties": st.just(False), "items": inner, "anyOf": some, "oneOf": some,
            "allOf": some, "not": inner, "if": inner, "then": inner, "else": inner, "dependentSchemas": named,
        },
    )  # fmt: skip
    return st.builds(lambda leaf, more: {**leaf, **more}, _leaves(), outer)


@given(schema=st.recursive(_leaves(), _nested, max_leaves=6), values=st.lists(anything, min_size=1, max_size=5))
def test_any_schema_of_these_keywords_is_judged_the_same(schema: dict[str, Any], values: list[Any]) -> None:
    """Also combinations that the contract does not have yet."""
    check, validator = compiled(schema), Validator(schema)
    for value in values:
        assert check(value) == validator.is_valid(value)


@given(st.lists(st.sampled_from(["a", "b", "c", "d", 1, True, None]) | anything, max_size=4))
def test_lists_of_names_without_repetition_are_judged_the_same(value: list[Any]) -> None:
    """With things in it that are no names, or cannot be compared by hash."""
    schema = {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b", "c"]}}
    assert compiled(schema)(value) == Validator(schema).is_valid(value)


@pytest.mark.parametrize(
    "schema",
    [
        {"multipleOf": 2},
        {"$ref": "#"},
        {"properties": {"a": {"format": "date"}}},
        {"enum": [1, "a"]},
        {"const": 1.5},
        {"additionalProperties": {"type": "string"}},
        {"uniqueItems": True},
        {"uniqueItems": True, "items": {"enum": ["a", True]}},
    ],
)
def test_what_is_not_understood_is_not_compiled(schema: dict[str, Any]) -> None:
    """Rather no daemon than one that accepts what its schema forbids."""
    with pytest.raises(Unknown):
        compiled(schema)


@pytest.mark.parametrize("method", sorted(methods()))
def test_every_method_of_the_contract_is_compiled(method: str) -> None:
    """A schema with a keyword that is new here fails this test first."""
    assert compiled(methods()[method].params_schema)

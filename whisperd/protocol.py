"""Lines into requests and replies into lines, by the schemas in `schemas/`. Does no I/O after import.

The schemas are the contract: this module compiles them once and decides nothing that they could say. Most requests are
right, which `checks` finds out quickly; jsonschema looks at the others and decides what is refused. What we add
is how a violation is told: the JSON pointer into `params` and what was expected, never the offending value, which
may be 64 MiB of audio.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from whisperd.checks import Check, compiled
from whisperd.errors import WhisperdError

Id = str | int | None
_PLAIN_BYTES = 1 << 20  # a longer line is long because of audio, which is one string...
_COMMAS_MAX = 10_000  # ...so that many values in it are an attempt to make gigabytes of objects from megabytes
_LONG_DATA = 4096  # characters of base64 beyond which validation looks at a stand-in


class ProtocolError(WhisperdError):
    """A line that is no valid request; `id` is the request's where it could be read."""

    def __init__(self, kind: str, message: str, id: Id = None, **data: Any) -> None:
        super().__init__(kind, message, **data)
        self.id = id


@dataclass(frozen=True, slots=True)
class Request:
    """One validated envelope. A notification has no id and is never answered."""

    id: Id
    method: str
    params: dict[str, Any]
    notification: bool


def schema_dir() -> Path:
    """Where the schemas are: inside an installed package, beside it in a checkout."""
    packaged = Path(__file__).parent / "schemas"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "schemas"


@cache
def load_schemas() -> dict[str, dict[str, Any]]:
    """Every schema file by its path below the schema folder without `.json`, such as `methods/ping`."""
    root = schema_dir()
    return {
        file.relative_to(root).with_suffix("").as_posix(): json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(root.rglob("*.json"))
    }


@dataclass(frozen=True, slots=True)
class Method:
    """One method of the contract: who may call it, where, and its schemas, each standing alone."""

    name: str
    role: str
    main_only: bool  # carries audio, so it is not served on the control socket
    params_schema: dict[str, Any]
    result_schema: dict[str, Any]
    params: Any  # jsonschema's validator of params
    accepts: Check  # the same as a quick yes or no


# jsonschema takes 5.0 for an integer; the engine would get a float. orjson makes floats of integers over 64 bits.
_Validator = extend(  # type: ignore[no-untyped-call]  # jsonschema's own
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int),
)


@cache
def methods() -> dict[str, Method]:
    """The methods that have a schema, compiled once."""
    schemas = load_schemas()
    by_id = {schema["$id"]: schema for schema in schemas.values()}
    found = {}
    for key, schema in schemas.items():
        if key.startswith("methods/"):
            name = key.removeprefix("methods/")
            params, result = (_expand(schema["$defs"][part], schema["$id"], by_id) for part in ("params", "result"))
            found[name] = Method(
                name=name,
                role=schema["x-role"],
                main_only=schema["x-socket"] == "main",
                params_schema=params,
                result_schema=result,
                params=_Validator(params),
                accepts=compiled(params),
            )
    return found


def _expand(node: Any, home: str, by_id: Mapping[str, Any]) -> Any:
    """The schema with each reference replaced by what it names; annotations beside a reference win.

    A third faster to validate by than references are, and what rpc.discover can send: it stands alone.
    """
    if isinstance(node, list):
        return [_expand(child, home, by_id) for child in node]
    if not isinstance(node, dict):
        return node
    own = {key: _expand(child, home, by_id) for key, child in node.items() if key != "$ref"}
    if "$ref" not in node:
        return own
    urn, _, pointer = node["$ref"].partition("#")
    target: Any = by_id[urn or home]
    for part in pointer.split("/")[1:]:
        target = target[part]
    return {**_expand(target, urn or home, by_id), **own}


@cache
def _envelope() -> tuple[Check, Any]:
    schema = load_schemas()["envelope"]
    return compiled(schema), _Validator(schema)


def parse_request(line: bytes | bytearray) -> Request:
    """Raises ProtocolError: parse_error, invalid_request, method_not_found or invalid_params."""
    if len(line) > _PLAIN_BYTES and line.count(b",") > _COMMAS_MAX:
        raise ProtocolError("invalid_request", "too many values in one line; audio is one string")
    try:
        message = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ProtocolError("parse_error", f"the line is not valid JSON: {error}") from error
    if not isinstance(message, dict):
        what = "batch arrays are not accepted; send one request per line" if isinstance(message, list) else (
            "a request is a JSON object"
        )
        raise ProtocolError("invalid_request", what)
    id = message.get("id")
    if isinstance(id, bool) or not isinstance(id, str | int) or (isinstance(id, str) and len(id) > 128):
        id = None
    accepts, validator = _envelope()
    violation = None if accepts(message) else _first_error(validator, {**message, "params": {}})
    if violation:
        pointer, expected = explain(violation)
        raise ProtocolError("invalid_request", f"{pointer or 'the request'}: {expected}", id, pointer=pointer)
    params, notification = message.get("params", {}), "id" not in message
    if not isinstance(params, dict):
        if not notification:
            raise ProtocolError("invalid_params", "params must be an object with names", id, pointer="")
        params = {}  # a notification is never answered, whatever is wrong with its params
    return Request(id, message["method"], params, notification)


def find_method(name: str) -> Method:
    """Raises WhisperdError method_not_found with the nearest name."""
    method = methods().get(name)
    if method is None:
        near = difflib.get_close_matches(name[:64], methods(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; rpc.discover lists them all"
        raise WhisperdError("method_not_found", f"there is no method {name[:64]!r}{hint}")
    return method


def check_params(method: Method, params: Mapping[str, Any]) -> None:
    """Raises WhisperdError invalid_params that points at the first thing to mend."""
    if method.accepts(params):
        return
    # The schemas are ordered so that the first error is the one to tell; looking for more could take minutes.
    error = _first_error(method.params, _without_audio_bytes(params))
    if error:
        pointer, expected = explain(error)
        raise WhisperdError("invalid_params", f"{pointer or 'params'}: {expected}", pointer=pointer)


def _first_error(validator: Any, instance: Mapping[str, Any]) -> ValidationError | None:
    """jsonschema recurses where it prints and compares values, and a line of 2 kB can be nested a thousand deep."""
    try:
        return next(validator.iter_errors(instance), None)
    except RecursionError:
        return ValidationError("", validator="depth", validator_value="")


def _without_audio_bytes(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """jsonschema puts what it refuses into its messages; long base64 has no business there."""
    audio = params.get("audio")
    if isinstance(audio, dict) and isinstance(audio.get("data"), str) and len(audio["data"]) > _LONG_DATA:
        return {**params, "audio": {**audio, "data": "AAAA"}}
    return params


def explain(error: ValidationError) -> tuple[str, str]:
    """(JSON pointer to the offending place, what was expected there)."""
    path = list(error.absolute_path)
    keyword = str(error.validator)
    wanted: Any = error.validator_value
    instance: Any = error.instance
    if keyword in ("additionalProperties", "unevaluatedProperties"):
        return _explain_unknown_name(error, path)
    if keyword == "required":
        missing = [name for name in wanted if name not in instance]
        return _pointer(path), f"{missing[0]!r} is required"
    if keyword == "dependentRequired":
        for name, needs in wanted.items():
            missing = [need for need in needs if name in instance and need not in instance]
            if missing:
                return _pointer([*path, name]), f"{name!r} needs {missing[0]!r} beside it"
    schema = error.schema if isinstance(error.schema, dict) else {}
    if "x-expected" in schema:
        return _pointer(path), f"must be {schema['x-expected']}"
    if keyword == "type" and isinstance(wanted, list):
        wanted = " or ".join(wanted)
    expected = _EXPECTED.get(keyword, "must satisfy {keyword} {wanted}")
    return _pointer(path), expected.format(keyword=keyword, wanted=_short(wanted))


_EXPECTED = {
    "type": "must be of type {wanted}",
    "enum": "must be one of {wanted}",
    "const": "must be {wanted}",
    "minimum": "must be at least {wanted}",
    "maximum": "must be at most {wanted}",
    "exclusiveMinimum": "must be more than {wanted}",
    "exclusiveMaximum": "must be less than {wanted}",
    "minLength": "must have at least {wanted} characters",
    "maxLength": "must have at most {wanted} characters",
    "minItems": "must have at least {wanted} items",
    "maxItems": "must have at most {wanted} items",
    "uniqueItems": "must not repeat an item",
    "minProperties": "must have at least {wanted} of its members",
    "maxProperties": "must have at most {wanted} of its members",
    "depth": "must not be nested so deeply",
}


def _explain_unknown_name(error: ValidationError, path: list[str | int]) -> tuple[str, str]:
    schema = error.schema if isinstance(error.schema, dict) else {}
    names = list(schema.get("properties", {}))
    instance: Any = error.instance
    unknown = next(name for name in instance if name not in names)
    near = difflib.get_close_matches(unknown[:64], names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
    return _pointer([*path, unknown]), f"there is no such name; {hint}"


def _pointer(path: list[str | int]) -> str:
    return "".join("/" + str(part)[:128].replace("~", "~0").replace("/", "~1") for part in path)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:199] + "…"


def result_line(id: Id, result: Mapping[str, Any]) -> bytes:
    """A success reply with its newline."""
    return orjson.dumps({"jsonrpc": "2.0", "id": id, "result": result}, option=orjson.OPT_APPEND_NEWLINE)


def error_line(id: Id, error: WhisperdError) -> bytes:
    """An error reply with its newline."""
    return orjson.dumps({"jsonrpc": "2.0", "id": id, "error": error.to_wire()}, option=orjson.OPT_APPEND_NEWLINE)


def notification_line(method: str, params: Mapping[str, Any]) -> bytes:
    """A notification from the daemon with its newline."""
    return orjson.dumps({"jsonrpc": "2.0", "method": method, "params": params}, option=orjson.OPT_APPEND_NEWLINE)

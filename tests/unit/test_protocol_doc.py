"""docs/PROTOCOL.md tells the contract that `schemas/` holds: its examples validate and nothing is left out.

An example is every JSON message in a fenced `json` block. One with `method` is sent: by a client where the
method has a schema, else by the daemon as a notification. Any other is a reply to the last request above it
that has the same id.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from whisperd.config import Config
from whisperd.errors import KINDS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "PROTOCOL.md").read_text("utf-8")
SCHEMAS = [json.loads(file.read_text("utf-8")) for file in (ROOT / "schemas").rglob("*.json")]
REGISTRY: Registry[Any] = Registry().with_resources(
    (schema["$id"], Resource.from_contents(schema)) for schema in SCHEMAS
)
METHODS = {schema["title"]: schema for schema in SCHEMAS if "x-role" in schema}
COMMON = next(schema for schema in SCHEMAS if schema["$id"] == "urn:whisperd:schemas:common")["$defs"]
UNITS = {"MiB": 1024 * 1024, "": 1}


def check(urn: str, message: Any) -> None:
    errors = [
        f"{error.json_path}: {error.message}"
        for error in Draft202012Validator({"$ref": urn}, registry=REGISTRY).iter_errors(message)
    ]
    assert errors == []


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def messages_of(block: str) -> list[dict[str, Any]]:
    decoder, found, rest = json.JSONDecoder(), [], block.strip()
    while rest:
        message, end = decoder.raw_decode(rest)
        found.append(message)
        rest = rest[end:].lstrip()
    return found


EXAMPLES = [message for block in blocks("json") for message in messages_of(block)]


def method_of_reply(position: int) -> str | None:
    """The method of the nearest request above with the reply's id."""
    for earlier in reversed(EXAMPLES[:position]):
        if "method" in earlier and earlier.get("id") == EXAMPLES[position]["id"]:
            return str(earlier["method"])
    return None


def section(title: str) -> str:
    """The text from a heading to the next of the same or a higher level."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,3}} |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"no heading {title!r}"
    return found[2]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row; a bar inside code is written with a backslash."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def refusal(position: int) -> str | None:
    """The pointer of the reply that refuses the params of the request at this position, if one does."""
    for later in EXAMPLES[position + 1 :]:
        if later.get("id") == EXAMPLES[position].get("id"):
            return later["error"]["data"].get("pointer") if "error" in later else None
    return None


@pytest.mark.parametrize("position", range(len(EXAMPLES)))
def test_example_validates(position: int) -> None:
    """A request by its params, a notification by its kind, a reply by its method's result or the error."""
    message = EXAMPLES[position]
    method = message.get("method")
    if method in METHODS:
        check("urn:whisperd:schemas:envelope", message)
        if refusal(position) is None:
            check(f"{METHODS[method]['$id']}#/$defs/params", message.get("params", {}))
    elif method is not None:
        check("urn:whisperd:schemas:notification", message)
    else:
        check("urn:whisperd:schemas:reply", message)
        if "result" in message:
            answered = method_of_reply(position)
            assert answered, f"no request above has the id {message['id']!r}"
            check(f"{METHODS[answered]['$id']}#/$defs/result", message["result"])


@pytest.mark.parametrize("position", [i for i in range(len(EXAMPLES)) if refusal(i)])
def test_refused_example_is_pointed_at(position: int) -> None:
    """The reply points at something that the request has."""
    place: Any = EXAMPLES[position]["params"]
    for part in str(refusal(position)).split("/")[1:]:
        place = place[part]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_method_has_an_example_with_its_result(method: str) -> None:
    """A request and a successful reply."""
    asked = {message["id"] for message in EXAMPLES if message.get("method") == method and "id" in message}
    assert any("result" in message and message["id"] in asked for message in EXAMPLES)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_method_is_documented_whole(method: str) -> None:
    """Its role, where it can be called, each param in a table and each field of the result."""
    schema, text = METHODS[method], section(f"`{method}`")
    assert f"Role: `{schema['x-role']}`" in text
    assert ("On stdio and `whisperd.sock`." in text) is (schema["x-socket"] == "main")
    assert ("Everywhere." in text) is (schema["x-socket"] == "any")
    params = schema["$defs"]["params"]["properties"]
    first_cells = " ".join(cells[0] for cells in rows(text))
    assert [name for name in params if f"`{name}`" not in first_cells] == []
    assert ("No parameters." in text) is (not params)
    result = schema["$defs"]["result"]
    fields_of_result = result.get("properties") or COMMON["model_result"]["properties"]
    prose = text if method != "transcribe" else text + section("Result")
    assert [name for name in fields_of_result if f"`{name}`" not in prose] == []


def test_defaults_in_the_table_are_those_of_the_schema() -> None:
    """The column tells what leaving a param out means."""
    table = [cells for cells in rows(section("`transcribe`")) if len(cells) == 4]
    told = {cells[0].strip("`"): cells[2].strip("`") for cells in table}
    params = METHODS["transcribe"]["$defs"]["params"]["properties"]
    for name, schema in params.items():
        if "default" in schema:
            assert json.loads(told[name]) == schema["default"], name
    assert told["audio"] == "required"
    assert told["deadline_ms"] == "none"


def test_audio_is_documented_whole() -> None:
    """Each of its members has a row."""
    told = {cells[0].strip("`") for cells in rows(section("Audio"))}
    assert told >= set(COMMON["audio"]["properties"])


def test_segment_and_word_are_documented_whole() -> None:
    """Each of their members is named."""
    text = section("Result")
    names = [*COMMON["segment"]["properties"], *COMMON["word"]["properties"]]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_error_kind_is_in_the_table() -> None:
    """With its code and whether a retry can help."""
    told = {
        cells[0].strip("`"): (int(cells[1]), cells[2] == "yes")
        for cells in rows(section("Errors"))
        if cells[0].startswith("`")
    }
    assert told == KINDS


def test_roles_are_documented() -> None:
    """Each role that a method needs has a row."""
    told = {cells[0].strip("`") for cells in rows(section("Roles"))}
    assert told >= {schema["x-role"] for schema in METHODS.values()}


def test_limits_are_those_of_the_configuration() -> None:
    """Each setting in the table exists and has the default that the table tells."""
    defaults = {field.name: field.default for field in fields(Config)}
    limits = [cells for cells in rows(section("Limits")) if cells[0].startswith("`")]
    assert limits
    for name, value, _ in limits:
        number, _, unit = value.partition(" ")
        assert defaults[name.strip("`")] == int(number) * UNITS[unit], name


@pytest.mark.parametrize("code", blocks("python"))
def test_python_example_is_python(code: str) -> None:
    """It compiles; running it needs a daemon."""
    ast.parse(code)


def test_links_inside_the_page_lead_somewhere() -> None:
    """Every #anchor is a heading."""
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors

"""A schema as a function that says quickly whether a value matches it. Pure.

jsonschema decides what is refused, and tells why; but it takes 100 µs to find that a request of two names is right, and
nearly all requests are. Here a schema is turned into nested closures once, and the common answer, yes, takes 2 µs. The
rule that keeps it honest: exactly the values match that match for jsonschema (tests/unit/test_checks.py compares
them), and a keyword that is not known here ends the compilation, so that a schema cannot quietly mean less.

Values are what a JSON parser makes: no subclasses, no NaN.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]
_NOTES = {"$schema", "$id", "$defs", "title", "description", "default", "contentEncoding"}  # and all that begin with x-
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),  # 5.0 is none here: see protocol.py
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


class Unknown(Exception):
    """The schema says something that this module does not understand."""


def compiled(schema: Mapping[str, Any]) -> Check:
    """Whether a value matches a schema without references. Raises Unknown."""
    checks: list[Check] = []
    for keyword, wanted in schema.items():
        if keyword in _COMPILERS:
            checks.append(_COMPILERS[keyword](wanted, schema))
        elif keyword not in _NOTES | {"then", "else"} and not keyword.startswith("x-"):
            raise Unknown(keyword)
    return _all(checks)


def _all(checks: list[Check]) -> Check:
    if len(checks) == 1:
        return checks[0]

    def check(value: Any) -> bool:
        for one in checks:  # noqa: SIM110 -- all() with a generator takes thrice as long
            if not one(value):
                return False
        return True

    return check


def _type(wanted: Any, _schema: Mapping[str, Any]) -> Check:
    names = [wanted] if isinstance(wanted, str) else wanted
    types = frozenset(kind for name in names for kind in _TYPES[name])
    return lambda value: type(value) in types


def _enum(wanted: list[Any], _schema: Mapping[str, Any]) -> Check:
    if not all(type(one) in (str, bool, type(None)) for one in wanted):
        raise Unknown("enum of numbers, lists or objects")  # 1 == 1.0 == True in Python, but not in JSON
    known = frozenset(wanted)
    return lambda value: type(value) in (str, bool, type(None)) and value in known


def _const(wanted: Any, schema: Mapping[str, Any]) -> Check:
    return _enum([wanted], schema)


def _number(test: Callable[[Any, Any], bool]) -> Callable[[Any, Mapping[str, Any]], Check]:
    return lambda wanted, _schema: lambda value: type(value) not in (int, float) or test(value, wanted)


def _sized(kind: Any, test: Callable[[int, Any], bool]) -> Callable[[Any, Mapping[str, Any]], Check]:
    return lambda wanted, _schema: lambda value: type(value) is not kind or test(len(value), wanted)


def _pattern(wanted: str, _schema: Mapping[str, Any]) -> Check:
    search = re.compile(wanted).search
    return lambda value: type(value) is not str or search(value) is not None


def _items(wanted: Mapping[str, Any], _schema: Mapping[str, Any]) -> Check:
    item = compiled(wanted)
    return lambda value: type(value) is not list or all(item(one) for one in value)


def _unique_items(wanted: bool, schema: Mapping[str, Any]) -> Check:
    names = schema.get("items", {}).get("enum")
    if not wanted or not names or not all(type(name) is str for name in names):
        raise Unknown("uniqueItems of anything but names")
    # `items` refuses what is no name, so that only names need comparing.
    return lambda value: type(value) is not list or len({one for one in value if type(one) is str}) == len(value)


def _properties(wanted: Mapping[str, Any], _schema: Mapping[str, Any]) -> Check:
    checks = {name: compiled(schema) for name, schema in wanted.items()}

    def check(value: Any) -> bool:
        if type(value) is dict:
            for name, one in value.items():
                if name in checks and not checks[name](one):
                    return False
        return True

    return check


def _additional_properties(wanted: bool, schema: Mapping[str, Any]) -> Check:
    if wanted is not False:
        raise Unknown("additionalProperties other than false")
    known = frozenset(schema.get("properties", {}))
    return lambda value: type(value) is not dict or known.issuperset(value)


def _required(wanted: list[str], _schema: Mapping[str, Any]) -> Check:
    return lambda value: type(value) is not dict or all(name in value for name in wanted)


def _dependent_required(wanted: Mapping[str, list[str]], schema: Mapping[str, Any]) -> Check:
    return _dependent_schemas({name: {"required": needed} for name, needed in wanted.items()}, schema)


def _dependent_schemas(wanted: Mapping[str, Mapping[str, Any]], _schema: Mapping[str, Any]) -> Check:
    checks = {name: compiled(schema) for name, schema in wanted.items()}
    return lambda value: type(value) is not dict or all(one(value) for name, one in checks.items() if name in value)


def _any_of(wanted: list[Any], _schema: Mapping[str, Any]) -> Check:
    checks = [compiled(schema) for schema in wanted]
    return lambda value: any(one(value) for one in checks)


def _one_of(wanted: list[Any], _schema: Mapping[str, Any]) -> Check:
    checks = [compiled(schema) for schema in wanted]
    return lambda value: sum(one(value) for one in checks) == 1


def _all_of(wanted: list[Any], _schema: Mapping[str, Any]) -> Check:
    return _all([compiled(schema) for schema in wanted])


def _not(wanted: Mapping[str, Any], _schema: Mapping[str, Any]) -> Check:
    unwanted = compiled(wanted)
    return lambda value: not unwanted(value)


def _if(wanted: Mapping[str, Any], schema: Mapping[str, Any]) -> Check:
    condition, then = compiled(wanted), compiled(schema.get("then", {}))
    otherwise = compiled(schema.get("else", {}))
    return lambda value: then(value) if condition(value) else otherwise(value)


_COMPILERS: dict[str, Callable[[Any, Mapping[str, Any]], Check]] = {
    "type": _type,
    "enum": _enum,
    "const": _const,
    "minimum": _number(lambda value, wanted: bool(value >= wanted)),
    "maximum": _number(lambda value, wanted: bool(value <= wanted)),
    "minLength": _sized(str, lambda length, wanted: bool(length >= wanted)),
    "maxLength": _sized(str, lambda length, wanted: bool(length <= wanted)),
    "minItems": _sized(list, lambda length, wanted: bool(length >= wanted)),
    "maxItems": _sized(list, lambda length, wanted: bool(length <= wanted)),
    "minProperties": _sized(dict, lambda length, wanted: bool(length >= wanted)),
    "maxProperties": _sized(dict, lambda length, wanted: bool(length <= wanted)),
    "pattern": _pattern,
    "items": _items,
    "uniqueItems": _unique_items,
    "properties": _properties,
    "additionalProperties": _additional_properties,
    "required": _required,
    "dependentRequired": _dependent_required,
    "dependentSchemas": _dependent_schemas,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "allOf": _all_of,
    "not": _not,
    "if": _if,
}

"""Checks on a JSON schema that constrains an answer: size, references, and keywords that a grammar can enforce.

A grammar reads an answer from left to right and decides only what may come next. It can therefore enforce types,
ranges, lengths, patterns and required properties, but not keywords that compare distant parts (`uniqueItems`) or
combine schemas (`allOf`, `not`, `if`). With `strict`, a schema with such a keyword is refused, by its name.

Reference: JSON Schema 2020-12.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from shared.errors import InvalidRequest
from shared.validation.json_text import encodable

Schema = dict[str, Any] | bool

FORMATS = frozenset(
    (
        *("date", "date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"),
        *("uri", "uri-reference", "uri-template", "json-pointer", "relative-json-pointer"),
    )
)
ANNOTATIONS = frozenset(
    (
        *("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples"),
        *("example", "deprecated", "readOnly", "writeOnly", "discriminator", "nullable"),
    )
)
BY_TYPE = {
    "number": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems", "unevaluatedItems")),
    "object": frozenset(
        (
            *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
            *("minProperties", "maxProperties", "unevaluatedProperties"),
        )
    ),
}
ALONE = ("$ref", "anyOf", "oneOf", "allOf")  # a grammar compiles one of these, without keywords beside it
KNOWN = ANNOTATIONS.union(*BY_TYPE.values(), ALONE, ("type", "enum", "const"))
MAX_SUBSCHEMAS = 5_000  # subschemas of one schema, or of all tools: each is checked before the request is queued
MAX_PAIRED = 16  # schemas of one oneOf that are compared in pairs
DECIMALS = 6  # decimal places that a grammar gives to a number within a range
UNSAFE = re.compile(r'["]|\\[\\nrtfv0xuc"]')  # in a pattern: characters that JSON escapes

_NUMBER, _SCHEMA = (int, float), (dict, bool)
SHAPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), _NUMBER),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), int),
    **dict.fromkeys(("pattern", "format", "$ref"), str),
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), dict),
    **dict.fromkeys(("items", "additionalProperties", "propertyNames", "not"), _SCHEMA),
    **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties"), _SCHEMA),
    **dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems", "enum", "required"), list),
    "type": (str, list),
}

_NOT_EMPTY = ("anyOf", "oneOf", "allOf", "enum", "type")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_ONES = ("items", "additionalProperties", "propertyNames", "unevaluatedItems", "unevaluatedProperties", "not")


def parse_schema(text: str, param: str, *, depth: int) -> Schema:
    """Return the schema in a JSON text. Raise InvalidRequest if it is not one, or is nested deeper than `depth`."""
    try:
        schema = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{param} must be JSON that is not nested too deep", param=param) from None
    if not isinstance(schema, dict | bool):
        raise InvalidRequest("a JSON schema must be an object or a boolean", param=param)
    if _depth(schema) > depth:
        raise InvalidRequest(f"the schema must not be nested deeper than {depth} levels", param=param)
    if not encodable(schema):
        raise InvalidRequest(
            r"the schema must not contain a lone surrogate, an escape between \ud800 and \udfff", param=param
        )
    return schema


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _depth(value: Any) -> int:
    """Return the number of nested levels of objects and arrays, without recursion."""
    deepest, pending = 0, [(value, 1)]
    while pending:
        found, level = pending.pop()
        deepest = max(deepest, level)
        children = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
        pending += [(child, level + 1) for child in children if isinstance(child, dict | list)]
    return deepest


def check_schema(schema: Schema, param: str, *, strict: bool) -> int:
    """Raise InvalidRequest for a keyword with a value of the wrong type, more than MAX_SUBSCHEMAS subschemas, or a
    reference out of the schema; with `strict`, also for keywords that a grammar cannot enforce.

    Returns:
        The number of subschemas, the schema itself included; booleans do not count.
    """
    count = 0
    for part in subschemas(schema):
        count += 1
        check_subschema_count(count, param)
        _check_shapes(part, param)
        if "$ref" in part:
            _check_reference(part["$ref"], schema, param)
        if strict:
            _check_keywords(part, param)
    return count


def check_subschema_count(count: int, param: str) -> None:
    """Raise InvalidRequest for more than MAX_SUBSCHEMAS subschemas in one schema or in those of all tools."""
    if count > MAX_SUBSCHEMAS:
        raise InvalidRequest(
            f"a schema, or those of all tools together, must have at most {MAX_SUBSCHEMAS} subschemas", param=param
        )


def subschemas(schema: Schema) -> Iterator[dict[str, Any]]:
    """Yield the schema and all schemas in it, each before those within, without booleans."""
    pending: list[Any] = [schema]
    while pending:
        part = pending.pop()
        if not isinstance(part, dict):
            continue
        yield part
        for name, value in part.items():
            if name in _ONES:
                pending.append(value)
            elif name in _LISTS and isinstance(value, list):
                pending += value
            elif name in _MAPS and isinstance(value, dict):
                pending += value.values()


def types_of(schema: dict[str, Any]) -> list[str]:
    """Return the types that the schema names or that its keywords imply; empty if it allows any."""
    given = schema.get("type")
    if given is not None:
        return given if isinstance(given, list) else [given]
    return [kind for kind, keywords in BY_TYPE.items() if keywords & schema.keys()]


def _check_shapes(schema: dict[str, Any], param: str) -> None:
    value: Any
    for name, value in schema.items():
        shape = SHAPES.get(name)
        if shape is None:
            continue
        if not isinstance(value, shape) or (shape in (int, _NUMBER) and isinstance(value, bool)):
            raise InvalidRequest(f"the schema's {name} has a value of the wrong type", param=param)
        parts = _parts(name, value)
        if not all(isinstance(part, dict | bool) for part in parts):
            raise InvalidRequest(f"the schema's {name} must contain schemas only", param=param)
        if name in _NOT_EMPTY and not value:
            raise InvalidRequest(f"the schema's {name} must not be empty", param=param)
    if not schema.keys().isdisjoint(BY_TYPE["number"]):
        _check_range(schema, param)
    words = [*(schema.get("required") or ()), *types_of(schema)]
    if not all(isinstance(word, str) for word in words):
        raise InvalidRequest("the schema's required and type must contain strings only", param=param)


def _parts(name: str, value: Any) -> Iterable[Any]:
    """Return the schemas in the value of the keyword `name`."""
    if name in _LISTS:
        listed: list[Any] = value
        return listed
    return value.values() if name in _MAPS else ()


def _check_range(schema: dict[str, Any], param: str) -> None:
    """Refuse a range without a number of DECIMALS places, since a grammar generates only such numbers."""
    low = max(_bounds(schema, "minimum", "exclusiveMinimum", rounding=ROUND_CEILING), default=None)
    high = min(_bounds(schema, "maximum", "exclusiveMaximum", rounding=ROUND_FLOOR), default=None)
    if low is not None and high is not None and low > high:
        raise InvalidRequest(
            f"the schema's minimum and maximum must have a number with {DECIMALS} decimal places between them",
            param=param,
        )


def _bounds(schema: dict[str, Any], inclusive: str, exclusive: str, *, rounding: str) -> list[Decimal]:
    """Return the bounds of one side as the nearest number inside the range, in units of the last place."""
    inward = 1 if rounding == ROUND_CEILING else -1
    found = []
    for name in (inclusive, exclusive):
        if name in schema:
            exact = Decimal(str(schema[name])).scaleb(DECIMALS)
            inside = exact.to_integral_value(rounding)
            found.append(inside + inward if name == exclusive and inside == exact else inside)
    return found


def _check_reference(reference: str, root: Schema, param: str) -> None:
    found: Any = root
    if reference != "#" and not reference.startswith("#/"):
        raise InvalidRequest("$ref must point into the schema itself, like #/$defs/name", param=param)
    for part in reference.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or name not in found:
            raise InvalidRequest(f"$ref must point to a part of the schema, got {reference[:128]}", param=param)
        found = found[name]


def _check_keywords(schema: dict[str, Any], param: str) -> None:
    def refuse(reason: str) -> InvalidRequest:
        return InvalidRequest(f"the schema cannot be enforced strictly: {reason}", param=param)

    if unknown := sorted(name for name in schema.keys() - KNOWN if not name.startswith("x-")):
        raise refuse(f"the keyword {unknown[0][:64]} is not supported")
    constraints = schema.keys() - ANNOTATIONS
    for name in ALONE:
        if name in schema and len(constraints) > 1:
            raise refuse(f"{name} is not supported together with {sorted(constraints - {name})[0]}")
    if len(schema.get("allOf") or ()) > 1:
        raise refuse("allOf of several schemas is not supported")
    if "oneOf" in schema and not _are_disjoint(schema["oneOf"]):
        raise refuse(
            "the schemas of oneOf may overlap; give each its own type, or its own constant in a required property"
        )
    if {"enum", "const"} & constraints and len(constraints - {"type"}) > 1:
        raise refuse(f"a constant is not supported together with {min(constraints - {'enum', 'const', 'type'})}")
    _check_string(schema, refuse)
    _check_object(schema, refuse)
    if "multipleOf" in schema and types_of(schema) != ["integer"]:
        raise refuse("multipleOf is supported for the type integer only")


def _check_string(schema: dict[str, Any], refuse: Any) -> None:
    """Refuse `format` or `pattern` together with another keyword for strings."""
    exclusive = [name for name in ("pattern", "format") if name in schema]
    if exclusive and len(exclusive) + ("minLength" in schema) + ("maxLength" in schema) > 1:
        raise refuse(f"{exclusive[0]} is not supported together with another keyword for strings")
    if "format" in schema and schema["format"] not in FORMATS:
        raise refuse(f"the format {str(schema['format'])[:64]} is not supported")
    patterns = [schema.get("pattern"), *(schema.get("patternProperties") or ())]
    if any(isinstance(pattern, str) and UNSAFE.search(pattern) for pattern in patterns):
        raise refuse("a pattern must not contain quotes, backslashes or control characters")


def _check_object(schema: dict[str, Any], refuse: Any) -> None:
    names, open_to = schema.get("properties", {}), schema.get("additionalProperties", False)
    for name in ("patternProperties", "propertyNames"):
        if name in schema and names:
            raise refuse(f"{name} is not supported together with properties")
    if len(schema.get("patternProperties") or ()) > 1:
        raise refuse("patternProperties must have one entry")
    missing = [name for name in schema.get("required") or () if name not in names]
    if missing and ((open_to is False and "additionalProperties" in schema) or "patternProperties" in schema):
        raise refuse("required must name only properties of properties")
    if (schema.get("minProperties") or 0) > 1 and open_to is not False:
        raise refuse("minProperties above 1 is not supported together with additionalProperties")


def _are_disjoint(options: list[Any]) -> bool:
    """Return whether no value matches two of the schemas, by type or by constants of a required property."""
    if not all(isinstance(option, dict) for option in options):
        return False
    kinds = [_kinds(option) if "type" in option else set() for option in options]
    if not all(len(each) == 1 for each in kinds):
        return _are_disjoint_alike(options)
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for option, [kind] in zip(options, kinds, strict=True):
        by_kind.setdefault(kind, []).append(option)
    return all(len(alike) == 1 or _are_disjoint_alike(alike) for alike in by_kind.values())


def _are_disjoint_alike(options: list[dict[str, Any]]) -> bool:
    """Return the same for schemas of one type: in linear time if one property separates all, otherwise in pairs."""
    kept = [_constants_of(option) for option in options]
    if any(_all_differ([each.get(name) for each in kept]) for name in kept[0]):
        return True
    return len(options) <= MAX_PAIRED and all(
        _disjoint(a, b) or _differ(kept[i], kept[j])
        for i, a in enumerate(options)
        for j, b in enumerate(options[:i])
    )


Constants = dict[str | None, frozenset[Any]]  # by required property; None: constants of the value itself


def _constants_of(schema: dict[str, Any]) -> Constants:
    properties = schema.get("properties")
    named = properties if isinstance(properties, dict) else {}
    required = schema.get("required")
    places: list[tuple[str | None, Any]] = [(None, schema)]
    places += [(name, named[name]) for name in required if name in named] if isinstance(required, list) else []
    return {name: found for name, part in places if (found := _constants(part)) is not None}


def _all_differ(sets: list[frozenset[Any] | None]) -> bool:
    """Return whether all sets are known, and no constant is in two of them."""
    known = [each for each in sets if each is not None]
    return len(known) == len(sets) and len(frozenset().union(*known)) == sum(map(len, known))


def _differ(a: Constants, b: Constants) -> bool:
    return any(a[name].isdisjoint(b[name]) for name in a.keys() & b.keys())


def _disjoint(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Return whether both name types, and none in common."""
    return "type" in a and "type" in b and not _kinds(a) & _kinds(b)


def _kinds(schema: dict[str, Any]) -> set[str]:
    return {"number" if kind == "integer" else kind for kind in types_of(schema)}


def _constants(schema: Any) -> frozenset[Any] | None:
    if not isinstance(schema, dict):
        return None
    found = [schema["const"]] if "const" in schema else schema.get("enum")
    return frozenset(map(_hashable, found)) if isinstance(found, list) else None


def _hashable(value: Any) -> Any:
    """Return a key that is equal for values that JSON Schema considers equal: 1 and 1.0, but not 1 and true."""
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, list):
        return ("array", *map(_hashable, value))
    if isinstance(value, dict):
        return ("object", frozenset((name, _hashable(each)) for name, each in value.items()))
    return value

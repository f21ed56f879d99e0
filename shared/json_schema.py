"""What may be asked of a JSON schema: its size, its references, and the keywords that a grammar can hold.

A grammar reads an answer from left to right and knows of each place only what may come next. So it holds types,
ranges, lengths, patterns and required properties, and cannot hold what compares distant parts (`uniqueItems`) or
takes schemas together (`allOf`, `not`, `if`). Where every keyword counts (`strict`), such a schema is refused by
the keyword's name.

Reference: JSON Schema 2020-12. It knows nothing of grammars' own form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from shared.errors import InvalidRequest
from shared.json_text import encodable

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
ALONE = ("$ref", "anyOf", "oneOf", "allOf")  # a grammar takes one of these for all of its schema
KNOWN = ANNOTATIONS.union(*BY_TYPE.values(), ALONE, ("type", "enum", "const"))
UNSAFE = re.compile(r'["]|\\[\\nrtfv0xuc"]')  # in a pattern: characters that JSON writes in another way

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

_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_ONES = ("items", "additionalProperties", "propertyNames", "unevaluatedItems", "unevaluatedProperties", "not")


def parse_schema(text: str, param: str, *, depth: int) -> Schema:
    """A schema out of its JSON text. Raises InvalidRequest where it is none, or nested deeper than `depth`."""
    try:
        schema = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise InvalidRequest("is not JSON, or nested too deep", param=param) from None
    if not isinstance(schema, dict | bool):
        raise InvalidRequest("a JSON schema is an object or a boolean", param=param)
    if _depth(schema) > depth:
        raise InvalidRequest(f"the schema is nested deeper than {depth}", param=param)
    if not encodable(schema):
        raise InvalidRequest(
            r"the schema must not contain a lone surrogate, an escape between \ud800 and \udfff", param=param
        )
    return schema


def _no_number(name: str) -> None:
    raise ValueError(name)


def _depth(value: Any) -> int:
    """Levels of objects and arrays, without recursion."""
    deepest, pending = 0, [(value, 1)]
    while pending:
        found, level = pending.pop()
        deepest = max(deepest, level)
        children = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
        pending += [(child, level + 1) for child in children if isinstance(child, dict | list)]
    return deepest


def check_schema(schema: Schema, param: str, *, strict: bool) -> None:
    """Raise InvalidRequest for a keyword's value that is none, for a reference out of the schema, and, if `strict`,
    for what a grammar cannot hold.
    """
    for part in subschemas(schema):
        _check_shapes(part, param)
        if "$ref" in part:
            _check_reference(part["$ref"], schema, param)
        if strict:
            _check_keywords(part, param)


def subschemas(schema: Schema) -> Iterator[dict[str, Any]]:
    """The schema and all schemas in it, outermost first; those that are booleans are left out."""
    if not isinstance(schema, dict):
        return
    yield schema
    for name in _ONES:
        yield from subschemas(schema.get(name, True))
    for name in _LISTS:
        if isinstance(found := schema.get(name), list):
            for part in found:
                yield from subschemas(part)
    for name in _MAPS:
        if isinstance(found := schema.get(name), dict):
            for part in found.values():
                yield from subschemas(part)


def types_of(schema: dict[str, Any]) -> list[str]:
    """Its types as said, or as its keywords imply; none where it may be anything."""
    given = schema.get("type")
    if given is not None:
        return given if isinstance(given, list) else [given]
    return [kind for kind, keywords in BY_TYPE.items() if keywords & schema.keys()]


def _check_shapes(schema: dict[str, Any], param: str) -> None:
    for name, shape in SHAPES.items():
        value = schema.get(name)
        if name in schema and (
            not isinstance(value, shape) or (shape in (int, _NUMBER) and isinstance(value, bool))
        ):
            raise InvalidRequest(f"{name} of the schema has a value of the wrong type", param=param)
    words = [*(schema.get("required") or ()), *(types_of(schema))]
    if not all(isinstance(word, str) for word in words):
        raise InvalidRequest("required and type of a schema list words", param=param)
    parts = [part for name in _LISTS for part in schema.get(name) or ()]
    parts += [part for name in _MAPS for part in (schema.get(name) or {}).values()]
    if not all(isinstance(part, dict | bool) for part in parts):
        raise InvalidRequest("a schema has a part that is no schema", param=param)


def _check_reference(reference: str, root: Schema, param: str) -> None:
    found: Any = root
    if reference != "#" and not reference.startswith("#/"):
        raise InvalidRequest("$ref must point into the schema itself, as #/$defs/name", param=param)
    for part in reference.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or name not in found:
            raise InvalidRequest(f"$ref points to nothing: {reference[:128]}", param=param)
        found = found[name]


def _check_keywords(schema: dict[str, Any], param: str) -> None:
    def refuse(what: str) -> InvalidRequest:
        return InvalidRequest(f"the schema cannot be held strictly: {what}", param=param)

    if unknown := sorted(name for name in schema.keys() - KNOWN if not name.startswith("x-")):
        raise refuse(f"the keyword {unknown[0][:64]} is not supported")
    constraints = schema.keys() - ANNOTATIONS
    for name in ALONE:
        if name in schema and len(constraints) > 1:
            raise refuse(f"{name} with {sorted(constraints - {name})[0]} beside it")
    if len(schema.get("allOf") or ()) > 1:
        raise refuse("allOf of several schemas is not supported")
    if "oneOf" in schema and not _apart(schema["oneOf"]):
        raise refuse("the schemas of oneOf may overlap: give them different types, or a constant of their own")
    if {"enum", "const"} & constraints and len(constraints - {"type"}) > 1:
        raise refuse(f"a constant with {sorted(constraints - {'enum', 'const', 'type'})[0]} beside it")
    _check_string(schema, refuse)
    _check_object(schema, refuse)
    if "multipleOf" in schema and types_of(schema) != ["integer"]:
        raise refuse("multipleOf is supported for the type integer alone")


def _check_string(schema: dict[str, Any], refuse: Any) -> None:
    """`format` and `pattern` rule a string alone."""
    ruling = [name for name in ("pattern", "format") if name in schema]
    if ruling and len(ruling) + ("minLength" in schema) + ("maxLength" in schema) > 1:
        raise refuse(f"{ruling[0]} with another rule of its string beside it")
    if "format" in schema and schema["format"] not in FORMATS:
        raise refuse(f"the format {str(schema['format'])[:64]} is not supported")
    patterns = [schema.get("pattern"), *(schema.get("patternProperties") or ())]
    if any(isinstance(pattern, str) and UNSAFE.search(pattern) for pattern in patterns):
        raise refuse("a pattern with quotes, backslashes or control characters")


def _check_object(schema: dict[str, Any], refuse: Any) -> None:
    names, open_to = schema.get("properties", {}), schema.get("additionalProperties", False)
    for name in ("patternProperties", "propertyNames"):
        if name in schema and names:
            raise refuse(f"{name} with properties beside it")
    if len(schema.get("patternProperties") or ()) > 1:
        raise refuse("several patternProperties")
    missing = [name for name in schema.get("required") or () if name not in names]
    if missing and ((open_to is False and "additionalProperties" in schema) or "patternProperties" in schema):
        raise refuse("required names a property that is not in properties")
    if (schema.get("minProperties") or 0) > 1 and open_to is not False:
        raise refuse("minProperties above 1 with additionalProperties")


def _apart(options: Any) -> bool:
    """Whether no value fits two of the schemas, by their types or by a required property's constants."""
    return all(isinstance(option, dict) for option in options) and all(
        _disjoint(a, b) for i, a in enumerate(options) for b in options[:i]
    )


def _disjoint(a: dict[str, Any], b: dict[str, Any]) -> bool:
    for one, other in ((a, b), (b, a)):
        if (mine := _constants(one)) is not None and (theirs := _constants(other)) is not None:
            return not any(value in theirs for value in mine)
        kinds = {"number" if kind == "integer" else kind for kind in types_of(one)}
        others = {"number" if kind == "integer" else kind for kind in types_of(other)}
        if "type" in one and "type" in other and not kinds & others:
            return True
    shared = set(a.get("required") or ()) & set(b.get("required") or ())
    first, second = a.get("properties") or {}, b.get("properties") or {}
    for name in shared & first.keys() & second.keys():
        mine, theirs = _constants(first[name]), _constants(second[name])
        if mine is not None and theirs is not None and not any(value in theirs for value in mine):
            return True
    return False


def _constants(schema: Any) -> list[Any] | None:
    if not isinstance(schema, dict):
        return None
    return [schema["const"]] if "const" in schema else schema.get("enum")

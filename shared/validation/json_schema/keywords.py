"""Keywords of JSON Schema: the shapes of their values, and values in the form that the grammar compiler takes.

Reference: JSON Schema 2020-12, with the boolean `exclusiveMinimum` and the array `items` of older drafts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

TYPES = frozenset(("null", "boolean", "integer", "number", "string", "array", "object"))
IN_PLACE = frozenset(("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf"))  # apply schemas to the same value
NUMERIC_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
COUNTS = (
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
    *("minContains", "maxContains"),
)
ASSERTIONS = IN_PLACE.union(
    NUMERIC_BOUNDS,
    COUNTS,
    ("type", "const", "enum", "multipleOf", "pattern", "format", "items", "additionalItems", "prefixItems"),
    ("properties", "patternProperties", "additionalProperties", "propertyNames", "required", "uniqueItems", "not"),
    ("if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "contains"),
    ("unevaluatedItems", "unevaluatedProperties", "$recursiveRef"),
)
MAX_COUNT = 2**25  # no answer has as many characters
_CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")  # JSON has no escape of one letter for them
EXACT = 2**53  # integers up to here are exact as floats, which the compiler computes with
LEAST_STEP = 1e-6  # of numbers within bounds, whose digits a model could otherwise continue without end
MAX_MULTIPLE = 2**32 - 1  # the digits of multipleOf as an integer

_NUMBER, _SCHEMA = (int, float), (dict, bool)
SHAPES: Mapping[str, type | tuple[type, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("minimum", "maximum", "multipleOf"), _NUMBER),
        **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), (*_NUMBER, bool)),
        **dict.fromkeys(COUNTS, _NUMBER),
        **dict.fromkeys(("pattern", "format", "$ref", "$dynamicRef", "$recursiveRef"), str),
        **dict.fromkeys(("properties", "patternProperties", "dependentRequired", "dependentSchemas"), dict),
        "dependencies": dict,
        **dict.fromkeys(
            ("additionalProperties", "propertyNames", "not", "if", "then", "else", "contains"), _SCHEMA
        ),
        **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties", "additionalItems"), _SCHEMA),
        **dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems", "enum"), list),
        "items": (dict, bool, list),
        "required": (list, bool),  # true in a property is a leftover of draft 3, without effect
        "uniqueItems": bool,
        "type": (str, list),
    }
)
MAY_BE_BOOLEAN = frozenset(("exclusiveMinimum", "exclusiveMaximum"))
NOT_EMPTY = ("anyOf", "oneOf", "allOf", "enum", "type")

# Formats as regular expressions of the compiler. Its own dates allow 30 February, which answers must not have.
_MONTHS = r"(0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8])"
_YEAR = r"(000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})"
_LEAP = r"(\d\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)-02-29"
_DATE = f"({_YEAR}-({_MONTHS})|{_LEAP})"
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"  # no leading zero, which some parsers read as octal
_GROUPS = "([0-9a-f]{1,4}(:[0-9a-f]{1,4}){0,2})?"
_POINTER = "(/([^/~]|~[01])*)*"
_CHARACTER = r"([A-Za-z0-9._\-!$&'()*+,;=@]|%[0-9A-Fa-f]{2})"
_TAIL = rf"(\?({_CHARACTER}|[/:?])*)?(#({_CHARACTER}|[/:?])*)?"
_REFERENCE = rf"(https?://[A-Za-z0-9.\-]+|{_CHARACTER}*)(/({_CHARACTER}|:)+)*/?"
_VARIABLE = r"(\{[A-Za-z0-9_]+\})"
FORMAT_PATTERNS: Mapping[str, str] = MappingProxyType(
    {
        "date": f"^{_DATE}$",
        "date-time": f"^{_DATE}T{_TIME}$",
        "time": f"^{_TIME}$",
        "ipv4": rf"^{_BYTE}(\.{_BYTE}){{3}}$",
        "ipv6": f"^([0-9a-f]{{1,4}}(:[0-9a-f]{{1,4}}){{7}}|{_GROUPS}::{_GROUPS})$",
        "json-pointer": f"^{_POINTER}$",
        "relative-json-pointer": rf"^(0|[1-9]\d*)(#|{_POINTER})$",
        "uri-reference": f"^{_REFERENCE}{_TAIL}$",
        "uri-template": f"^(https?://[A-Za-z0-9.\\-]+)?(/({_CHARACTER}|{_VARIABLE})*)+{_TAIL}$",
    }
)
FORMATS = frozenset(("duration", "email", "hostname", "uuid", "uri"))  # that the compiler enforces itself
UNSUPPORTED_FORMATS = frozenset(
    ("regex", "idn-email", "idn-hostname", "iri", "iri-reference")
)  # all other names are annotations


def is_trivial(schema: Any) -> bool:
    """Return whether every value fits the schema."""
    return schema is True or (isinstance(schema, dict) and not asserted(schema))


def asserted(schema: Any) -> dict[str, Any]:
    """Return the keywords of a schema that constrain."""
    found = schema if isinstance(schema, dict) else {}
    return {name: value for name, value in found.items() if name in ASSERTIONS}


def is_writable(value: Any) -> bool:
    """Return whether the compiler can write a constant: it has exact integers, and escapes of one letter only."""
    if isinstance(value, dict):
        return all(map(is_writable, value)) and all(map(is_writable, value.values()))
    if isinstance(value, list):
        return all(map(is_writable, value))
    if isinstance(value, str):
        return _CONTROL.search(value) is None
    return not isinstance(value, int) or abs(value) <= EXACT


def inclusive_bounds(schema: Mapping[str, Any]) -> Iterator[tuple[str, float | None, str]]:
    """Yield `minimum` and `maximum` with the bound that a schema sets, and the keyword that sets it.

    The bound is None if it is beyond the range in which floats are exact.
    """
    for inclusive, exclusive, sign in (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1)):
        bounds = []
        low, strictly = schema.get(inclusive), schema.get(exclusive)
        if low is not None:
            bounds.append((_above(sign * low) if strictly is True else sign * low, inclusive))
        if strictly is not None and not isinstance(strictly, bool):
            bounds.append((_above(sign * strictly), exclusive))
        if bounds:
            bound, keyword = max(bounds)
            yield inclusive, sign * max(bound, -EXACT) if bound <= EXACT else None, keyword


def _above(bound: float) -> float:
    """Return a number slightly above `bound`: the compiler may take an exclusive bound for an inclusive one."""
    step = 1e-9 if abs(bound) < 2**20 else 1e-3 if abs(bound) < 2**40 else 1
    return bound + step


def is_multiple_supported(value: float) -> bool:
    """Return whether the compiler can represent `multipleOf`. It multiplies by ten until no fraction is left."""
    scaled, steps = abs(float(value)), 0
    while scaled % 1 and steps < 12:
        scaled *= 10
        steps += 1
    exact = math.isclose(scaled, abs(value) * 10**steps, rel_tol=1e-12)
    return scaled % 1 == 0 and 0 < scaled <= MAX_MULTIPLE and exact

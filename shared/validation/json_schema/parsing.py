"""Parsing of a JSON schema, and checks on the shapes of its keywords' values."""

from __future__ import annotations

import json
import math
from typing import Any

from shared.errors import InvalidRequest
from shared.validation.json_schema import keywords
from shared.validation.json_text import encodable

Schema = dict[str, Any] | bool

_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "dependentSchemas")


def parse_schema(text: str, param: str, *, depth: int) -> Schema:
    """Return the schema in a JSON text. Raise InvalidRequest if it is not one, or is nested deeper than `depth`."""
    try:
        schema = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
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


def check_shapes(schema: dict[str, Any], param: str) -> None:
    """Raise InvalidRequest for a keyword of the schema itself, not of schemas in it, with a malformed value."""
    for name, value in schema.items():
        if name in keywords.SHAPES and (fault := _fault(name, value)) is not None:
            raise InvalidRequest(f"the schema's {name} {fault}", param=param)


def _fault(name: str, value: Any) -> str | None:
    """Return why the value of a keyword is malformed, as the end of a sentence."""
    if not _has_shape(value, keywords.SHAPES[name]):
        return "has a value of the wrong type"
    if not all(isinstance(part, dict | bool) for part in _schemas_in(name, value)):
        return "must contain schemas only"
    if not all(isinstance(word, str) for word in _words_in(name, value)):
        return "must contain strings only"
    if name in keywords.NOT_EMPTY and not value:
        return "must not be empty"
    return _fault_of_number(name, value)


def _has_shape(value: Any, shape: type | tuple[type, ...]) -> bool:
    allowed = shape if isinstance(shape, tuple) else (shape,)
    return isinstance(value, allowed) and (not isinstance(value, bool) or bool in allowed)


def _fault_of_number(name: str, value: Any) -> str | None:
    if name in keywords.COUNTS and (value < 0 or value % 1):
        return "must be an integer that is not negative"
    return "must be above 0" if name == "multipleOf" and value <= 0 else None


def _schemas_in(name: str, value: Any) -> Any:
    if name in _LISTS or (name == "items" and isinstance(value, list)):
        return value
    if name == "dependencies":
        return [each for each in value.values() if not isinstance(each, list)]
    return value.values() if name in _MAPS else ()


def _words_in(name: str, value: Any) -> Any:
    if name in ("required", "type") and isinstance(value, list):
        return value
    if name in ("dependentRequired", "dependencies"):
        lists = [each for each in value.values() if isinstance(each, list) or name == "dependentRequired"]
        return [word for each in lists for word in (each if isinstance(each, list) else [None])]
    return ()


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _depth(value: Any) -> int:
    """Return the number of nested levels of objects and arrays, without recursion."""
    deepest, pending = 0, [(value, 1)]
    while pending:
        found, level = pending.pop()
        deepest = max(deepest, level)
        children = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
        pending += [(child, level + 1) for child in children if isinstance(child, dict | list)]
    return deepest

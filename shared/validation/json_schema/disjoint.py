"""Proof that no value matches two of the schemas of a `oneOf`, so that it means the same as `anyOf`.

A grammar reads from left to right and cannot count how many options match. It can enforce `oneOf` if at most one
ever does, because the options differ in type or in a constant, as in unions with a discriminator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MAX_PAIRED = 16  # schemas that are compared in pairs

Constants = dict[str | None, frozenset[Any]]  # by required property; None: constants of the value itself


def are_disjoint(options: list[Any], resolve: Callable[[Any], Any]) -> bool:
    """Return whether no value matches two of the schemas, by type or by constants of a required property.

    Args:
        resolve: returns what a schema with a `$ref` points to, and any other schema as it is.
    """
    resolved = [resolve(option) for option in options if option is not False]
    if not all(isinstance(option, dict) for option in resolved):
        return len(resolved) < 2
    kinds = [_kinds(option) for option in resolved]
    if not all(len(each) == 1 for each in kinds):
        return _are_disjoint_alike(resolved)
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for option, [kind] in zip(resolved, kinds, strict=True):
        by_kind.setdefault(kind, []).append(option)
    return all(len(alike) == 1 or _are_disjoint_alike(alike) for alike in by_kind.values())


def _are_disjoint_alike(options: list[dict[str, Any]]) -> bool:
    """Return the same for schemas of one type: in linear time if one property separates all, otherwise in pairs."""
    if len(options) < 2:
        return True
    kept = [_constants_of(option) for option in options]
    if any(_all_differ([each.get(name) for each in kept]) for name in kept[0]):
        return True
    return len(options) <= MAX_PAIRED and all(
        _disjoint(a, b) or _differ(kept[i], kept[j])
        for i, a in enumerate(options)
        for j, b in enumerate(options[:i])
    )


def _constants_of(schema: dict[str, Any]) -> Constants:
    """Return the constants that select a value. Those of properties do only if the value must be an object."""
    places: list[tuple[str | None, Any]] = [(None, schema)]
    properties, required = schema.get("properties"), schema.get("required")
    if schema.get("type") == "object" and isinstance(properties, dict) and isinstance(required, list):
        places += [(name, properties[name]) for name in required if isinstance(name, str) and name in properties]
    return {name: found for name, part in places if (found := _constants(part)) is not None}


def _all_differ(sets: list[frozenset[Any] | None]) -> bool:
    """Return whether all sets are known, and no constant is in two of them."""
    known = [each for each in sets if each is not None]
    return len(known) == len(sets) and len(frozenset().union(*known)) == sum(map(len, known))


def _differ(a: Constants, b: Constants) -> bool:
    return any(a[name].isdisjoint(b[name]) for name in a.keys() & b.keys())


def _disjoint(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Return whether both name types, and none in common."""
    return bool(_kinds(a)) and bool(_kinds(b)) and not _kinds(a) & _kinds(b)


def _kinds(schema: dict[str, Any]) -> set[str]:
    """Return the types that the schema names, integers counted as numbers; empty if it names none."""
    given = schema.get("type", ())
    names = given if isinstance(given, list) else [given] if isinstance(given, str) else []
    return {"number" if name == "integer" else name for name in names if isinstance(name, str)}


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

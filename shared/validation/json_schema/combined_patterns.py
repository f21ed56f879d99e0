"""Bound on the regular expressions that apply to one string at once.

The compiler intersects them, in time and memory that double with each: 16 take a second, 20 take gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from shared.errors import InvalidRequest
from shared.validation.json_schema.parsing import Schema

MAX_COMBINED = 8
MAX_STEPS = 50_000  # of the search in one schema
MAX_UNIONS = 16  # options that are unions themselves
MAX_MULTIPLE = 2**32 - 1  # the compiler multiplies the values of multipleOf in 32 bits

_COMBINING = frozenset(("allOf", "anyOf", "$ref"))


def check_combined_patterns(schema: Schema, definitions: Mapping[str, Schema], param: str) -> None:
    """Raise InvalidRequest if a translated schema may combine too many patterns or values of `multipleOf`.

    Only values at places of the same name can meet, so each name is counted alone, together with the schemas of
    properties without a name.
    """
    search = _Search(definitions, param)
    by_name: dict[str | None, set[str | float]] = {}
    combines = False
    for part in _parts([schema, *definitions.values()]):
        combines |= len(part.get("allOf", ())) > 1 or (len(part) > 1 and not _COMBINING.isdisjoint(part))
        for name, child in _children(part):
            by_name.setdefault(name, set()).update(search.patterns(child))
    unnamed = by_name.get(None, set())
    groups = [found | unnamed for found in by_name.values()] if combines else []
    for found in (*groups, search.patterns(schema)):
        _check_group(found, param)


def _check_group(found: set[str | float], param: str) -> None:
    multiples = [Fraction(str(each)) for each in found if not isinstance(each, str)]
    if len(found) - len(multiples) > MAX_COMBINED:
        raise InvalidRequest(
            f"the schema is too complex: at most {MAX_COMBINED} different values of pattern and format may apply "
            "to properties of one name where schemas are combined",
            param=param,
        )
    scale = math.lcm(*(each.denominator for each in multiples))
    if len(multiples) > 1 and math.prod(each * scale for each in multiples) > MAX_MULTIPLE:
        raise InvalidRequest("the schema is too complex: it combines several values of multipleOf", param=param)


def _parts(roots: list[Any]) -> Iterator[dict[str, Any]]:
    pending = roots
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            yield part
            pending += [child for _, child in _children(part)]
            pending += part.get("allOf", [])
            pending += part.get("anyOf", [])


def _children(part: dict[str, Any]) -> Iterator[tuple[str | None, Any]]:
    """Yield the schemas of parts of a value, with the names of their properties."""
    yield from part.get("properties", {}).items()
    unnamed = [*part.get("patternProperties", {}).values(), part.get("additionalProperties"), part.get("items")]
    for each in (*unnamed, *part.get("prefixItems", ())):
        yield None, each


class _Search:
    """Search for the patterns and multiples that apply to a value itself, within a bound for the whole schema."""

    def __init__(self, definitions: Mapping[str, Schema], param: str) -> None:
        self._definitions = definitions
        self._param = param
        self._steps = 0

    def patterns(self, schema: Any, followed: frozenset[str] = frozenset(), unions: int = 0) -> set[str | float]:
        """Return the patterns that apply; of a union's options, the most that one has.

        Args:
            followed: the references that led here.
            unions: the number of unions that led here.
        """
        found: set[str | float] = set()
        pending, references = [schema], set(followed)
        while pending:
            part = pending.pop()
            if not isinstance(part, dict):
                continue
            self._steps += 1
            if self._steps > MAX_STEPS or unions > MAX_UNIONS:
                raise InvalidRequest("the schema is too complex: it combines too many schemas", param=self._param)
            found.update(part[name] for name in ("pattern", "format", "multipleOf") if name in part)
            pending += part.get("allOf", [])
            if "$ref" in part and part["$ref"] not in references:
                references.add(part["$ref"])
                pending.append(self._definitions[part["$ref"].rpartition("/")[2]])
            if "anyOf" in part:
                passed = frozenset(references)
                found |= max((self.patterns(each, passed, unions + 1) for each in part["anyOf"]), key=len)
        return found

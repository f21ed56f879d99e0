"""Random JSON schemas with the shapes of the public JSON Schema test suite, the same for the same seed.

They use every keyword that a grammar enforces: types, ranges, lengths, patterns, formats, constants, tuples,
optional and required properties, unions, references. Every instance of a schema is short, so that no answer is cut.

Reference: JSON-Schema-Test-Suite, draft 2020-12.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

WORDS = ("name", "size", "kind", "day", "tags", "owner", "state", "note", "level", "code", "price", "items")
PATTERNS = (
    "^[A-Z]{2}-[0-9]{3}$",
    "^(red|green|blue)[0-9]?$",
    "^[a-f0-9]{4,8}$",
    r"^\d{2}:\d{2}$",
    "^.{1,10}$",
    "^[xyz]{3}$",
)
FORMATS = ("date", "time", "date-time", "uuid", "ipv4")
CONSTANTS: tuple[Any, ...] = (None, True, 7, -1.5, "a b", 'say "hi"', ["x", 1], {"k": [None]}, "é", "")
DEPTH = 3


def make_schemas(count: int, seed: int) -> list[Schema]:
    """Return schemas of objects, of arrays and, rarely, of plain values."""
    rng = random.Random(seed)  # noqa: S311  a benchmark must be repeatable
    return [_root(rng) for _ in range(count)]


def _root(rng: random.Random) -> Schema:
    made = [_object, _object, _object, _array, _union, _referring, _anything][rng.randrange(7)](rng, DEPTH)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Generated", **made}


def _anything(rng: random.Random, depth: int) -> Schema:
    leaves: list[Callable[[random.Random], Schema]] = [_string, _string, _integer, _number, _constant, _plain]
    if depth == 0 or rng.random() < 0.6:
        return rng.choice(leaves)(rng)
    return rng.choice([_object, _array, _tuple, _union])(rng, depth - 1)


def _string(rng: random.Random) -> Schema:
    kind = rng.randrange(3)
    if kind == 0:
        return {"type": "string", "format": rng.choice(FORMATS)}
    if kind == 1:
        return {"type": "string", "pattern": rng.choice(PATTERNS)}
    least = rng.randrange(4)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randrange(1, 12)}


def _integer(rng: random.Random) -> Schema:
    low = rng.randrange(-1000, 1000)
    high = low + rng.choice((0, 1, 9, 100, 12_345))
    if rng.random() < 0.3:
        return {"type": "integer", "exclusiveMinimum": low - 1, "exclusiveMaximum": high + 1}
    if rng.random() < 0.2:
        return {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 1000}
    return {"type": "integer", "minimum": low, "maximum": high}


def _number(rng: random.Random) -> Schema:
    low = rng.randrange(-50, 50) / 2
    if rng.random() < 0.3:
        return {"type": "number", "exclusiveMinimum": low, "maximum": low + 10}
    return {"type": "number", "minimum": low, "maximum": low + rng.randrange(1, 200) / 4}


def _constant(rng: random.Random) -> Schema:
    if rng.random() < 0.4:
        return {"const": rng.choice(CONSTANTS)}
    return {"enum": rng.sample(CONSTANTS, rng.randrange(1, 5))}


def _plain(rng: random.Random) -> Schema:
    if rng.random() < 0.3:
        return {"type": ["boolean", "null"]}
    return {"type": rng.choice(("boolean", "null"))}


def _object(rng: random.Random, depth: int) -> Schema:
    if rng.random() < 0.1:
        return _dictionary(rng, depth)
    names = rng.sample(WORDS, rng.randrange(1, 5))
    found: Schema = {
        "type": "object",
        "properties": {name: _anything(rng, depth - 1 if depth else 0) for name in names},
        "required": rng.sample(names, rng.randrange(len(names) + 1)),
    }
    if rng.random() < 0.5:
        found["additionalProperties"] = False
    if rng.random() < 0.1:
        found["minProperties"] = 1
    return found


def _dictionary(rng: random.Random, depth: int) -> Schema:
    """Return an object schema whose property names are not fixed."""
    if rng.random() < 0.5:
        values = {"^[a-z]{1,6}$": _anything(rng, 0)}
        return {"type": "object", "patternProperties": values, "additionalProperties": False, "maxProperties": 3}
    names = {"pattern": "^[a-z]{1,6}$"}
    return {
        "type": "object",
        "propertyNames": names,
        "additionalProperties": _anything(rng, 0),
        "maxProperties": rng.randrange(1, 3),
    }


def _array(rng: random.Random, depth: int) -> Schema:
    least = rng.randrange(3)
    items = _anything(rng, depth - 1 if depth else 0)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + rng.randrange(1, 3)}


def _tuple(rng: random.Random, depth: int) -> Schema:
    parts = [_anything(rng, 0) for _ in range(rng.randrange(1, 4))]
    return {"type": "array", "prefixItems": parts, "items": False, "minItems": rng.randrange(len(parts) + 1)}


def _union(rng: random.Random, depth: int) -> Schema:
    if rng.random() < 0.3:  # a constant selects the option, as in unions with a discriminator
        options = [_tagged(rng, tag) for tag in rng.sample(WORDS, 2)]
        return {"oneOf": options}
    return {"anyOf": [_anything(rng, depth - 1 if depth else 0) for _ in range(rng.randrange(1, 4))]}


def _tagged(rng: random.Random, tag: str) -> Schema:
    properties = {"type": {"const": tag}, "value": _anything(rng, 0)}
    return {
        "type": "object",
        "properties": properties,
        "required": ["type", "value"],
        "additionalProperties": False,
    }


def _referring(rng: random.Random, depth: int) -> Schema:
    """Return a schema that references one definition twice, which references another."""
    part = {
        "type": "object",
        "properties": {"of": {"$ref": "#/$defs/leaf"}, "n": _integer(rng)},
        "required": ["of"],
    }
    whole = {"first": {"$ref": "#/$defs/part"}, "second": {"$ref": "#/$defs/part"}}
    return {
        "$defs": {"part": part, "leaf": _anything(rng, 0)},
        "type": "object",
        "properties": whole,
        "required": ["first"],
    }

"""Options of `oneOf` of which no value matches two."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.validation.json_schema.disjoint import are_disjoint
from shared.validation.json_schema.translation import translate_schema

TAGGED = {name: {"type": "object", "required": ["k"], "properties": {"k": {"const": name}}} for name in "ab"}


def by_constant(count: int, name: str = "a") -> list[dict[str, Any]]:
    return [{"type": "object", "required": [name], "properties": {name: {"const": i}}} for i in range(count)]


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        (by_constant(1_000), True),
        ([{"const": i} for i in range(1_000)], True),
        ([*by_constant(50), {"type": "null"}, {"type": "string"}], True),
        ([*by_constant(8), {"type": "string"}, {"const": 1}], False),
        ([{"const": 1}, {"const": True}], True),
        ([{"const": 1}, {"const": 1.0}], False),
        ([{"const": [1, {"a": None}]}, {"const": [1.0, {"a": None}]}], False),
        ([{"enum": [1, 2]}, {"enum": [2, 3]}], False),
        ([{"type": "integer"}, {"type": "number"}], False),
        ([{"type": ["string", "null"]}, {"type": "integer"}], True),
        (by_constant(20) + by_constant(20, "b"), False),
        ([{}, {"type": "string"}], False),
        ([{"type": "object"}, True], False),
        ([{"type": "object"}, False], True),
        (
            [{"required": ["k"], "properties": {"k": {"const": name}}} for name in "ab"],
            False,
        ),  # of other types: both
        ([{"type": "object", "properties": {"k": {"const": name}}} for name in "ab"], False),
        ([{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, {"type": "null"}], True),
        ([{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}], False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_one_of_is_accepted_if_no_value_matches_two(options: list[Any], accepted: bool) -> None:
    schema = {"oneOf": options, "$defs": TAGGED}
    if accepted:
        translate_schema(schema, "p", strict=True)
    else:
        with pytest.raises(InvalidRequest, match="oneOf at # is not supported: the options may overlap"):
            translate_schema(schema, "p", strict=True)


def test_one_of_agrees_with_a_comparison_of_all_pairs() -> None:
    def disjoint(options: list[Any]) -> bool:
        return are_disjoint(options, lambda schema: schema)

    draw = random.Random(1)
    alike = [{"const": 1}, {"const": 2}, {"type": "string"}, {"type": "object"}, {"enum": [2, 3]}]
    alike += [each for name in "ab" for each in by_constant(3, name)]
    for _ in range(1_000):
        options = draw.choices(alike, k=draw.randint(1, 5))
        pairs = itertools.combinations(options, 2)
        assert disjoint(options) == all(disjoint(list(pair)) for pair in pairs), options

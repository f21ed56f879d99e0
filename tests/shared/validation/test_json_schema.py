"""JSON schemas that are accepted, and the early refusal of large ones."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.protocol import Function, Message, Request, SamplingParams, Tools
from shared.validation import json_schema
from shared.validation.json_schema import MAX_SUBSCHEMAS, check_schema
from shared.validation.request_limits import Limits, check_request


def by_constant(count: int, name: str = "a") -> list[dict[str, Any]]:
    return [{"required": [name], "properties": {name: {"const": i}}} for i in range(count)]


@pytest.mark.parametrize(
    "schema",
    [
        *({name: []} for name in ("anyOf", "oneOf", "allOf", "enum", "type")),
        {"minimum": 1e-300, "maximum": 1e-299},
        {"minimum": 1e-12, "maximum": 1e-11},
        {"exclusiveMinimum": 1, "maximum": 1.0000005},
        {"minimum": 0, "exclusiveMinimum": 0, "exclusiveMaximum": 0.000001},
        {"minimum": 2, "maximum": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_schema_that_nothing_matches_is_refused(schema: dict[str, Any], strict: bool) -> None:
    for nested in (schema, {"type": "object", "properties": {"a": schema}}):
        with pytest.raises(InvalidRequest):
            check_schema(nested, "p", strict=strict)


@pytest.mark.parametrize(
    "schema",
    [
        {"minimum": 0, "maximum": 1e-300},
        {"minimum": 0.1, "maximum": 0.1},
        {"minimum": 0.000001, "maximum": 0.000002},
        {"type": "number", "maximum": 1.7976931348623157e308},
        {"minimum": -1e308, "maximum": 1e308},
    ],
    ids=str,
)
def test_a_range_with_a_number_in_it_is_accepted(schema: dict[str, Any]) -> None:
    assert check_schema(schema, "p", strict=True) == 1


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        (by_constant(1_000), True),
        ([{"const": i} for i in range(1_000)], True),
        ([*({"type": "object", **each} for each in by_constant(50)), {"type": "null"}, {"type": "string"}], True),
        ([*by_constant(8), {"type": "string"}, {"const": 1}], False),
        ([{"const": 1}, {"const": True}], True),
        ([{"const": 1}, {"const": 1.0}], False),
        ([{"const": [1, {"a": None}]}, {"const": [1.0, {"a": None}]}], False),
        ([{"enum": [1, 2]}, {"enum": [2, 3]}], False),
        ([{"type": "integer"}, {"type": "number"}], False),
        ([{"type": ["string", "null"]}, {"type": "integer"}], True),
        (by_constant(20) + by_constant(20, "b"), False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_one_of_is_accepted_if_no_value_matches_two(options: list[dict[str, Any]], accepted: bool) -> None:
    if accepted:
        check_schema({"oneOf": options}, "p", strict=True)
    else:
        with pytest.raises(InvalidRequest, match="overlap"):
            check_schema({"oneOf": options}, "p", strict=True)


def test_one_of_agrees_with_a_comparison_of_all_pairs() -> None:
    draw = random.Random(1)
    alike = [{"const": 1}, {"const": 2}, {"type": "string"}, {"type": "object"}, {"enum": [2, 3]}]
    alike += [{"type": "object", **each} for name in "ab" for each in by_constant(3, name)]
    for _ in range(2_000):
        options = draw.choices(alike, k=draw.randint(1, 5))
        pairs = itertools.combinations(options, 2)
        assert json_schema._are_disjoint(options) == all(json_schema._are_disjoint(list(pair)) for pair in pairs), (
            options
        )


def test_subschemas_of_all_tools_are_counted_together() -> None:
    def tools(each: int) -> Tools:
        parameters = json.dumps({"anyOf": [{}] * each}, separators=(",", ":"))
        return Tools(tuple(Function(f"f{i}", "", parameters, strict=False) for i in range(4)))

    messages, params = (Message("user", "x"),), SamplingParams(seed=1)
    for each, accepted in ((MAX_SUBSCHEMAS // 4 - 1, True), (MAX_SUBSCHEMAS // 4, False)):
        request = Request(id="r", model="m", messages=messages, params=params, tools=tools(each))
        if accepted:
            check_request(request, Limits())
        else:
            with pytest.raises(InvalidRequest, match="subschemas"):
                check_request(request, Limits())

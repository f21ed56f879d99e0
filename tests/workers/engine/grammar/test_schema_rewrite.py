"""A schema's grammar accepts nothing that the schema refuses, including what xgrammar would overlook."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shared.errors import InvalidRequest
from shared.protocol import Structured
from shared.validation.json_schema import check_schema
from tests.support.engine_driver import load
from workers.engine.engine import Engine
from workers.engine.grammar.compiler import XgrammarCompiler
from workers.engine.interface import ConstraintSpec

OPEN = {"type": "object", "additionalProperties": {"type": "string"}}
CASES: list[tuple[Any, list[Any], list[Any]]] = [
    ({"format": "date"}, ["2024-02-29", "2023-12-31"], ["2023-02-29", "2024-04-31", "0000-01-01", 5]),
    ({"format": "date-time"}, ["2024-02-29T10:00:00Z"], ["2023-02-30T10:00:00Z", "2024-02-29T24:00:00Z"]),
    ({"format": "ipv4"}, ["1.2.3.4", "255.10.0.99"], ["01.2.3.4", "1.2.3", "256.1.1.1"]),
    (
        {"format": "ipv6"},
        ["::", "1::", "::a:b", "1:2:3:4:5:6:7:8"],
        ["1:2", "1:2:3:4:5:6:7::8:9", "::ffff:01.2.3.4"],
    ),
    ({"minimum": 3, "maximum": 40}, [3, 40], [2, 41, "a"]),
    ({"type": "string", "enum": ["a", 1, None]}, ["a"], [1, None]),
    ({"type": ["integer", "null"], "enum": ["a", 1, None, 1.5]}, [1, None], ["a", 1.5]),
    ({**OPEN, "required": ["a"]}, [{"a": "x"}], [{}, {"a": 1}]),
    (
        {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b", "a"]},
        [{"b": 1, "a": 2}],
        [{"b": 1}],
    ),
    ({"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]}, [1, "ab"], ["abc", None]),
    ({"properties": {"a": {"minLength": 2}}}, [{"a": "xy"}, {}], [{"a": "x"}, {"a": 1}]),
    ({"const": 'say "hi"\n'}, ['say "hi"\n'], ["say"]),
    (
        {"$ref": "#/$defs/n", "$defs": {"n": {"anyOf": [{"type": "null"}, {"items": {"$ref": "#/$defs/n"}}]}}},
        [None, [[None]]],
        [1],
    ),
]


@pytest.fixture(scope="module")
def engine(llama: Path) -> Engine:
    return load(llama)


def fits(engine: Engine, schema: Any, value: Any, *, strict: bool = True) -> bool:
    assert isinstance(engine.constraints, XgrammarCompiler)
    asked = Structured(json_schema=json.dumps(schema), strict=strict)
    matcher = engine.constraints.start(ConstraintSpec(asked)).result(60).matcher()
    text = json.dumps(value, ensure_ascii=False)
    return all(matcher.accept(token) for token in engine.tokenizer.encode(text)) and matcher.accept(257)


@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=lambda case: json.dumps(case)[:40])
def test_grammar_accepts_only_what_the_schema_accepts(
    engine: Engine, schema: Any, good: list[Any], bad: list[Any]
) -> None:
    check_schema(schema, "schema", strict=True)
    for value in good:
        jsonschema.validate(value, schema, cls=jsonschema.Draft202012Validator)
        assert fits(engine, schema, value), value
    for value in bad:
        assert not fits(engine, schema, value), value


def test_non_strict_schema_is_enforced_where_possible(engine: Engine) -> None:
    """Given a pattern that JSON would escape, the pattern is left out and the answer is still JSON."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": 'x"y'}},
        "required": ["a"],
        "not": {},
    }
    with pytest.raises(InvalidRequest):
        check_schema(schema, "schema", strict=True)
    check_schema(schema, "schema", strict=False)
    assert fits(engine, schema, {"a": 'x"y'}, strict=False)
    assert not fits(engine, schema, {"a": 5}, strict=False)


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"const": 1}, {"const": 2}]},
        {"oneOf": [{"type": "object"}, {"type": "array"}]},
        {
            "oneOf": [
                {"type": "object", "properties": {"k": {"const": name}}, "required": ["k"]} for name in ("a", "b")
            ]
        },
    ],
)
def test_oneof_without_overlap_is_accepted(schema: Any) -> None:
    check_schema(schema, "schema", strict=True)


@pytest.mark.parametrize(
    "options",
    [
        [{"type": "integer"}, {"type": "number"}],
        [{}, {"type": "string"}],
        [{"enum": [1, 2]}, {"enum": [2, 3]}],
        [{"type": "object"}, True],
        [{"type": "object", "properties": {"k": {"const": name}}} for name in ("a", "b")],
    ],
)
def test_oneof_that_may_overlap_is_refused(options: Any) -> None:
    with pytest.raises(InvalidRequest, match="oneOf"):
        check_schema({"oneOf": options}, "schema", strict=True)

"""JSON schemas that are accepted, what is not held, and the early refusal of large ones."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.protocol import Function, Message, Request, SamplingParams, Tools
from shared.validation.json_schema.translation import MAX_SUBSCHEMAS, translate_schema
from shared.validation.request_limits import Limits, check_request

NOT_HOLDABLE: list[tuple[str, dict[str, Any]]] = [
    ("uniqueItems", {"type": "array", "uniqueItems": True}),
    ("not", {"not": {"type": "string"}}),
    ("if", {"if": {"required": ["a"]}, "then": {"required": ["b"]}}),
    ("contains", {"contains": {"type": "string"}}),
    ("oneOf", {"oneOf": [{"type": "integer"}, {"type": "number"}]}),
    ("pattern", {"pattern": "(?=a)b"}),
    ("patternProperties", {"patternProperties": {"(?!a)": {}}}),
    ("format", {"format": "regex"}),
    ("$ref", {"$ref": "https://example.com/other.json"}),
    ("$ref", {"$ref": "#/$defs/a", "$defs": {"a": {}, "b": {"$id": "https://example.com/b"}}}),
    ("minProperties", {"minProperties": 2}),
    ("maxProperties", {"properties": {"a": {}, "b": {}}, "maxProperties": 1}),
    ("propertyNames", {"properties": {"a": {}}, "propertyNames": {"pattern": "a"}}),
    ("unevaluatedProperties", {"allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False}),
    ("unevaluatedItems", {"$ref": "#/$defs/a", "unevaluatedItems": False, "$defs": {"a": {}}}),
    ("multipleOf", {"multipleOf": 0.07}),
    ("minimum", {"minimum": 2**53 + 1}),
    ("exclusiveMaximum", {"exclusiveMaximum": -(2**60)}),
    ("const", {"const": 2**53 + 1}),
    ("enum", {"enum": ["a\0"]}),
    ("type", {"type": "any"}),
]
WITHOUT_EFFECT: list[dict[str, Any]] = [
    {
        "$id": "x",
        "name": "legacy",
        "title": 1,
        "x-y": {"type": "string"},
        "nullable": True,
        "definitions": {"a": {}},
    },
    {"required": True, "format": "int32", "deprecated": True, "$comment": "x", "contentMediaType": "text/html"},
    {"uniqueItems": False, "minContains": 3, "then": {"const": 1}, "not": False},
    {"contains": {"const": 1}, "minContains": 0, "propertyNames": {"type": "string"}, "minProperties": 0},
    {
        "unevaluatedItems": True,
        "unevaluatedProperties": {},
        "dependentRequired": {"a": []},
        "dependencies": {"a": {}},
    },
]


@pytest.mark.parametrize(("keyword", "schema"), NOT_HOLDABLE, ids=lambda value: str(value)[:40])
def test_keyword_that_cannot_be_held_is_named(keyword: str, schema: dict[str, Any]) -> None:
    """Given such a keyword at some place, strict refuses it with its place; otherwise it is reported."""
    nested = {"properties": {"deep/er": {"items": schema}}, "$defs": schema.get("$defs", {})}
    with pytest.raises(InvalidRequest) as refused:
        translate_schema(nested, "p", strict=True)
    assert f": {keyword} at #/properties/deep~1er/items is not supported" in refused.value.message
    assert refused.value.param == "p"
    translated = translate_schema(nested, "p", strict=False)
    assert translated.not_held == (keyword,)


@pytest.mark.parametrize("schema", WITHOUT_EFFECT, ids=lambda value: str(value)[:40])
def test_annotations_and_unknown_keywords_do_not_constrain(schema: dict[str, Any]) -> None:
    assert translate_schema(schema, "p", strict=True).schema == {}


@pytest.mark.parametrize(
    "schema",
    [
        *({name: []} for name in ("anyOf", "oneOf", "allOf", "enum", "type")),
        {"minLength": -1},
        {"maxItems": 1.5},
        {"multipleOf": 0},
        {"minimum": "1"},
        {"minLength": True},
        {"properties": {"a": 1}},
        {"items": ["a"]},
        {"required": [1]},
        {"dependentRequired": {"a": "b"}},
        {"pattern": 1},
        {"$ref": "#/$defs/absent"},
    ],
    ids=str,
)
@pytest.mark.parametrize("strict", [True, False])
def test_malformed_keyword_is_refused(schema: dict[str, Any], strict: bool) -> None:
    for nested in (schema, {"type": "object", "properties": {"a": schema}}):
        with pytest.raises(InvalidRequest, match=re.escape(next(iter(schema)))):
            translate_schema(nested, "p", strict=strict)


def test_bounds_become_inclusive_and_exact() -> None:
    def bounds(**schema: Any) -> Any:
        found = translate_schema(schema, "p", strict=True).schema
        assert isinstance(found, dict)
        assert found.pop("multipleOf") == 1e-6, "a number's digits end"
        return found

    assert bounds(minimum=1, exclusiveMaximum=3) == {"minimum": 1, "maximum": 3 - 1e-9}
    assert bounds(minimum=1, exclusiveMinimum=True) == {"minimum": 1 + 1e-9}
    assert bounds(minimum=5, exclusiveMinimum=1) == {"minimum": 5}
    assert bounds(minimum=-1e300, maximum=1e300) == {"minimum": -(2**53), "maximum": 2**53}


def test_references_are_found_by_pointer_anchor_and_own_identifier() -> None:
    targets = {"a/b%": {"const": 1}, "c": {"$anchor": "here", "const": 2}}
    for reference in ("#/$defs/a~1b%25", "#here", "https://x.example/s#here", "#"):
        schema = {"$id": "https://x.example/s", "items": {"$ref": reference}, "$defs": targets}
        assert translate_schema(schema, "p", strict=True).not_held == ()


def test_chain_of_references_is_followed_without_recursion() -> None:
    links = {f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(2_000)}
    translate_schema({"$ref": "#/$defs/d0", "$defs": {**links, "d2000": {}}}, "p", strict=True)


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"pattern": f"a.{{{i}}}b"} for i in range(9)]},
        {"allOf": [{"properties": {"a": {"properties": {"b": {"pattern": f"{i}"}}}}} for i in range(9)]},
        {"allOf": [{"additionalProperties": {"pattern": f"{i}"}} for i in range(9)]},
        {
            "$ref": "#/$defs/d0",
            "$defs": {f"d{i}": {"pattern": f"{i}", "$ref": f"#/$defs/d{i + 1}"} for i in range(9)} | {"d9": {}},
        },
        {"allOf": [{"multipleOf": 65521}, {"multipleOf": 65519}, {"multipleOf": 65497}]},
    ],
    ids=lambda schema: str(schema)[:40],
)
@pytest.mark.parametrize("strict", [True, False])
def test_intersection_of_many_patterns_is_refused(schema: dict[str, Any], strict: bool) -> None:
    with pytest.raises(InvalidRequest, match="too complex"):
        translate_schema(schema, "p", strict=strict)


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"properties": {f"p{i}": {"pattern": f"{i}"}}} for i in range(40)]},
        {"anyOf": [{"pattern": f"{i}"} for i in range(40)], "minLength": 1},
        {"properties": {f"p{i}": {"properties": {"x": {"pattern": f"{i}"}}} for i in range(40)}},
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_patterns_that_never_meet_are_accepted(schema: dict[str, Any]) -> None:
    assert translate_schema(schema, "p", strict=True).not_held == ()


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

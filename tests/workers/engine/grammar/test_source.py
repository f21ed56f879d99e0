"""The grammar of a schema accepts nothing that the schema refuses, in strict mode and of every keyword."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shared.errors import InvalidRequest
from shared.protocol import Structured
from workers.engine.grammar.compiler import GrammarCompiler
from workers.engine.interface import ConstraintSpec
from workers.engine.text.tokenizer import Tokenizer

EOS = 257
OPEN = {"type": "object", "additionalProperties": {"type": "string"}}
NODE = {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/n"}}]}
A = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
CASES: list[tuple[Any, list[Any], list[Any]]] = [
    ({"format": "date"}, ["2024-02-29", "2023-12-31"], ["2023-02-29", "2024-04-31", "0000-01-01"]),
    ({"format": "date-time"}, ["2024-02-29T10:00:00Z"], ["2023-02-30T10:00:00Z", "2024-02-29T24:00:00Z"]),
    ({"format": "ipv4"}, ["1.2.3.4", "255.10.0.99"], ["01.2.3.4", "1.2.3", "256.1.1.1"]),
    ({"format": "ipv6"}, ["::", "1::", "::a:b", "1:2:3:4:5:6:7:8"], ["1:2", "1:2:3:4:5:6:7::8:9"]),
    ({"format": "json-pointer"}, ["", "/a/~0~1"], ["a", "/~2"]),
    ({"format": "uri-reference"}, ["/a/b?c#d", "https://x.y/z", ""], ["a b", "\\"]),
    ({"format": "uuid", "pattern": "^0"}, ["01234567-89ab-cdef-0123-456789abcdef"], ["", "0"]),
    ({"minimum": 3, "maximum": 40}, [3, 40, "a"], [2, 41]),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, [0.5, 0.01], [0, 0.0, 0.51]),
    ({"type": "integer", "exclusiveMaximum": 0, "minimum": -2}, [-2, -1], [0, -3]),
    ({"type": "integer", "exclusiveMinimum": True, "minimum": 1}, [2], [1]),
    ({"type": "number", "minimum": 0, "maximum": 1}, [0, 0.5, 0.123456, 1], [-0.1, 1.1]),
    ({"type": "number", "multipleOf": 0.25}, [0.25, -1.75, 3], [0.3]),
    ({"type": "string", "enum": ["a", 1, None]}, ["a"], [1, None]),
    ({"type": ["integer", "null"], "enum": ["a", 1, None, 1.5]}, [1, None], ["a", 1.5]),
    ({"const": 'say "hi"\n'}, ['say "hi"\n'], ["say", None]),
    ({"const": {"a": [1, {"b": None}]}}, [{"a": [1, {"b": None}]}], [{"a": [1]}, {}]),
    ({"enum": [0.1, 1e-7, -2.5]}, [0.1, -2.5], [0.2, 0]),
    ({"type": "string", "minLength": 2, "maxLength": 2}, ["éé", "😀a"], ["é", "abc"]),
    ({"type": "string", "pattern": r"^\d+$", "maxLength": 3}, ["1", "123"], ["", "1234", "x", "١"]),
    ({"type": "string", "pattern": "\\p{L}+"}, ["é", "1a"], ["1", ""]),
    ({"type": "string", "pattern": "^.[a[b]$"}, ["xa", "x["], ["\ra", "xb]"]),
    ({**OPEN, "required": ["a"]}, [{"a": "x"}, {"a": "x", "b": ""}], [{}, {"a": 1}, {"a": "x", "b": 1}]),
    ({"properties": {"a": {"minLength": 2}}}, [{"a": "xy"}, {}, {"b": 1}, 3], [{"a": "x"}]),
    ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, [{"a": 1}, {}], [{"b": 1}]),
    (
        {"patternProperties": {"^a": {"type": "null"}}, "properties": {"ab": {}}},
        [{"ab": None}, {"b": 1}],
        [{"ab": 1}],
    ),
    ({"patternProperties": {"^\\d$": {"minimum": 1}, "^[0-9]$": {"maximum": 1}}}, [{"0": 1}], [{"0": 0}, {"0": 2}]),
    ({**OPEN, "propertyNames": {"pattern": "^a+$"}}, [{"a": "", "aa": ""}, {}], [{"b": ""}, {"a": 1}]),
    ({**OPEN, "propertyNames": {"enum": ["a.b"]}}, [{"a.b": ""}], [{"axb": ""}]),
    ({**OPEN, "minProperties": 1, "maxProperties": 2}, [{"a": "", "b": ""}], [{}, {"a": "", "b": "", "c": ""}]),
    ({"dependentRequired": {"a": ["b"]}}, [{"a": 1, "b": 1}, {"b": 1}, {}, 1], [{"a": 1}]),
    ({"dependentSchemas": {"a": {"maxProperties": 1}}}, [{"a": 1}, {"b": 1, "c": 1}], [{"a": 1, "c": 1}]),
    ({"dependencies": {"a": ["b"], "c": False}}, [{"a": 1, "b": 1}], [{"c": 1}, {"a": 1}]),
    ({"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False}, [{"a": 1}], [{"b": 1}]),
    ({"prefixItems": [{"type": "null"}], "items": {"type": "string"}}, [[None, "a"], [], 1], [["a"], [None, 1]]),
    ({"items": [{"type": "null"}], "additionalItems": False}, [[None], []], [["a"], [None, 1]]),
    ({"prefixItems": [{}], "additionalItems": False, "items": {"type": "null"}}, [[1, None]], [[1, 2]]),
    ({"prefixItems": [{}], "unevaluatedItems": False}, [[1]], [[1, 2]]),
    ({"items": {"type": "integer"}, "minItems": 1, "maxItems": 2}, [[1], [1, 2]], [[], [1, 2, 3], ["a"]]),
    ({"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]}, [1, "ab"], ["abc", None]),
    ({"anyOf": [{"type": "integer"}, {"minLength": 2}], "maxLength": 3}, [1, "ab", None], ["a", "abcd"]),
    (
        {"allOf": [A, {"properties": {"b": {"type": "null"}}}]},
        [{"a": 1, "b": None}, 5],
        [{"b": None}, {"a": 1, "b": 1}],
    ),
    ({"$ref": "#/$defs/k", "maximum": 3, "$defs": {"k": {"type": "integer"}}}, [3], [4, "a"]),
    ({"$ref": "#/$defs/n", "$defs": {"n": NODE}}, [None, [[None]]], [[[1]], 1.5]),
    ({"items": {"$dynamicRef": "#n"}, "$defs": {"x": {"$dynamicAnchor": "n", "type": "null"}}}, [[None]], [[1]]),
    ({"not": False, "x-guidance": {"lenient": True}, "type": "null"}, [None], [1]),
    (True, [1, {"a": [None]}], []),
]


class Grammars:
    """Compiler for the tiny model's tokenizer, which has a token for each byte."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer(folder)
        self._compiler = GrammarCompiler(self._tokenizer, 272, frozenset({EOS}))

    def accepts(self, schema: Any, text: str, *, strict: bool = True) -> bool:
        asked = Structured(json_schema=json.dumps(schema), strict=strict)
        matcher = self._compiler.start(ConstraintSpec(asked)).result(60).matcher()
        tokens = self._tokenizer.encode(text)
        return all(map(matcher.accept, tokens)) and (matcher.finished or matcher.accept(EOS))

    def fits(self, schema: Any, value: Any, *, strict: bool = True) -> bool:
        return self.accepts(schema, json.dumps(value, ensure_ascii=False), strict=strict)


@pytest.fixture(scope="module")
def grammars(llama: Path) -> Grammars:
    return Grammars(llama)


@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=lambda case: json.dumps(case)[:40])
def test_grammar_accepts_only_what_the_schema_accepts(
    grammars: Grammars, schema: Any, good: list[Any], bad: list[Any]
) -> None:
    if "exclusiveMinimum" not in json.dumps(schema) or schema["exclusiveMinimum"] is not True:  # older drafts' form
        for value in good:
            jsonschema.validate(value, _for_validator(schema), cls=jsonschema.Draft202012Validator)
    for value in good:
        assert grammars.fits(schema, value), value
    for value in bad:
        assert not grammars.fits(schema, value), value


def _for_validator(schema: Any) -> Any:
    """Return a schema that the validator takes as meant: it knows neither older tuples nor classes of Unicode."""
    if isinstance(schema, dict) and isinstance(schema.get("items"), list):
        return {"prefixItems": schema["items"], "items": schema["additionalItems"]}
    return {} if isinstance(schema, dict) and "\\p" in str(schema.get("pattern")) else schema


def test_name_of_a_property_has_one_spelling(grammars: Grammars) -> None:
    """Given a property `a`, its name spelled with an escape is not taken for another property."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True}
    assert not grammars.accepts(schema, '{"\\u0061": "x"}')
    assert grammars.accepts(schema, '{"a": 1, "b": "x"}')


def test_repeated_name_does_not_count_twice(grammars: Grammars) -> None:
    assert not grammars.accepts({**OPEN, "minProperties": 1}, "{}")
    assert grammars.accepts(
        {**OPEN, "minProperties": 2}, '{"a": "", "a": ""}', strict=False
    )  # so strict refuses it


def test_object_that_lists_its_properties_has_no_others(grammars: Grammars) -> None:
    """Given no word about others, only listed and required ones; unless schemas are combined, or others allowed."""
    listed = {"type": "object", "properties": {"a": {}}, "required": ["b"]}
    assert grammars.fits(listed, {"a": 1, "b": 2})
    assert not grammars.fits(listed, {"b": 2, "c": 3})
    for schema in ({"allOf": [listed, {"properties": {"c": {}}}]}, {**listed, "additionalProperties": True}):
        assert grammars.fits(schema, {"b": 2, "c": 3}) or grammars.fits(schema, {"c": 3, "b": 2})


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, [[1, 1]], [["a"]]),
        ({"type": "string", "pattern": "(?=a)", "maxLength": 1, "format": "regex"}, ["b"], ["ab"]),
        ({"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 5}]}, [7, 7.5, 1], [1.5]),
        ({"type": "object", "properties": {"a": {"$ref": "other.json"}}, "not": {}}, [{"a": 1}], [1]),
        ({"properties": {"a": {}, "b": {}}, "minProperties": 2, "required": ["a"]}, [{"a": 1, "b": 1}], [{"b": 1}]),
        ({"if": {"const": 1}, "then": False, "type": "integer"}, [1], ["a"]),
    ],
    ids=lambda case: json.dumps(case)[:40],
)
def test_lenient_grammar_holds_the_rest(grammars: Grammars, schema: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert grammars.fits(schema, value, strict=False), value
    for value in bad:
        assert not grammars.fits(schema, value, strict=False), value


KEYWORDS: list[dict[str, Any]] = [
    {"properties": {"a": {"type": "integer"}}},
    {"required": ["a"]},
    {"additionalProperties": {"type": "string"}},
    {"additionalProperties": False},
    {"patternProperties": {"^a": {"minimum": 1}}},
    {"maxProperties": 1},
    {"minProperties": 1},
    {"dependentRequired": {"a": ["b"]}},
    {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    {"allOf": [{"properties": {"a": {"maximum": 1}}}, {"properties": {"b": {"type": "string"}}}]},
    {"$ref": "#/$defs/k"},
    {"unevaluatedProperties": False},
    {"propertyNames": {"enum": ["a", "b"]}},
]
VALUES: list[Any] = [
    {},
    {"a": 1},
    {"a": 2},
    {"a": "x"},
    {"b": "x"},
    {"b": 1},
    {"a": 1, "b": "x"},
    {"a": 0},
    {"c": "x"},
]


def test_pairs_of_keywords_agree_with_a_validator(grammars: Grammars) -> None:
    """Given any two keywords for objects, a value that the strict grammar accepts is valid."""
    definitions = {"$defs": {"k": {"properties": {"b": {"minLength": 1}}, "required": ["b"]}}}
    for first, second in itertools.combinations(KEYWORDS, 2):
        schema = {**first, **second, **definitions}
        validator = jsonschema.Draft202012Validator(schema)
        try:
            accepted = [value for value in VALUES if grammars.fits(schema, value)]
        except InvalidRequest:
            continue
        assert [value for value in accepted if not validator.is_valid(value)] == [], schema

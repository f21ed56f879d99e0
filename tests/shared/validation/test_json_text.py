"""JSON inside strings: faults that would break a parser or an encoder are found, and only those."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidRequest
from shared.validation.json_schema.parsing import parse_schema
from shared.validation.json_text import MAX_DEPTH, fault, nesting

PAIR, LONE = r"\ud83d\ude00", r"\ud800"
VALUES = st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


def depth(value: object) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if parts is None else 1 + max(map(depth, parts), default=0)


@given(VALUES, st.booleans())
def test_nesting_equals_that_of_the_parsed_value(value: object, escaped: bool) -> None:
    text = json.dumps(value, ensure_ascii=escaped)
    assert nesting(text) == depth(value)
    assert fault(text) is None


@pytest.mark.parametrize(
    "text", ["[" * 1200, '{"a":' * 3000, "[" * 129 + "]" * 129, '{"a":"\\"", "b":' + "[" * 200]
)
def test_too_many_levels_are_a_fault(text: str) -> None:
    assert fault(text) == f"must not be nested deeper than {MAX_DEPTH} levels"


@pytest.mark.parametrize("text", [f'{{"a":"{LONE}"}}', f'{{"{LONE}":1}}', f'["{PAIR}{LONE}"]', r'["\ude00\ud83d"]'])
def test_a_lone_surrogate_is_a_fault(text: str) -> None:
    assert "lone surrogate" in (fault(text) or "")


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[" * MAX_DEPTH, f'"{PAIR}"', r'"\\ud800"', LONE, '"' + "[" * 9999 + '"', "cut of", '{"a": "\\'],
)
def test_sound_json_and_other_text_have_no_fault(text: str) -> None:
    assert fault(text) is None


def test_a_schema_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate") as refused:
        parse_schema(f'{{"properties": {{"{LONE}": {{}}}}}}', "response_format", depth=64)
    assert refused.value.param == "response_format"

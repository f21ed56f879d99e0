"""Unknown fields of a body: found by their paths, reported in bounds, and refused in strict mode."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.protocol import PromptOptions, SamplingParams
from shared.schemas.openai.chat import ChatRequest
from shared.schemas.openai.responses import ResponseRequest
from shared.schemas.parsing import InvalidFields, validate
from shared.schemas.unknown_fields import MAX_REPORT_CHARS, MAX_REPORTED, ignored_fields

USER = {"role": "user", "content": "hi"}
FUNCTION = {"name": "f"}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [USER], **fields}).encode()


def ignored(**fields: Any) -> str:
    return ignored_fields(validate(body(**fields), ChatRequest))


def refused(**fields: Any) -> InvalidFields:
    with pytest.raises(InvalidFields) as caught:
        validate(body(**fields), ChatRequest, strict_fields=True)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "paths"),
    [
        ({}, ""),
        ({"keep_alive": "5m", "options": {}}, "keep_alive, options"),
        ({"keep_alive": None}, ""),
        ({"messages": [USER, {**USER, "foo": 1}]}, "messages[1].foo"),
        (
            {"tools": [{"type": "function", "function": {**FUNCTION, "a": 1}, "b": 1}]},
            "tools[0].b, tools[0].function.a",
        ),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"x": 1}, "y": 2}}},
            "response_format.json_schema.y",
        ),
        ({"metadata": {"a": "b"}, "logit_bias": {"1": 1}}, ""),
    ],
)
def test_unknown_fields_are_found_by_their_paths(fields: dict[str, Any], paths: str) -> None:
    assert ignored(**fields) == paths


def test_items_of_a_response_are_searched() -> None:
    data = {"model": "m", "input": [{"role": "user", "content": [{"type": "input_text", "text": "x", "y": 1}]}]}
    assert ignored_fields(validate(json.dumps(data).encode(), ResponseRequest)) == "input[0].content[0].y"


def test_an_unknown_field_with_the_name_of_a_parameter_has_no_effect() -> None:
    """Given parameters that other APIs have, their values, which nothing checked, reach no request."""
    chat = validate(body(suffix=5), ChatRequest)
    others = {"n": 9, "stop": 5, "echo": True, "max_tokens": "x", "logit_bias": 3}
    response = validate(json.dumps({"model": "m", "input": "x", **others}).encode(), ResponseRequest)

    assert chat.to_request("t").prompt_options == PromptOptions()
    assert response.to_request("t", []).params == SamplingParams()
    assert ignored_fields(chat) == "suffix"
    assert ignored_fields(response) == ", ".join(others)


def test_a_report_is_bounded_and_has_safe_characters() -> None:
    """Given many, long and hostile names, the report stays short, printable ASCII on one line."""
    many = ignored(**{f"f{i}": i for i in range(MAX_REPORTED + 1)})
    long = ignored(**{"x" * 10_000: 1, "y": 2})
    wide = ignored(**{f"{i}" * 100: 1 for i in range(10, 40)})
    odd = ignored(**{"a\r\nset-cookie: b": 1, "é,\0": 2})

    assert many.split(", ") == [*(f"f{i}" for i in range(MAX_REPORTED)), "..."]
    assert long == f"{'x' * 64}, y"
    assert len(wide) <= MAX_REPORT_CHARS + len(", ...") and wide.endswith(", ...")
    assert odd == "a??set-cookie:?b, ???"


def test_strict_fields_refuse_and_suggest() -> None:
    error = refused(max_token=5, nonsense=1, messages=[{**USER, "contents": "x"}], harmless=None)

    assert error.fields == (
        ("max_token", "unknown field; did you mean max_tokens?"),
        ("nonsense", "unknown field"),
        ("messages[0].contents", "unknown field; did you mean content?"),
    )
    assert error.message == "max_token: unknown field; did you mean max_tokens?"


def test_strict_fields_report_a_bounded_number() -> None:
    assert len(refused(**{f"{i}" * 1000: 1 for i in range(1000)}).fields) == MAX_REPORTED

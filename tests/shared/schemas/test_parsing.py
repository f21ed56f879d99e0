"""Errors of wrong bodies name the fields, and stay short for large bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.schemas.openai.chat import ChatRequest
from shared.schemas.openai.completions import CompletionRequest
from shared.schemas.openai.responses import ResponseRequest
from shared.schemas.parsing import MAX_ERRORS, MAX_FIELDS, InvalidFields, validate

MANY = 20_000
USER = {"role": "user", "content": "hi"}


def refused(schema: type[Any], **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        validate(json.dumps({"model": "m", **fields}).encode(), schema)
    return caught.value


@pytest.mark.parametrize(
    ("schema", "fields", "params"),
    [
        (ChatRequest, {"messages": [USER, *[{}] * MANY]}, {"messages[1].role", "messages[1].content"}),
        (ChatRequest, {"messages": [{**USER, "tool_calls": [0] * MANY}]}, {"messages[0].tool_calls[0]"}),
        (ChatRequest, {"messages": [USER] * 1025}, {"messages"}),
        (ChatRequest, {"messages": [USER], "stop": [1] * MANY, "tools": [1] * MANY}, {"stop[0]", "tools[0]"}),
        (
            ChatRequest,
            {"messages": [USER], "structured_outputs": {"choice": [0] * MANY}},
            {"structured_outputs.choice[0]"},
        ),
        (ResponseRequest, {"input": [0] * MANY, "include": [0] * MANY}, {"input[0]", "include[0]"}),
    ],
)
def test_a_list_reports_its_first_wrong_element(
    schema: type[Any], fields: dict[str, Any], params: set[str]
) -> None:
    error = refused(schema, **fields)

    assert isinstance(error, InvalidFields)
    assert {param.removesuffix(".message") for param, _ in error.fields} >= params
    assert len(error.fields) <= 2 * len(params)


def test_many_errors_are_counted_only() -> None:
    """Given MAX_ERRORS wrong fields, each is reported; given one more, their number."""
    most = refused(ChatRequest, messages=[USER], logit_bias={f"a{i}": 1 for i in range(MAX_ERRORS)})
    more = refused(ChatRequest, messages=[USER], logit_bias={f"a{i}": 1 for i in range(MAX_ERRORS + 1)})

    assert isinstance(most, InvalidFields)
    assert len(most.fields) == MAX_ERRORS
    assert more.message == f"{MAX_ERRORS + 1} fields are wrong"


def test_too_many_arrays_are_refused_before_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million lists would keep the interpreter's lock for 0.4 s while pydantic parses them."""
    monkeypatch.setattr(CompletionRequest, "model_validate_json", lambda data: pytest.fail("the body was parsed"))
    refusal = refused(CompletionRequest, prompt=[[1]] * 1_000_000)
    assert refusal.message == "the body must have at most 50000 arrays and objects, got 1000002"


def test_too_many_fields_are_refused_before_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChatRequest, "model_validate_json", lambda data: pytest.fail("the body was parsed"))
    refusal = refused(ChatRequest, **{str(i): 0 for i in range(MAX_FIELDS)})
    assert refusal.message == "the body must have at most 100000 fields, got 100001"


def test_marks_inside_strings_do_not_count() -> None:
    content = '[{"\\:' * MAX_FIELDS
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    assert validate(json.dumps(body).encode(), ChatRequest).messages[0].content == content

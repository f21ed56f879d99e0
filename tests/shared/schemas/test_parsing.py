"""Wrong bodies are told what is wrong with them, in few words however large they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.schemas.openai.chat import ChatRequest
from shared.schemas.openai.responses import ResponseRequest
from shared.schemas.parsing import MOST_ERRORS, InvalidFields, validate

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
        (ResponseRequest, {"input": [0] * MANY, "tools": [0] * MANY}, {"input[0]", "tools[0]"}),
    ],
)
def test_of_a_list_the_first_wrong_element_is_told(
    schema: type[Any], fields: dict[str, Any], params: set[str]
) -> None:
    """Given lists of many wrong elements, Expect the errors of one of each: the others are not looked at."""
    error = refused(schema, **fields)

    assert isinstance(error, InvalidFields)
    assert {param.removesuffix(".message") for param, _ in error.fields} >= params
    assert len(error.fields) <= 2 * len(params)


def test_more_errors_than_anybody_reads_are_counted() -> None:
    """Given as many wrong fields as are told, Expect each; given one more, their number."""
    most = refused(ChatRequest, messages=[USER], **{f"a{i}": 1 for i in range(MOST_ERRORS)})
    more = refused(ChatRequest, messages=[USER], logit_bias={f"a{i}": 1 for i in range(MOST_ERRORS + 1)})

    assert isinstance(most, InvalidFields)
    assert len(most.fields) == MOST_ERRORS
    assert more.message == f"{MOST_ERRORS + 1} fields are wrong or unknown"

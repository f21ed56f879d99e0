"""Messages as clients send them become turns of a chat, or errors that name the part at fault."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.protocol import Message, ToolCall
from shared.schemas.native.jobs import JobRequest
from shared.schemas.openai.chat import AnswerMessage, ChatRequest
from shared.schemas.parsing import validate
from shared.schemas.tools import AnswerCall, FunctionCall
from shared.schemas.unknown_fields import ignored_fields
from shared.validation.request_limits import Limits, check_together

USER = {"role": "user", "content": "Say hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "42"}
CACHED = {"type": "ephemeral"}


def parsed(*messages: dict[str, Any]) -> ChatRequest:
    return validate(json.dumps({"model": "m", "messages": messages}).encode(), ChatRequest)


def turns(*messages: dict[str, Any]) -> tuple[Message, ...]:
    """Return the turns of a chat, which a job has too."""
    draft = parsed(*messages).to_request("t")
    check_together([draft], Limits())
    job = validate(json.dumps({"model": "m", "messages": messages}).encode(), JobRequest)
    assert job.to_request("t").messages == draft.messages
    assert draft.messages is not None
    return draft.messages


def refused(*messages: dict[str, Any]) -> str:
    with pytest.raises(InvalidRequest) as caught:
        turns(*messages)
    return caught.value.message


@pytest.mark.parametrize(
    ("fields", "turn"),
    [
        ({}, Message("assistant", "")),
        ({"content": None}, Message("assistant", "")),
        ({"content": []}, Message("assistant", "")),
        ({"content": [], "refusal": "no"}, Message("assistant", "no")),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, Message("assistant", "no")),
        ({"content": None, "refusal": "no"}, Message("assistant", "no")),
        ({"content": "x", "reasoning_content": "hm"}, Message("assistant", "x", reasoning="hm")),
        ({"content": "x", "reasoning": "hm", "reasoning_content": None}, Message("assistant", "x", reasoning="hm")),
        ({"content": "x", "reasoning": None}, Message("assistant", "x")),
        (
            {"content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "x"}]},
            Message("assistant", "x", reasoning="hm"),
        ),
        ({"content": [{"type": "redacted_thinking", "data": "s"}, "x"]}, Message("assistant", "x")),
        (
            {"content": [{"type": "output_text", "text": "x", "annotations": [], "logprobs": []}]},
            Message("assistant", "x"),
        ),
        ({"content": "x", "id": "m1", "cache_control": CACHED, "annotations": [{}]}, Message("assistant", "x")),
        ({"content": "x", "tool_calls": []}, Message("assistant", "x")),
    ],
)
def test_a_turn_of_the_assistant_is_accepted(fields: dict[str, Any], turn: Message) -> None:
    assert turns(USER, {"role": "assistant", **fields}, USER)[1] == turn
    assert ignored_fields(parsed(USER, {"role": "assistant", **fields})) == ""


def test_parts_of_a_user_are_joined() -> None:
    parts = ["a", {"type": "text", "text": "b", "cache_control": CACHED}, {"type": "input_text", "text": "c"}]
    assert turns({"role": "user", "content": parts})[0] == Message("user", "abc")
    assert turns({"role": "user", "content": []})[0] == Message("user", "")


def test_a_developer_is_the_system_and_reasoning_is_the_assistants() -> None:
    assert turns({"role": "developer", "content": "x", "reasoning_content": "hm"}, USER)[0] == Message(
        "system", "x"
    )


def test_the_message_of_an_answer_can_be_sent_back() -> None:
    """Whole as the SDK dumps it, and as its streamed pieces add up."""
    call = AnswerCall("c1", FunctionCall("f", '{"a": 1}'))
    answer = AnswerMessage.from_text("", "", [call])
    dumped = {"role": answer.role, "content": answer.content, "refusal": answer.refusal}
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
    empty = {"annotations": None, "audio": None, "function_call": None}
    streamed = [{**calls[0], "index": 0}]
    for message in ({**dumped, **empty, "tool_calls": calls}, {**dumped, "content": "", "tool_calls": streamed}):
        assert turns(USER, message, RESULT)[1] == Message("assistant", "", (ToolCall("c1", "f", '{"a": 1}'),))


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ({"name": "f", "arguments": {"a": "é"}}, '{"a": "é"}'),
        ({"name": "f", "arguments": ""}, "{}"),
        ({"name": "f", "arguments": None}, "{}"),
        ({"name": "f"}, "{}"),
    ],
)
def test_arguments_may_be_an_object_or_missing(function: dict[str, Any], arguments: str) -> None:
    found = turns(USER, {"role": "assistant", "tool_calls": [{"id": "c1", "function": function}]}, RESULT)
    assert found[1].tool_calls == (ToolCall("c1", "f", arguments),)


def test_calls_in_the_older_form_become_tool_calls() -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    result = {"role": "function", "name": "f", "content": "42"}
    found = turns(USER, call, result, call, result)
    assert [turn.role for turn in found] == ["user", "assistant", "tool", "assistant", "tool"]
    assert (
        [found[i].tool_calls[0].id for i in (1, 3)]
        == [found[i].tool_call_id for i in (2, 4)]
        == ["call_1", "call_3"]
    )
    assert refused(USER, result) == "messages[1].name must be the name of a function_call in an earlier message"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "user"}, "messages[0].content is required"),
        ({"role": "user", "content": 5}, "messages[0].content must be a string or an array"),
        (
            {"role": "user", "content": [{"type": "text", "text": 1}]},
            "messages[0].content[0].text must be a string",
        ),
        ({"role": "user", "content": ["x", {"type": "text"}]}, "messages[0].content[1].text is required"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages[0].content[0].type is required"),
        (
            {"role": "user", "content": ["x", {"type": "image_url", "image_url": {"url": "data:"}}]},
            "messages[0].content[1].type must be one of 'text', 'input_text', 'output_text', 'refusal', "
            "'thinking', 'redacted_thinking', got image_url",
        ),
        ({"role": "user", "content": ["x"] * 1025}, "messages[0].content must have at most 1024 entries"),
        (
            {"role": "wizard", "content": "x"},
            "messages[0].role must be 'system', 'developer', 'user', 'assistant', 'tool' or 'function'",
        ),
        ({**USER, "tool_calls": [CALL]}, "messages[0].tool_calls is allowed in messages of the assistant only"),
        (
            {"role": "tool", "content": "x"},
            "messages[0].tool_call_id is required in messages of a tool, and allowed in no other messages",
        ),
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[0].audio must be null"),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {}}]},
            "messages[0].tool_calls[0].type must be 'function'",
        ),
    ],
)
def test_what_is_wrong_is_named(message: dict[str, Any], text: str) -> None:
    assert refused(message) == text

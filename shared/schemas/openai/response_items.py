"""Items of OpenAI's responses: as a body has them, and as they are stored and returned.

Reference: OpenAI API, "Create a model response", `input` and `output`. Items that are not text, and items of hosted
tools, are refused by name.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AliasChoices, BeforeValidator, Discriminator, Field, Tag

from shared.protocol import Message, ToolCall
from shared.schemas.base import Body
from shared.schemas.openai.logprobs import TokenLogprob
from shared.schemas.openapi_bounds import LIMITS, MAX_CONTENT_PARTS, Items, Short
from shared.schemas.tools import Arguments

Role = Literal["system", "developer", "user", "assistant"]
Status = Literal["in_progress", "completed", "incomplete"]


class InputText(msgspec.Struct, tag="input_text", tag_field="type"):
    text: str


class OutputText(msgspec.Struct, tag="output_text", tag_field="type"):
    text: str
    annotations: list[None] = []
    logprobs: list[TokenLogprob] = []


class MessageItem(msgspec.Struct, tag="message", tag_field="type", kw_only=True):
    """One turn: output_text from the assistant, input_text from others."""

    id: str
    status: Status = "completed"
    role: Role
    content: list[InputText | OutputText]

    def to_message(self) -> Message:
        text = "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class SummaryText(msgspec.Struct, tag="summary_text", tag_field="type"):
    text: str


class ReasoningText(msgspec.Struct, tag="reasoning_text", tag_field="type"):
    text: str


class ReasoningItem(msgspec.Struct, tag="reasoning", tag_field="type", kw_only=True):
    """Reasoning before an answer."""

    id: str
    status: Status = "completed"
    summary: list[SummaryText] = []
    content: list[ReasoningText]

    @property
    def text(self) -> str:
        """The reasoning, or its summary where the client has nothing else."""
        return "".join(part.text for part in self.content or self.summary)


class FunctionCallItem(msgspec.Struct, tag="function_call", tag_field="type", kw_only=True):
    """A call that the model made; `arguments` is JSON text."""

    id: str
    status: Status = "completed"
    call_id: str
    name: str
    arguments: str

    def to_message(self) -> Message:
        return Message("assistant", "", tool_calls=(ToolCall(self.call_id, self.name, self.arguments),))


class FunctionOutputItem(msgspec.Struct, tag="function_call_output", tag_field="type", kw_only=True):
    """Result of a call."""

    id: str
    status: Status = "completed"
    call_id: str
    output: str

    def to_message(self) -> Message:
        return Message("tool", self.output, tool_call_id=self.call_id)


OutputItem = ReasoningItem | MessageItem | FunctionCallItem
Item = OutputItem | FunctionOutputItem


def to_messages(items: Iterable[Item]) -> list[Message]:
    """Return the items as a chat. Calls join the assistant's turn before them, reasoning the one after it."""
    messages: list[Message] = []
    reasoning = ""
    for item in items:
        if isinstance(item, ReasoningItem):
            reasoning += item.text
            continue
        message = item.to_message()
        if message.tool_calls and messages and messages[-1].role == "assistant":
            before = messages.pop()
            message = msgspec.structs.replace(before, tool_calls=before.tool_calls + message.tool_calls)
        if reasoning and message.role == "assistant":
            message = msgspec.structs.replace(message, reasoning=message.reasoning + reasoning)
        reasoning = ""
        messages.append(message)
    return messages


def conversation_items(output: Iterable[OutputItem]) -> list[Item]:
    """Return an answer's items for later responses: without log-probabilities and incomplete calls."""
    items: list[Item] = []
    for item in output:
        if isinstance(item, MessageItem):
            items.append(msgspec.structs.replace(item, content=[type(part)(part.text) for part in item.content]))
        elif item.status == "completed":
            items.append(item)
    return items


# items of a body


class InputPart(Body):
    """A part of a turn. A part of an answer that is sent back has `annotations` and `logprobs`."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any] | None, Field(max_length=0)] = None
    logprobs: list[Any] | None = Field(None, max_length=LIMITS.max_tokens, description="accepted, without effect")
    prompt_cache_breakpoint: None = None


def _to_parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


def _to_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


_Parts = Annotated[Items[InputPart], Field(min_length=1, max_length=MAX_CONTENT_PARTS)]
Parts = Annotated[_Parts, BeforeValidator(_to_parts, json_schema_input_type=str | _Parts)]


class _InputItem(Body):
    """Fields of an answer's item that are accepted when it is sent back."""

    id: Short | None = Field(None, description="accepted, without effect")
    status: Status | None = Field(None, description="accepted, without effect")


class InputMessage(_InputItem):
    """One turn."""

    type: Literal["message"] = "message"
    role: Role
    content: Parts
    phase: Literal["commentary", "final_answer"] | None = Field(None, description="accepted, without effect")

    def to_item(self) -> Item:
        text = OutputText if self.role == "assistant" else InputText
        return MessageItem(id=_new_id("msg"), role=self.role, content=[text(part.text) for part in self.content])


CallId = Annotated[str, Field(max_length=128)]


class InputCall(_InputItem):
    """A call from an earlier answer."""

    type: Literal["function_call"]
    call_id: CallId
    name: Short
    arguments: Arguments
    caller: None = None
    namespace: None = None
    async_: Annotated[None, Field(validation_alias=AliasChoices("async", "async_"))] = None

    def to_item(self) -> Item:
        return FunctionCallItem(id=_new_id("fc"), call_id=self.call_id, name=self.name, arguments=self.arguments)


class InputOutput(_InputItem):
    """Result of a call."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Parts
    caller: None = None
    name: Short | None = Field(None, description="accepted, without effect")

    def to_item(self) -> Item:
        output = "".join(part.text for part in self.output)
        return FunctionOutputItem(id=_new_id("fco"), call_id=self.call_id, output=output)


def _kind(item: Any) -> str:
    """Return the type of an item, which may be parsed already; the default is message."""
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return str(kind or "message")


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputOutput, Tag("function_call_output")],
    Discriminator(_kind),
]
_Input = Annotated[Items[InputItem], Field(min_length=1, max_length=LIMITS.messages)]
Input = Annotated[_Input, BeforeValidator(_to_items, json_schema_input_type=str | _Input)]


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"

"""The items that OpenAI's responses take and give: as a body has them, and as we keep and tell them.

Reference: OpenAI API, "Create a model response", its `input` and `output`. What is no text, and what hosted tools
make, is refused by name.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AliasChoices, BeforeValidator, Discriminator, Field, Tag

from shared.protocol import Message, ToolCall
from shared.schemas.base import Body
from shared.schemas.openai.chat import TokenLogprob
from shared.schemas.openapi_bounds import LIMITS, MAX_PARTS, Items, Short
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
    """One turn: of the assistant with output_text, of others with input_text."""

    id: str
    status: Status = "completed"
    role: Role
    content: list[InputText | OutputText]

    def to_message(self) -> Message:
        text = "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


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
    """What a call gave."""

    id: str
    status: Status = "completed"
    call_id: str
    output: str

    def to_message(self) -> Message:
        return Message("tool", self.output, tool_call_id=self.call_id)


OutputItem = MessageItem | FunctionCallItem
Item = MessageItem | FunctionCallItem | FunctionOutputItem


def messages_of(items: Iterable[Item]) -> list[Message]:
    """The chat that the items are: calls belong to the assistant's turn before them."""
    messages: list[Message] = []
    for item in items:
        made = item.to_message()
        if made.tool_calls and messages and messages[-1].role == "assistant":
            before = messages.pop()
            made = msgspec.structs.replace(before, tool_calls=before.tool_calls + made.tool_calls)
        messages.append(made)
    return messages


def kept(output: Iterable[OutputItem]) -> list[Item]:
    """An answer's items as a later response goes on from them: without what nobody reads again, and half calls."""
    found: list[Item] = []
    for item in output:
        if isinstance(item, MessageItem):
            found.append(msgspec.structs.replace(item, content=[type(part)(part.text) for part in item.content]))
        elif item.status == "completed":
            found.append(item)
    return found


# what a body may have


class InputPart(Body):
    """A part of a turn. `annotations` and `logprobs` come with a part of an answer that is sent back."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any] | None, Field(max_length=0)] = None
    logprobs: list[Any] | None = Field(None, max_length=LIMITS.max_tokens, description="accepted, unused")
    prompt_cache_breakpoint: None = None


def _parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


def _items(given: Any) -> Any:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


_Parts = Annotated[Items[InputPart], Field(min_length=1, max_length=MAX_PARTS)]
Parts = Annotated[_Parts, BeforeValidator(_parts, json_schema_input_type=str | _Parts)]


class _GivenItem(Body):
    """What an answer's item carries beside may come back with it."""

    id: Short | None = Field(None, description="accepted, unused")
    status: Status | None = Field(None, description="accepted, unused")


class InputMessage(_GivenItem):
    """One turn."""

    type: Literal["message"] = "message"
    role: Role
    content: Parts
    phase: Literal["commentary", "final_answer"] | None = Field(None, description="accepted, unused")

    def to_item(self) -> Item:
        text = OutputText if self.role == "assistant" else InputText
        return MessageItem(id=_new_id("msg"), role=self.role, content=[text(part.text) for part in self.content])


CallId = Annotated[str, Field(max_length=128)]


class InputCall(_GivenItem):
    """A call that the model made earlier."""

    type: Literal["function_call"]
    call_id: CallId
    name: Short
    arguments: Arguments
    caller: None = None
    namespace: None = None
    async_: Annotated[None, Field(validation_alias=AliasChoices("async", "async_"))] = None

    def to_item(self) -> Item:
        return FunctionCallItem(id=_new_id("fc"), call_id=self.call_id, name=self.name, arguments=self.arguments)


class InputOutput(_GivenItem):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Parts
    caller: None = None
    name: Short | None = Field(None, description="accepted, unused")

    def to_item(self) -> Item:
        output = "".join(part.text for part in self.output)
        return FunctionOutputItem(id=_new_id("fco"), call_id=self.call_id, output=output)


def _kind(item: Any) -> str:
    """Of one that is given, or read already."""
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return str(kind or "message")


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputOutput, Tag("function_call_output")],
    Discriminator(_kind),
]
_Input = Annotated[Items[InputItem], Field(min_length=1, max_length=LIMITS.messages)]
Input = Annotated[_Input, BeforeValidator(_items, json_schema_input_type=str | _Input)]


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"

"""Turns of a chat: OpenAI's messages, and what vLLM and other servers add to them.

Fields that cannot matter for the text are accepted, so that the messages of an answer can be sent back as they are.
Reference: OpenAI API, "Create chat completion", `messages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from shared.errors import InvalidRequest
from shared.protocol import Message, ToolCall
from shared.schemas.base import Body
from shared.schemas.neutral_fields import Unused
from shared.schemas.openapi_bounds import LIMITS, MAX_CONTENT_PARTS, Items, Short
from shared.schemas.tools import CalledFunction, PastCall


class TextPart(Body):
    type: Literal["text", "input_text", "output_text"]
    text: str
    cache_control: Unused = None
    annotations: Unused = None
    logprobs: Unused = None


class RefusalPart(Body):
    """A refusal of the model, which is the text of its turn."""

    type: Literal["refusal"]
    refusal: str
    cache_control: Unused = None


class ThinkingPart(Body):
    """Reasoning before an answer."""

    type: Literal["thinking"]
    thinking: str
    signature: Unused = None


class HiddenThinkingPart(Body):
    """Reasoning that only another server can read; it is left out."""

    type: Literal["redacted_thinking"]
    data: Unused = None


Part = Annotated[TextPart | RefusalPart | ThinkingPart | HiddenThinkingPart, Field(discriminator="type")]
_Item = Annotated[Part | str, Field(union_mode="left_to_right")]
Parts = Annotated[list[_Item], Field(max_length=MAX_CONTENT_PARTS, fail_fast=True)]
Content = Annotated[str | Parts | None, Field(union_mode="left_to_right")]  # twice as fast as the smart mode


class ChatMessage(Body):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = Field(
        None, validate_default=True, description="a text, or its parts; may be missing in the assistant's turns"
    )
    tool_calls: Items[PastCall] | None = Field(None, description="the tool calls of this answer")
    tool_call_id: Short | None = Field(
        None, validate_default=True, description="id of the tool call that this message answers"
    )
    name: Short | None = Field(None, description="name of the speaker, for chat templates that use it")
    refusal: str | None = Field(None, description="the text of a turn without content")
    reasoning_content: str | None = Field(
        None, description="what the model reasoned before this answer, for chat templates that use it"
    )
    reasoning: str | None = Field(None, description="another name of reasoning_content")
    function_call: CalledFunction | None = Field(None, description="older form of a single tool call")
    id: Unused = None
    annotations: Unused = None
    cache_control: Unused = None
    reasoning_details: Unused = None
    audio: None = None

    @field_validator("content")
    @classmethod
    def _check_content(cls, content: Content, info: ValidationInfo) -> Content:
        if content is None and info.data.get("role") != "assistant":
            raise PydanticCustomError("missing", "is required")
        return content

    @field_validator("tool_calls", "function_call")
    @classmethod
    def _check_calls(cls, calls: Any, info: ValidationInfo) -> Any:
        if calls and info.data.get("role") != "assistant":
            raise PydanticCustomError("calls", "is allowed in messages of the assistant only")
        return calls

    @field_validator("tool_call_id")
    @classmethod
    def _check_tool_call_id(cls, call: str | None, info: ValidationInfo) -> str | None:
        if (call is None) == (info.data.get("role") == "tool"):
            raise PydanticCustomError(
                "missing_id", "is required in messages of a tool, and allowed in no other messages"
            )
        return call

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(map(_text, self.content)) or self.refusal or ""
        return self.content or self.refusal or ""

    @property
    def thought(self) -> str:
        """The reasoning before an answer of the model."""
        if self.role != "assistant":
            return ""
        parts = self.content if isinstance(self.content, list) else ()
        thinking = "".join(part.thinking for part in parts if isinstance(part, ThinkingPart))
        return self.reasoning_content or self.reasoning or thinking


Messages = Annotated[Items[ChatMessage], Field(max_length=LIMITS.messages)]


def _text(part: Any) -> str:
    match part:
        case str():
            return part
        case TextPart():
            return part.text
        case RefusalPart():
            return part.refusal
        case _:
            return ""


def to_messages(chat: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Return the turns as the queue carries them. Raise InvalidRequest for a result of a function not called."""
    called: dict[str, str] = {}  # the id of each function's last call in the older form
    turns = []
    for i, message in enumerate(chat):
        calls = [call.to_call() for call in message.tool_calls or ()]
        if message.function_call is not None:
            name, arguments = message.function_call.name, message.function_call.arguments
            called[name] = f"call_{i}"
            calls.append(ToolCall(called[name], name, arguments))
        role, call_id, name_shown = message.role, message.tool_call_id, message.name
        if role == "function":
            if name_shown not in called:
                raise InvalidRequest(
                    f"messages[{i}].name must be the name of a function_call in an earlier message",
                    param=f"messages[{i}].name",
                )
            role, call_id = "tool", called[name_shown]
        turns.append(
            Message(
                "system" if role == "developer" else role,
                message.text,
                tool_calls=tuple(calls),
                tool_call_id=call_id,
                name=name_shown,
                reasoning=message.thought,
            )
        )
    return tuple(turns)

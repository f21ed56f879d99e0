"""The items that OpenAI's responses take and give: as a body has them, and as we keep and tell them.

Reference: OpenAI API, "Create a model response", its `input` and `output`. What is no text is refused by name.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field

from shared.protocol import Message
from shared.schemas.chat import TokenLogprob
from shared.schemas.fields import Body

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

    def to_input(self) -> MessageItem:
        """As a later response keeps it."""
        return msgspec.structs.replace(self, content=[type(part)(part.text) for part in self.content])


Item = MessageItem


class InputPart(Body):
    """A part of a turn. `annotations` and `logprobs` come with a part of an answer that is sent back."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any] | None, Field(max_length=0)] = None
    logprobs: list[Any] | None = Field(None, description="accepted, unused")
    prompt_cache_breakpoint: None = None


def _parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


def _items(given: Any) -> Any:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


_Parts = Annotated[list[InputPart], Field(min_length=1)]
Parts = Annotated[_Parts, BeforeValidator(_parts, json_schema_input_type=str | _Parts)]


class InputMessage(Body):
    """One turn. What an answer's message carries beside role and content may come back with it."""

    type: Literal["message"] = "message"
    role: Role
    content: Parts
    id: str | None = Field(None, description="accepted, unused")
    status: Status | None = Field(None, description="accepted, unused")
    phase: Literal["commentary", "final_answer"] | None = Field(None, description="accepted, unused")

    def to_item(self) -> Item:
        text = OutputText if self.role == "assistant" else InputText
        item_id = f"msg_{secrets.token_hex(16)}"
        return MessageItem(id=item_id, role=self.role, content=[text(part.text) for part in self.content])


_Input = Annotated[list[InputMessage], Field(min_length=1)]
Input = Annotated[_Input, BeforeValidator(_items, json_schema_input_type=str | _Input)]
